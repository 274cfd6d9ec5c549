// A step program out of the data classes of fastar.sampling.
#pragma once

#include <pybind11/pybind11.h>

#include "cpu/executor/program.h"

namespace fastar {

// `weights` maps a name to (address, shape, whether it holds int32 rather than float32). The result borrows them.
cpu::Program read_program(const pybind11::object& program, const pybind11::dict& weights);

}  // namespace fastar
