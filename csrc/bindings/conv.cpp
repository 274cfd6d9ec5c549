#include "cpu/conv.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings/address.h"
#include "bindings/conv.h"
#include "bindings/element.h"

namespace py = pybind11;

namespace fastar {
namespace {

void pack_taps(std::uintptr_t weight, std::array<std::int64_t, 3> strides, std::array<std::int64_t, 2> sizes,
               const std::vector<std::int64_t>& taps, std::uintptr_t mask, std::int64_t masked, bool transposed,
               std::uintptr_t packed, int threads) {
    cpu::pack_taps({.data = at<const float>(weight),
                    .output_stride = strides[0],
                    .input_stride = strides[1],
                    .tap_stride = strides[2],
                    .outputs = sizes[0],
                    .inputs = sizes[1],
                    .taps = taps,
                    .mask = at<const std::uint8_t>(mask),
                    .masked = masked},
                   transposed, at<float>(packed), threads);
}

cpu::PadArguments source_of(const std::string& dtype, std::uintptr_t source, const std::array<std::int64_t, 4>& strides,
                            const std::array<std::int64_t, 4>& sizes) {
    cpu::PadArguments arguments{};
    arguments.element = element_of(dtype);
    arguments.source = at<const void>(source);
    std::copy(strides.begin(), strides.end(), arguments.source_strides);
    arguments.channels = sizes[1];
    arguments.height = sizes[2];
    arguments.width = sizes[3];
    return arguments;
}

void pad(const std::string& dtype, std::uintptr_t source, std::array<std::int64_t, 4> strides,
         std::array<std::int64_t, 4> sizes, std::array<std::int64_t, 2> corner, std::uintptr_t out,
         std::array<std::int64_t, 4> out_strides, std::array<std::int64_t, 2> out_sizes, int threads) {
    cpu::PadArguments arguments = source_of(dtype, source, strides, sizes);
    arguments.top = corner[0];
    arguments.left = corner[1];
    arguments.out = at<float>(out);
    std::copy(out_strides.begin(), out_strides.end(), arguments.out_strides);
    arguments.out_channels = sizes[1];
    arguments.out_height = out_sizes[0];
    arguments.out_width = out_sizes[1];
    cpu::pad(arguments, sizes[0], threads);
}

void pack_pixels(const std::string& dtype, std::uintptr_t source, std::array<std::int64_t, 4> strides,
                 std::array<std::int64_t, 4> sizes, std::uintptr_t packed, int threads) {
    cpu::pack_pixels(source_of(dtype, source, strides, sizes), sizes[0], at<float>(packed), threads);
}

void tap_sum(std::uintptr_t source, std::array<std::int64_t, 3> source_strides, std::uintptr_t packed,
             std::uintptr_t bias, const std::string& dtype, std::uintptr_t out, std::array<std::int64_t, 4> out_strides,
             std::array<std::int64_t, 4> sizes, const std::vector<std::pair<std::int64_t, std::int64_t>>& runs,
             int threads) {
    std::vector<cpu::TapRun> list;
    for (const auto& [offset, length] : runs) list.push_back({offset, length});
    cpu::tap_sum({.source = at<const float>(source),
                  .source_image = source_strides[0],
                  .source_row = source_strides[1],
                  .source_pixel = source_strides[2],
                  .packed = at<const float>(packed),
                  .bias = at<const float>(bias),
                  .element = element_of(dtype),
                  .out = at<void>(out),
                  .out_image = out_strides[0],
                  .out_row = out_strides[2],
                  .out_pixel = out_strides[3],
                  .out_channel = out_strides[1],
                  .images = sizes[0],
                  .height = sizes[2],
                  .width = sizes[3],
                  .columns = sizes[1],
                  .depth = 0,
                  .pieces = nullptr,
                  .piece_count = 0},
                 list, threads);
}

}  // namespace

void bind_conv(py::module_& module) {
    module.def("packed_elements", &cpu::packed_elements, py::arg("depth"), py::arg("columns"));
    module.def("pack_taps", &pack_taps, py::call_guard<py::gil_scoped_release>(), py::arg("weight"), py::arg("strides"),
               py::arg("sizes"), py::arg("taps"), py::arg("mask"), py::arg("masked"), py::arg("transposed"),
               py::arg("packed"), py::arg("threads"));
    module.def("tap_sum", &tap_sum, py::call_guard<py::gil_scoped_release>(), py::arg("source"),
               py::arg("source_strides"), py::arg("packed"), py::arg("bias"), py::arg("dtype"), py::arg("out"),
               py::arg("out_strides"), py::arg("sizes"), py::arg("runs"), py::arg("threads"));
    module.def("pad", &pad, py::call_guard<py::gil_scoped_release>(), py::arg("dtype"), py::arg("source"),
               py::arg("strides"), py::arg("sizes"), py::arg("corner"), py::arg("out"), py::arg("out_strides"),
               py::arg("out_sizes"), py::arg("threads"));
    module.def("pack_pixels", &pack_pixels, py::call_guard<py::gil_scoped_release>(), py::arg("dtype"),
               py::arg("source"), py::arg("strides"), py::arg("sizes"), py::arg("packed"), py::arg("threads"));
}

}  // namespace fastar
