// fastar._core.Plan and fastar._core.Run: the cpu executor.
#pragma once

#include <pybind11/pybind11.h>

namespace fastar {

void bind_executor(pybind11::module_& module);

}  // namespace fastar
