#include "bindings/nade.h"

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cpu/nade.h"

namespace py = pybind11;

namespace fastar {
namespace {

template <typename T>
T* at(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

cpu::NadeActivation activation_of(const std::string& name) {
    if (name == "sigmoid") return cpu::NadeActivation::kSigmoid;
    if (name == "relu") return cpu::NadeActivation::kRelu;
    if (name == "tanh") return cpu::NadeActivation::kTanh;
    throw std::invalid_argument("activation: expected sigmoid, relu or tanh, got '" + name + "'");
}

}  // namespace

void bind_nade(py::module_& module) {
    module.attr("NADE_SLICE") = cpu::kNadeSlice;
    module.def(
        "nade_forward",
        [](std::int64_t batch, std::int64_t dim, std::int64_t hidden, std::int64_t params, std::int64_t stride,
           std::uintptr_t weight, std::uintptr_t readout, std::uintptr_t hidden_bias, std::uintptr_t order,
           const std::string& activation, std::uintptr_t bias, std::uintptr_t x, std::uintptr_t out,
           std::uintptr_t log_prob, int threads) {
            const cpu::NadeForward arguments{.model = {.dim = dim,
                                                       .hidden = hidden,
                                                       .params = params,
                                                       .stride = stride,
                                                       .weight = at<const float>(weight),
                                                       .readout = at<const float>(readout),
                                                       .hidden_bias = at<const float>(hidden_bias),
                                                       .order = at<const std::int32_t>(order),
                                                       .activation = activation_of(activation)},
                                             .bias = at<const float>(bias),
                                             .x = at<const float>(x),
                                             .out = at<float>(out),
                                             .log_prob = at<float>(log_prob)};
            const py::gil_scoped_release release;
            cpu::nade_forward(arguments, batch, threads);
        },
        py::arg("batch"), py::arg("dim"), py::arg("hidden"), py::arg("params"), py::arg("stride"), py::arg("weight"),
        py::arg("readout"), py::arg("hidden_bias"), py::arg("order"), py::arg("activation"), py::arg("bias"),
        py::arg("x"), py::arg("out"), py::arg("log_prob"), py::arg("threads"));
    module.def(
        "nade_backward",
        [](std::int64_t batch, std::int64_t dim, std::int64_t hidden, std::int64_t params, std::int64_t stride,
           std::uintptr_t weight, std::uintptr_t readout, std::uintptr_t hidden_bias, std::uintptr_t order,
           const std::string& activation, std::uintptr_t x, std::uintptr_t grad, std::uintptr_t grad_x,
           std::uintptr_t grad_weight, std::uintptr_t grad_readout, std::uintptr_t grad_hidden_bias, int threads) {
            const cpu::NadeBackward arguments{.model = {.dim = dim,
                                                        .hidden = hidden,
                                                        .params = params,
                                                        .stride = stride,
                                                        .weight = at<const float>(weight),
                                                        .readout = at<const float>(readout),
                                                        .hidden_bias = at<const float>(hidden_bias),
                                                        .order = at<const std::int32_t>(order),
                                                        .activation = activation_of(activation)},
                                              .batch = batch,
                                              .x = at<const float>(x),
                                              .grad = at<const float>(grad),
                                              .active = nullptr,
                                              .active_count = nullptr,
                                              .grad_x = at<float>(grad_x),
                                              .grad_weight = at<float>(grad_weight),
                                              .grad_readout = at<float>(grad_readout),
                                              .grad_hidden_bias = at<float>(grad_hidden_bias)};
            const py::gil_scoped_release release;
            cpu::nade_backward(arguments, threads);
        },
        py::arg("batch"), py::arg("dim"), py::arg("hidden"), py::arg("params"), py::arg("stride"), py::arg("weight"),
        py::arg("readout"), py::arg("hidden_bias"), py::arg("order"), py::arg("activation"), py::arg("x"),
        py::arg("grad"), py::arg("grad_x"), py::arg("grad_weight"), py::arg("grad_readout"),
        py::arg("grad_hidden_bias"), py::arg("threads"));
}

}  // namespace fastar
