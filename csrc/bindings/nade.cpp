#include "bindings/nade.h"

#include <cstdint>
#include <stdexcept>
#include <string>

#include "bindings/address.h"
#include "cpu/nade.h"

namespace py = pybind11;

namespace fastar {
namespace {

cpu::NadeActivation activation_of(const std::string& name) {
    if (name == "sigmoid") return cpu::NadeActivation::kSigmoid;
    if (name == "relu") return cpu::NadeActivation::kRelu;
    if (name == "tanh") return cpu::NadeActivation::kTanh;
    throw std::invalid_argument("activation: expected sigmoid, relu or tanh, got '" + name + "'");
}

}  // namespace

void bind_nade(py::module_& module) {
    using Address = std::uintptr_t;
    py::class_<cpu::NadeWeights>(module, "NadeWeights")
        .def(py::init([](std::int64_t dim, std::int64_t hidden, std::int64_t params, Address weight,
                         std::int64_t weight_stride_h, std::int64_t weight_stride_d, Address readout,
                         Address hidden_bias, Address order, const std::string& activation) {
                 return cpu::NadeWeights{.dim = dim,
                                         .hidden = hidden,
                                         .params = params,
                                         .weight = at<const float>(weight),
                                         .weight_stride_h = weight_stride_h,
                                         .weight_stride_d = weight_stride_d,
                                         .readout = at<const float>(readout),
                                         .hidden_bias = at<const float>(hidden_bias),
                                         .order = at<const std::int32_t>(order),
                                         .activation = activation_of(activation)};
             }),
             py::arg("dim"), py::arg("hidden"), py::arg("params"), py::arg("weight"), py::arg("weight_stride_h"),
             py::arg("weight_stride_d"), py::arg("readout"), py::arg("hidden_bias"), py::arg("order"),
             py::arg("activation"));
    module.def(
        "nade_forward",
        [](const cpu::NadeWeights& weights, Address bias, Address x, std::int64_t batch, Address out, Address log_prob,
           int threads) {
            return cpu::nade_forward(weights, at<const float>(bias), at<const float>(x), batch, at<float>(out),
                                     at<float>(log_prob), threads);
        },
        py::call_guard<py::gil_scoped_release>(), py::arg("weights"), py::arg("bias"), py::arg("x"), py::arg("batch"),
        py::arg("out"), py::arg("log_prob"), py::arg("threads"));
    module.def(
        "nade_backward",
        [](const cpu::NadeWeights& weights, Address grad, std::int64_t stride_b, std::int64_t stride_d,
           std::int64_t stride_k, Address grad_log_prob, Address logits, Address x, std::int64_t batch, Address grad_x,
           Address grad_weight, Address grad_readout, Address grad_hidden_bias, Address grad_bias, int threads) {
            const cpu::NadeSource source{.grad = at<const float>(grad),
                                         .stride_b = stride_b,
                                         .stride_d = stride_d,
                                         .stride_k = stride_k,
                                         .grad_log_prob = at<const float>(grad_log_prob),
                                         .logits = at<const float>(logits)};
            const cpu::NadeGradients gradients{.x = at<float>(grad_x),
                                               .weight = at<float>(grad_weight),
                                               .readout = at<float>(grad_readout),
                                               .hidden_bias = at<float>(grad_hidden_bias),
                                               .bias = at<float>(grad_bias)};
            cpu::nade_backward(weights, source, at<const float>(x), batch, gradients, threads);
        },
        py::call_guard<py::gil_scoped_release>(), py::arg("weights"), py::arg("grad"), py::arg("stride_b"),
        py::arg("stride_d"), py::arg("stride_k"), py::arg("grad_log_prob"), py::arg("logits"), py::arg("x"),
        py::arg("batch"), py::arg("grad_x"), py::arg("grad_weight"), py::arg("grad_readout"),
        py::arg("grad_hidden_bias"), py::arg("grad_bias"), py::arg("threads"));
}

}  // namespace fastar
