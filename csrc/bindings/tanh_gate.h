// The gate of a PixelCNN for Python.
#pragma once

#include <pybind11/pybind11.h>

namespace fastar {

void bind_tanh_gate(pybind11::module_& module);

}  // namespace fastar
