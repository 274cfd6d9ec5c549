// The gate of a PixelCNN at one vector level.
#pragma once

#include "cpu/tanh_gate.h"

namespace fastar::cpu::FASTAR_ISA {

void tanh_gate(const TanhGate& gate, std::int64_t begin, std::int64_t end);

}  // namespace fastar::cpu::FASTAR_ISA
