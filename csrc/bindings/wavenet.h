// Python's view of csrc/cpu/wavenet.h.
#pragma once

#include <pybind11/pybind11.h>

namespace fastar {

void bind_wavenet(pybind11::module_& module);

}  // namespace fastar
