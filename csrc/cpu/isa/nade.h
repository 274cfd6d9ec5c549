// NADE at one vector level: rows of the batch forward, slices of the hidden units backward.
#pragma once

#include "cpu/kernel_table.h"

namespace fastar::cpu::FASTAR_ISA {

bool nade_forward(const NadeForward& f, std::int64_t begin, std::int64_t end, float* scratch);

void nade_logit_gradient(const float* logits, const float* x, float scale, float* out, std::int64_t count);

void nade_backward(const NadeBackward& b, std::int64_t begin, std::int64_t end, float* scratch);

}  // namespace fastar::cpu::FASTAR_ISA
