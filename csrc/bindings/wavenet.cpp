#include "cpu/wavenet.h"

#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <string>

#include "bindings/address.h"
#include "bindings/element.h"
#include "bindings/wavenet.h"

namespace py = pybind11;

namespace fastar {
namespace {

using Address = std::uintptr_t;
using Strides = std::array<std::int64_t, 2>;

}  // namespace

void bind_wavenet(py::module_& module) {
    const auto release = py::call_guard<py::gil_scoped_release>();
    py::class_<cpu::WavenetGates>(module, "WavenetGates")
        .def(py::init([](const std::string& dtype, std::array<std::int64_t, 4> sizes, const cpu::Source& source,
                         std::int64_t taps, std::int64_t dilation, Address weight,
                         std::array<std::int64_t, 3> weight_strides, Address bias, Address residual_weight,
                         Strides residual_strides, Address skip_weight, Strides skip_strides, Address conditioning,
                         std::int64_t frames, std::int64_t hop, float residual_scale, float skip_scale) {
                 const auto matrix = [](Address data, Strides strides) {
                     return cpu::WavenetWeight{at<const void>(data), strides[0], strides[1], 0};
                 };
                 return cpu::WavenetGates{
                     .element = element_of(dtype),
                     .batch = sizes[0],
                     .residual = sizes[1],
                     .gate = sizes[2],
                     .skip = sizes[3],
                     .source = source,
                     .taps = taps,
                     .dilation = dilation,
                     .weight = {at<const void>(weight), weight_strides[0], weight_strides[1], weight_strides[2]},
                     .bias = at<const float>(bias),
                     .residual_weight = matrix(residual_weight, residual_strides),
                     .skip_weight = matrix(skip_weight, skip_strides),
                     .conditioning = at<const void>(conditioning),
                     .frames = frames,
                     .hop = hop,
                     .residual_scale = residual_scale,
                     .skip_scale = skip_scale};
             }),
             py::arg("dtype"), py::arg("sizes"), py::arg("source"), py::arg("taps"), py::arg("dilation"),
             py::arg("weight"), py::arg("weight_strides"), py::arg("bias"), py::arg("residual_weight"),
             py::arg("residual_strides"), py::arg("skip_weight"), py::arg("skip_strides"), py::arg("conditioning"),
             py::arg("frames"), py::arg("hop"), py::arg("residual_scale"), py::arg("skip_scale"));
    module.def(
        "wavenet_forward",
        [](const cpu::WavenetGates& gates, Address residual_bias, Address skip_bias, Address skip_sum,
           Strides skip_strides, Address residual_out, Address skip_out, int threads) {
            cpu::wavenet_forward({.gates = gates,
                                  .residual_bias = at<const float>(residual_bias),
                                  .skip_bias = at<const float>(skip_bias),
                                  .skip_sum = at<const void>(skip_sum),
                                  .skip_batch = skip_strides[0],
                                  .skip_channel = skip_strides[1],
                                  .residual_out = at<void>(residual_out),
                                  .skip_out = at<void>(skip_out)},
                                 threads);
        },
        release, py::arg("gates"), py::arg("residual_bias"), py::arg("skip_bias"), py::arg("skip_sum"),
        py::arg("skip_strides"), py::arg("residual_out"), py::arg("skip_out"), py::arg("threads"));
    module.def(
        "wavenet_backward",
        [](const cpu::WavenetGates& gates, Address grad_residual, Strides residual_strides, Address grad_skip,
           Strides skip_strides, Address h, Address grad_z, int threads) {
            cpu::wavenet_backward({.gates = gates,
                                   .grad_residual = at<const void>(grad_residual),
                                   .residual_batch = residual_strides[0],
                                   .residual_channel = residual_strides[1],
                                   .grad_skip = at<const void>(grad_skip),
                                   .skip_batch = skip_strides[0],
                                   .skip_channel = skip_strides[1],
                                   .h = at<void>(h),
                                   .grad_z = at<void>(grad_z)},
                                  threads);
        },
        release, py::arg("gates"), py::arg("grad_residual"), py::arg("residual_strides"), py::arg("grad_skip"),
        py::arg("skip_strides"), py::arg("h"), py::arg("grad_z"), py::arg("threads"));
}

}  // namespace fastar
