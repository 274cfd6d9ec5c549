// Heads for Python.
#pragma once

#include <pybind11/pybind11.h>

namespace fastar {

void bind_heads(pybind11::module_& module);

}  // namespace fastar
