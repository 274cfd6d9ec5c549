// The tap convolution (cpu/conv.h) as Python functions.
#pragma once

#include <pybind11/pybind11.h>

namespace fastar {

void bind_conv(pybind11::module_& module);

}  // namespace fastar
