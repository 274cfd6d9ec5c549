// The Python module fastar._core. Tensors cross this border as addresses, sizes and strides: no torch header is
// included, so one build serves every version of torch. The callers in fastar/ops hold the tensors alive during the
// call.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "bindings/address.h"
#include "bindings/conv.h"
#include "bindings/cuda_library.h"
#include "bindings/cuda_program.h"
#include "bindings/delayed.h"
#include "bindings/executor.h"
#include "bindings/heads.h"
#include "bindings/lstm_scan.h"
#include "bindings/nade.h"
#include "bindings/tanh_gate.h"
#include "bindings/wavenet.h"
#include "common/memory.h"
#include "cpu/dispatch.h"
#include "cpu/fingerprint.h"
#include "cpu/gather.h"

namespace py = pybind11;

namespace {

template <typename Run>
void by_element_size(int bytes, Run run) {
    if (bytes == 2) {
        run(std::uint16_t{});
    } else if (bytes == 4) {
        run(std::uint32_t{});
    } else {
        throw std::invalid_argument("element_size: expected 2 or 4, got " + std::to_string(bytes));
    }
}

void gather(int element_size, std::uintptr_t source, std::int64_t source_stride, std::uintptr_t row_index,
            std::uintptr_t column_index, std::uintptr_t limit, bool limit_counts_source_columns, std::uintptr_t out,
            std::int64_t out_stride, std::int64_t rows, std::int64_t columns, int threads) {
    by_element_size(element_size, [&](auto element) {
        using T = decltype(element);
        fastar::cpu::gather<T>({.source = fastar::at<const T>(source),
                                .source_stride = source_stride,
                                .row_index = fastar::at<const std::int32_t>(row_index),
                                .column_index = fastar::at<const std::int32_t>(column_index),
                                .limit = fastar::at<const std::int32_t>(limit),
                                .limit_counts_source_columns = limit_counts_source_columns,
                                .out = fastar::at<T>(out),
                                .out_stride = out_stride,
                                .columns = columns},
                               rows, threads);
    });
}

void masked_copy(int element_size, std::uintptr_t source, std::int64_t source_stride, std::uintptr_t mask,
                 std::int64_t mask_stride, std::uintptr_t out, std::int64_t out_stride, std::int64_t rows,
                 std::int64_t columns, int threads) {
    by_element_size(element_size, [&](auto element) {
        using T = decltype(element);
        fastar::cpu::masked_copy<T>({.source = fastar::at<const T>(source),
                                     .source_stride = source_stride,
                                     .mask = fastar::at<const std::uint8_t>(mask),
                                     .mask_stride = mask_stride,
                                     .out = fastar::at<T>(out),
                                     .out_stride = out_stride,
                                     .columns = columns},
                                    rows, threads);
    });
}

}  // namespace

PYBIND11_MODULE(_core, module) {
    if (const std::string missing = fastar::cpu::missing_extensions(); !missing.empty()) {
        throw py::import_error("this build of fastar._core needs " + missing +
                               ", which this CPU lacks; build it again on this machine, without -march flags");
    }
    const auto release = py::call_guard<py::gil_scoped_release>();
    module.doc() = "Native part of fastar. Arguments are checked by the Python functions that call it.";
    module.def("cpu_vendor", &fastar::cpu::vendor, "Who made this CPU: intel, amd or other.");
    module.def("levels_built", &fastar::cpu::levels_built, "Vector levels compiled in, lowest first.");
    module.def("levels_usable", &fastar::cpu::levels_usable, "Those that this CPU can run, lowest first.");
    module.def("level", &fastar::cpu::level, "The vector level in use.");
    module.def("select_level", &fastar::cpu::select_level, py::arg("name"), "Use another usable level (for tests).");
    module.def(
        "fingerprint",
        [](std::uintptr_t data, std::size_t bytes, int threads) {
            return fastar::cpu::fingerprint(fastar::at<const void>(data), bytes, threads);
        },
        py::arg("data"), py::arg("bytes"), py::arg("threads"), release);
    module.def(
        "prefer_huge_pages",
        [](std::uintptr_t data, std::size_t bytes) { fastar::prefer_huge_pages(fastar::at<void>(data), bytes); },
        py::arg("data"), py::arg("bytes"));
    module.def("gather", &gather, release, py::arg("element_size"), py::arg("source"), py::arg("source_stride"),
               py::arg("row_index"), py::arg("column_index"), py::arg("limit"), py::arg("limit_counts_source_columns"),
               py::arg("out"), py::arg("out_stride"), py::arg("rows"), py::arg("columns"), py::arg("threads"));
    module.def("masked_copy", &masked_copy, release, py::arg("element_size"), py::arg("source"),
               py::arg("source_stride"), py::arg("mask"), py::arg("mask_stride"), py::arg("out"), py::arg("out_stride"),
               py::arg("rows"), py::arg("columns"), py::arg("threads"));
    fastar::bind_conv(module);
    fastar::bind_delayed(module);
    fastar::bind_cuda_library(module);
    fastar::bind_cuda_program(module);
    fastar::bind_executor(module);
    fastar::bind_heads(module);
    fastar::bind_lstm_scan(module);
    fastar::bind_nade(module);
    fastar::bind_tanh_gate(module);
    fastar::bind_wavenet(module);
}
