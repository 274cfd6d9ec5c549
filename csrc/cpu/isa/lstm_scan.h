// The gates of an LSTM's step at one vector level.
#pragma once

#include "cpu/kernel_table.h"

namespace fastar::cpu::FASTAR_ISA {

void lstm_gates(const LstmGates& a);

void lstm_gates_backward(const LstmGatesBackward& a);

}  // namespace fastar::cpu::FASTAR_ISA
