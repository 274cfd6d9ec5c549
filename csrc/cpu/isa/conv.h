// Convolution over runs of taps, at one vector level; see cpu/conv.h.
#pragma once

#include "cpu/kernel_table.h"

namespace fastar::cpu::FASTAR_ISA {

void pad(const PadArguments& a, std::int64_t begin, std::int64_t end);

void tap_sum(const TapSumArguments& a, std::int64_t begin, std::int64_t end);

}  // namespace fastar::cpu::FASTAR_ISA
