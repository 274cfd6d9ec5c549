// The law of a draw: docs/step-programs.md, "Draws".
#pragma once

#include <cstdint>
#include <optional>

namespace fastar {

// Colours of a mixture, and values of a position; the executors refuse programs of more.
constexpr std::int64_t kMaxChannels = 16;

enum class HeadKind { kBernoulli, kCategorical, kNormal, kGaussian, kLaplace, kLogistic, kGiven };

struct Head {
    HeadKind kind;
    std::int64_t levels = 0;  // 0: none
    std::int64_t components = 1;
    std::int64_t channels = 1;
    std::optional<double> low, high, min_log_scale;
    double branch = 0.0;
};

}  // namespace fastar
