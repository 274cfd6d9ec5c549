#include "cpu/executor/choice.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace fastar::cpu {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

// Drops all but the likeliest levels. Ranks are by logit, equal ones by index. Only as much of the order is sorted as
// the options need.
void truncate(double* z, std::int64_t n, const ChoiceOptions& options, std::int32_t* order) {
    const auto before = [z](std::int32_t a, std::int32_t b) { return z[a] > z[b] || (z[a] == z[b] && a < b); };
    std::iota(order, order + n, 0);
    std::int64_t kept = n;
    if (options.top_k > 0 && options.top_k < n) {
        kept = options.top_k;
        std::nth_element(order, order + kept - 1, order + n, before);
    }
    if (options.top_p > 0) {
        const double top = *std::max_element(z, z + n);
        double total = 0;
        for (std::int64_t i = 0; i < kept; ++i) total += std::exp(z[order[i]] - top);
        double mass = 0;
        std::int64_t sorted = 0;
        std::int64_t i = 0;
        for (; i < kept && mass < options.top_p * total; ++i) {
            if (i == sorted) {
                const std::int64_t more = std::min(kept, std::max<std::int64_t>(64, 4 * sorted));
                std::partial_sort(order + sorted, order + more, order + kept, before);
                sorted = more;
            }
            mass += std::exp(z[order[i]] - top);
        }
        kept = i;
    }
    for (std::int64_t i = kept; i < n; ++i) z[order[i]] = kNever;
}

}  // namespace

void restrict_to(double* z, std::int64_t n, const ChoiceOptions& options, std::int32_t* order) {
    if (options.allowed) {
        for (std::int64_t k = 0; k < n; ++k) {
            if (!options.allowed[k]) z[k] = kNever;
        }
    }
    for (std::int64_t k = 0; k < n; ++k) z[k] /= options.temperature;
    // Greedy is the likeliest alone; like any other, it ranks before its equals of higher index.
    if (options.greedy) {
        truncate(z, n, {.temperature = 1, .top_k = 1, .top_p = 0, .greedy = false, .allowed = nullptr}, order);
    } else if (options.top_k > 0 || options.top_p > 0) {
        truncate(z, n, options, order);
    }
}

}  // namespace fastar::cpu
