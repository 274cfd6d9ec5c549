// A choice among levels: docs/step-programs.md, "Draws".
#pragma once

#include <cstdint>

namespace fastar::cpu {

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

}  // namespace fastar::cpu
