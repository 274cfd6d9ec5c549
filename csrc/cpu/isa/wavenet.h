// WaveNet blocks at one vector level.
#pragma once

#include "cpu/wavenet.h"

namespace fastar::cpu::FASTAR_ISA {

WavenetExtent wavenet_extent(const WavenetGates& gates, bool backward);
void pack_wavenet(const WavenetGates& gates, bool backward, std::int64_t begin, std::int64_t end, void* packed);
void wavenet_forward(const WavenetForward& block, const void* packed, std::int64_t begin, std::int64_t end);
void wavenet_backward(const WavenetBackward& block, const void* packed, std::int64_t begin, std::int64_t end);

}  // namespace fastar::cpu::FASTAR_ISA
