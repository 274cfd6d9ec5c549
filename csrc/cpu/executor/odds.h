// Binary models whose state enters through a sigmoid alone, NADE first of all: the state is kept as odds (isa/odds.cpp)
// and a loop of such steps runs many positions at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/executor/steps.h"

namespace fastar::cpu {

// code[at] accumulates, code[at + 1] reads out, code[at + 2] draws a bit, and they are a loop's whole body.
struct OddsLoop {
    std::size_t at;
    int variable;
    std::int64_t period;  // positions after which the odds are balanced
    int state;            // the buffer that they stand for
    int odds;             // and the two that hold them
    int powers;
};

// The loops of a program that can be run so, with buffers for their odds appended to it. The bounds on the weights that
// keep the odds within float's range are checked here: where weights are too large, or the state is used elsewhere, a
// loop runs step by step like any other.
std::vector<OddsLoop> keep_odds(Program& program);

// Odds and powers of a state, and back.
void odds_of(const float* state, std::int64_t width, float* odds, float* powers, std::int64_t padded);
void state_of(const float* odds, const float* powers, float* state, std::int64_t width);

struct OddsStep : Step {
    int variable = 0;
    std::int64_t width = 0;  // padded
    std::int64_t period = 0;
    const float* factors = nullptr;  // e^-(scale W), [rows, width]
    const float* weights = nullptr;  // of the readout, [rows, width]
    const float* bias = nullptr;
    std::int64_t first_factor = 0;  // the row where the variable is 0
    std::int64_t first_weight = 0;
    Place odds, powers, out;
    int readout_place = 0;
    std::unique_ptr<DrawStep> draw;
};

void run_odds(const Step& step, Frame& frame);

}  // namespace fastar::cpu
