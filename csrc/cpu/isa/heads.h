// Heads at one vector level. Work is counted in units, see heads_units; `scratch` holds heads_scratch floats.
#pragma once

#include "cpu/heads.h"

namespace fastar::cpu::FASTAR_ISA {

bool heads_forward(const HeadsForward& f, std::int64_t begin, std::int64_t end, float* scratch);

void heads_backward(const HeadsBackward& b, std::int64_t begin, std::int64_t end, float* scratch);

// Both for mixtures, where a unit is kHeadPositions positions.
bool mixtures_forward(const HeadsForward& f, std::int64_t begin, std::int64_t end, float* scratch);

void mixtures_backward(const HeadsBackward& b, std::int64_t begin, std::int64_t end, float* scratch);

}  // namespace fastar::cpu::FASTAR_ISA
