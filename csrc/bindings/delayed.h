// What fastar._core offers of delayed sums, cpu/delayed.h.
#pragma once

#include <pybind11/pybind11.h>

namespace fastar {

void bind_delayed(pybind11::module_& module);

}  // namespace fastar
