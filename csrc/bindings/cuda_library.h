#pragma once

#include <pybind11/pybind11.h>

namespace fastar {

void bind_cuda_library(pybind11::module_& module);

}  // namespace fastar
