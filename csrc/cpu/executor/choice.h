// A choice among levels: docs/step-programs.md, "Draws".
#pragma once

#include <cstdint>

namespace fastar::cpu {

// Colours of a mixture, and values of a position; the executor refuses programs of more.
constexpr std::int64_t kMaxChannels = 16;

struct ChoiceOptions {
    double temperature;
    std::int64_t top_k;  // 0: none
    double top_p;        // 0: none
    bool greedy;
    const std::uint8_t* allowed;  // per level, or null
};

// Divides logits [n] by the temperature, and makes those minus infinity that the options leave out. `order` holds n
// numbers of scratch.
void restrict_to(double* logits, std::int64_t n, const ChoiceOptions& options, std::int32_t* order);

// The smallest k whose cumulative softmax exceeds u; the last with probability where rounding leaves none; -1 where
// every logit is minus infinity. The logits are overwritten.
std::int64_t pick_from_logits(double* logits, std::int64_t n, double u);

}  // namespace fastar::cpu
