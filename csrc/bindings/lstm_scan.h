// The LSTM over images for Python.
#pragma once

#include <pybind11/pybind11.h>

namespace fastar {

void bind_lstm_scan(pybind11::module_& module);

}  // namespace fastar
