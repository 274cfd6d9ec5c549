// NADE over a whole batch: a_0 = c, a_{i+1} = a_i + W[:, i] x_i, out[b, i, k] = b[i, k] + V[i, k] . act(a_i), along any
// order of the positions i.
#pragma once

#include "cpu/kernel_table.h"

namespace fastar::cpu {

// Parameters of every position and, where asked for (K = 1), log p = sum over i of log Bernoulli(x_i; logit out[b, i]).
// Rows are shared out over threads; a row's result depends on no other row.
void nade_forward(const NadeForward& f, std::int64_t batch, int threads);

// Gradients of x, W, V and c from `grad`, that of out. Fills in `active` and `active_count` by itself. Hidden units are
// shared out over threads, so no two threads add to one sum, and the results do not depend on their number.
void nade_backward(NadeBackward b, int threads);

}  // namespace fastar::cpu
