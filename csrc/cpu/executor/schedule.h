// Which thread runs which step of a block, and in which order.
#pragma once

#include <cstddef>
#include <vector>

#include "cpu/executor/plan.h"

namespace fastar::cpu {

// What the machine is taken to do; the figures decide between schedules only, never what is computed.
struct CostModel {
    double ns_per_byte;  // of weights, for one thread, from where all of them together fit
    double ns_per_tile;  // until its stream is under way
    double ns_per_product = 0.012;
    double ns_per_function = 0.12;  // of one element
    double ns_per_step = 30.0;
    double ns_per_row = 12.0;  // of a step: what does not shrink where its outputs are shared out
    double ns_to_hear;         // until a thread sees what another has written
    // Of a second level that could hold all: a thread's weights beyond `bytes` push out the others before they are read
    // again.
    struct Overflow {
        double bytes = 0.0;
        double ns_per_byte = 0.0;
    } overflow;

    // `weight_bytes`: of the whole plan. What several threads share is level 3 and memory.
    CostModel(double weight_bytes, int threads, double ns_to_hear);

    double step(const Step& step, double share, double rows) const;
};

// Gives the block's steps to threads, so that the last ends as early as the model can tell; returns when. `before[i]`
// are the earlier steps that step i waits for.
double schedule(Block& block, const std::vector<std::vector<std::size_t>>& before, int threads, std::int64_t rows,
                const CostModel& model);

}  // namespace fastar::cpu
