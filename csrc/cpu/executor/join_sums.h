// Sums of several linears as fewer, wider products.
#pragma once

#include "cpu/executor/matrices.h"
#include "cpu/executor/program.h"

namespace fastar::cpu {

// y = W1 a, y = W2 b + y, .. become y = [W1 W2 ..] [a b ..], in place of the last of them, where nobody else sees the
// sums between and the sources are scratch that can lie side by side. A product of 64 inputs is over before its stream
// of weights is under way: at 64 -> 256 in bfloat16 four of them took 1.2 us and the one of 256 inputs 0.6. The last
// ones stay short: when the last source comes, little is left to do. Expects a buffer per write (rename_scratch).
// Returns whether anything was joined.
bool join_sums(Program& program, Precision precision);

}  // namespace fastar::cpu
