
#include "cpu/delayed.h"

#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/address.h"
#include "bindings/delayed.h"
#include "bindings/element.h"

namespace py = pybind11;

namespace fastar {
namespace {

using Address = std::uintptr_t;

cpu::Gate gate_of(const std::string& name) {
    if (name == "none") return cpu::Gate::kNone;
    if (name == "relu") return cpu::Gate::kRelu;
    if (name == "tanh") return cpu::Gate::kTanh;
    if (name == "sigmoid") return cpu::Gate::kSigmoid;
    if (name == "silu") return cpu::Gate::kSilu;
    throw std::invalid_argument("activation: expected none, relu, tanh, sigmoid or silu, got '" + name + "'");
}

}  // namespace

void bind_delayed(py::module_& module) {
    const auto release = py::call_guard<py::gil_scoped_release>();
    using Strides = std::array<std::int64_t, 2>;
    py::class_<cpu::Source>(module, "Source")
        .def(py::init([](Address data, Strides strides, std::int64_t length, Address history, Strides history_strides,
                         std::int64_t history_length, Address index) {
                 return cpu::Source{.data = at<const void>(data),
                                    .batch_stride = strides[0],
                                    .channel_stride = strides[1],
                                    .length = length,
                                    .history = at<const void>(history),
                                    .history_batch_stride = history_strides[0],
                                    .history_channel_stride = history_strides[1],
                                    .history_length = history_length,
                                    .index = at<const std::int32_t>(index)};
             }),
             py::arg("data"), py::arg("strides"), py::arg("length"), py::arg("history") = 0,
             py::arg("history_strides") = Strides{}, py::arg("history_length") = 0, py::arg("index") = 0);
    module.def(
        "delayed_sum",
        [](const std::string& dtype, std::array<std::int64_t, 4> sizes, const cpu::Source& source,
           const std::vector<std::int64_t>& offsets, Address weight, std::array<std::int64_t, 4> weight_strides,
           Address bias, const std::string& activation, Address out, Address kept, std::int64_t first,
           std::int64_t count, int threads) {
            cpu::delayed_sum({.element = element_of(dtype),
                              .batch = sizes[0],
                              .groups = sizes[1],
                              .inputs = sizes[2],
                              .outputs = sizes[3],
                              .source = source,
                              .offsets = offsets.data(),
                              .taps = static_cast<std::int64_t>(offsets.size()),
                              .weight = at<const void>(weight),
                              .weight_group = weight_strides[0],
                              .weight_output = weight_strides[1],
                              .weight_input = weight_strides[2],
                              .weight_tap = weight_strides[3],
                              .bias = at<const float>(bias),
                              .activation = gate_of(activation),
                              .out = at<void>(out),
                              .kept = at<void>(kept),
                              .first = first,
                              .count = count},
                             threads);
        },
        release, py::arg("dtype"), py::arg("sizes"), py::arg("source"), py::arg("offsets"), py::arg("weight"),
        py::arg("weight_strides"), py::arg("bias"), py::arg("activation"), py::arg("out"), py::arg("kept"),
        py::arg("first"), py::arg("count"), py::arg("threads"));
    module.def(
        "delayed_products",
        [](const std::string& dtype, std::array<std::int64_t, 4> sizes, Address grad, Strides grad_strides,
           const cpu::Source& source, const std::vector<std::int64_t>& offsets, Address out, int threads) {
            cpu::delayed_products({.element = element_of(dtype),
                                   .batch = sizes[0],
                                   .groups = sizes[1],
                                   .inputs = sizes[2],
                                   .outputs = sizes[3],
                                   .grad = at<const void>(grad),
                                   .grad_batch = grad_strides[0],
                                   .grad_channel = grad_strides[1],
                                   .source = source,
                                   .offsets = offsets.data(),
                                   .taps = static_cast<std::int64_t>(offsets.size()),
                                   .out = at<void>(out)},
                                  threads);
        },
        release, py::arg("dtype"), py::arg("sizes"), py::arg("grad"), py::arg("grad_strides"), py::arg("source"),
        py::arg("offsets"), py::arg("out"), py::arg("threads"));
    py::class_<cpu::DepthwiseSum>(module, "DepthwiseSum")
        .def(py::init([](const std::string& dtype, std::array<std::int64_t, 3> sizes, const cpu::Source& source,
                         std::int64_t dilation, std::int64_t taps, Address weight, Address bias,
                         const std::string& activation, Address out, Address kept) {
                 return cpu::DepthwiseSum{.element = element_of(dtype),
                                          .batch = sizes[0],
                                          .channels = sizes[1],
                                          .multiplier = sizes[2],
                                          .source = source,
                                          .dilation = dilation,
                                          .taps = taps,
                                          .weight = at<const float>(weight),
                                          .bias = at<const float>(bias),
                                          .activation = gate_of(activation),
                                          .out = at<void>(out),
                                          .kept = at<void>(kept)};
             }),
             py::arg("dtype"), py::arg("sizes"), py::arg("source"), py::arg("dilation"), py::arg("taps"),
             py::arg("weight"), py::arg("bias"), py::arg("activation"), py::arg("out") = 0, py::arg("kept") = 0);
    module.def("depthwise_sum", &cpu::depthwise_sum, release, py::arg("sum"), py::arg("threads"));
    module.def(
        "depthwise_gradients",
        [](const cpu::DepthwiseSum& forward, Address grad, Strides grad_strides, Address source, Address history,
           Address weight, Address bias, int threads) {
            cpu::depthwise_gradients({.forward = forward,
                                      .grad = at<const void>(grad),
                                      .grad_batch = grad_strides[0],
                                      .grad_channel = grad_strides[1],
                                      .source = at<void>(source),
                                      .history = at<void>(history),
                                      .weight = at<float>(weight),
                                      .bias = at<float>(bias)},
                                     threads);
        },
        release, py::arg("forward"), py::arg("grad"), py::arg("grad_strides"), py::arg("source"), py::arg("history"),
        py::arg("weight"), py::arg("bias"), py::arg("threads"));
}

}  // namespace fastar
