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
           std::uintptr_t out, int threads) {
            cpu::tanh_gate({.element = element_of(dtype),
                            .rows = rows,
                            .length = length,
                            .z = at<const void>(z),
                            .grad = at<const void>(grad),
                            .out = at<void>(out)},
                           threads);
        },
        py::call_guard<py::gil_scoped_release>(), py::arg("dtype"), py::arg("rows"), py::arg("length"), py::arg("z"),
        py::arg("grad"), py::arg("out"), py::arg("threads"));
}

}  // namespace fastar
