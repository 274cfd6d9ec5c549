// Step programs for the kernels of csrc/cuda.
#pragma once

#include <pybind11/pybind11.h>

namespace fastar {

void bind_cuda_program(pybind11::module_& module);

}  // namespace fastar
