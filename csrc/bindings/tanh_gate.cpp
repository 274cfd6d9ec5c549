#include "bindings/tanh_gate.h"

#include <cstdint>
#include <string>

#include "bindings/address.h"
#include "bindings/element.h"
#include "cpu/tanh_gate.h"

namespace py = pybind11;

namespace fastar {

void bind_tanh_gate(py::module_& module) {
    module.def(
        "tanh_gate",
        [](const std::string& dtype, std::int64_t rows, std::int64_t length, std::uintptr_t z, std::uintptr_t grad,
           std::uintptr_t out, int threads, std::uintptr_t above, std::uintptr_t grad_above, bool rows_are_pixels,
           std::int64_t line, std::int64_t plane) {
            cpu::tanh_gate({.element = element_of(dtype),
                            .rows = rows,
                            .length = length,
                            .z = at<const void>(z),
                            .grad = at<const void>(grad),
                            .out = at<void>(out),
                            .above = at<const void>(above),
                            .grad_above = at<void>(grad_above),
                            .rows_are_pixels = rows_are_pixels,
                            .line = line,
                            .plane = plane},
                           threads);
        },
        py::call_guard<py::gil_scoped_release>(), py::arg("dtype"), py::arg("rows"), py::arg("length"), py::arg("z"),
        py::arg("grad"), py::arg("out"), py::arg("threads"), py::arg("above") = 0, py::arg("grad_above") = 0,
        py::arg("rows_are_pixels") = false, py::arg("line") = 0, py::arg("plane") = 0);
}

}  // namespace fastar
