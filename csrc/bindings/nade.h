// NADE for Python.
#pragma once

#include <pybind11/pybind11.h>

namespace fastar {

void bind_nade(pybind11::module_& module);

}  // namespace fastar
