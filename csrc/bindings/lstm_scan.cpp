#include "bindings/lstm_scan.h"

#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "bindings/address.h"
#include "cpu/lstm_scan.h"

namespace py = pybind11;

namespace fastar {
namespace {

cpu::ScanAlong along_of(const std::string& name) {
    if (name == "rows") return cpu::ScanAlong::kRows;
    if (name == "diagonals") return cpu::ScanAlong::kDiagonals;
    if (name == "antidiagonals") return cpu::ScanAlong::kAntidiagonals;
    throw std::invalid_argument("along: expected rows, diagonals or antidiagonals, got '" + name + "'");
}

}  // namespace

void bind_lstm_scan(py::module_& module) {
    using Address = std::uintptr_t;
    py::class_<cpu::LstmScan>(module, "LstmScan")
        .def(py::init([](const std::string& along, const std::array<std::int64_t, 3>& image,
                         const std::array<std::int64_t, 2>& kernel, Address weight) {
                 return cpu::LstmScan{.along = along_of(along),
                                      .batch = image[0],
                                      .rows = image[1],
                                      .columns = image[2],
                                      .hidden = kernel[0],
                                      .taps = kernel[1],
                                      .weight = at<const float>(weight)};
             }),
             py::arg("along"), py::arg("image"), py::arg("kernel"), py::arg("weight"));
    module.def(
        "lstm_forward",
        [](const cpu::LstmScan& scan, Address x, Address h0, Address c0, Address h, Address gates, Address cells,
           Address last_cell, int threads) {
            cpu::lstm_forward(scan,
                              {.x = at<const float>(x),
                               .h0 = at<const float>(h0),
                               .c0 = at<const float>(c0),
                               .h = at<float>(h),
                               .gates = at<float>(gates),
                               .cells = at<float>(cells),
                               .last_cell = at<float>(last_cell)},
                              threads);
        },
        py::call_guard<py::gil_scoped_release>(), py::arg("scan"), py::arg("x"), py::arg("h0"), py::arg("c0"),
        py::arg("h"), py::arg("gates"), py::arg("cells"), py::arg("last_cell"), py::arg("threads"));
    module.def(
        "lstm_backward",
        [](const cpu::LstmScan& scan, Address grad, Address grad_last_cell, Address gates, Address cells, Address c0,
           Address grad_x, Address grad_h0, Address grad_c0, int threads) {
            cpu::lstm_backward(scan,
                               {.grad = at<const float>(grad),
                                .grad_last_cell = at<const float>(grad_last_cell),
                                .gates = at<const float>(gates),
                                .cells = at<const float>(cells),
                                .c0 = at<const float>(c0),
                                .grad_x = at<float>(grad_x),
                                .grad_h0 = at<float>(grad_h0),
                                .grad_c0 = at<float>(grad_c0)},
                               threads);
        },
        py::call_guard<py::gil_scoped_release>(), py::arg("scan"), py::arg("grad"), py::arg("grad_last_cell"),
        py::arg("gates"), py::arg("cells"), py::arg("c0"), py::arg("grad_x"), py::arg("grad_h0"), py::arg("grad_c0"),
        py::arg("threads"));
}

}  // namespace fastar
