// A choice among levels by a warp or a block: docs/step-programs.md, "Draws".
//
// Every sum over levels is taken in stretches of fixed bounds, so it does not hang on how many threads there are. Top-k
// and top-p keep a beginning of the ranking by logit; where it ends is found bit by bit, by counting or weighing the
// levels above a bar, without sorting.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/elements.cuh"
#include "cuda/run.h"
#include "cuda/vocabulary.cuh"

namespace fastar::cuda {

// The threads that choose for a row.
struct Chooser {
    int rank;
    int size;
    int segments;
    double* sums;  // [segments]

    FASTAR_DEVICE void meet() const {
        if (segments == kWarpSegments) {
            warp_barrier();
        } else {
            barrier();
        }
    }
    FASTAR_DEVICE int lane() const { return rank % kLanes; }
};

// Sums of stretches of levels, as each lane of a warp sees them.
struct Sums {
    double before;  // this lane's stretches
    double own;
    double total;
};

// Numbers in the order of floats; equal ones are equal.
FASTAR_DEVICE std::uint32_t key_of(float z) {
    union {
        float number;
        std::uint32_t bits;
    } word{z + 0.0f};
    return word.bits >> 31 != 0 ? ~word.bits : word.bits | 0x80000000u;
}

// Sums f(k) over the levels: each segment in order, the segments of a lane in order, the lanes by a scan.
template <typename F>
FASTAR_DEVICE Sums sum_levels(const Chooser& crew, int levels, F f) {
    const int width = (levels + crew.segments - 1) / crew.segments;
    crew.meet();
    for (int s = crew.rank; s < crew.segments; s += crew.size) {
        double sum = 0.0;
        const int end = (s + 1) * width < levels ? (s + 1) * width : levels;
        for (int k = s * width; k < end; ++k) sum += f(k);
        crew.sums[s] = sum;
    }
    crew.meet();
    const int share = crew.segments / kLanes;
    double own = 0.0;
    for (int i = 0; i < share; ++i) own += crew.sums[crew.lane() * share + i];
    double up_to = own;
    for (int distance = 1; distance < kLanes; distance *= 2) {
        const double other = shuffle_up(up_to, distance);
        if (crew.lane() >= distance) up_to += other;
    }
    const double before = shuffle_up(up_to, 1);
    return {crew.lane() == 0 ? 0.0 : before, own, shuffle(up_to, kLanes - 1)};
}

// The smallest level at which the running sum exceeds the bar, f and its sums being those of `sum_levels`; where
// rounding hides it the last level with f > 0, -1 where there is none.
template <typename F>
FASTAR_DEVICE int find_level(const Chooser& crew, int levels, const Sums& sums, double bar, F f) {
    const int width = (levels + crew.segments - 1) / crew.segments;
    const int share = crew.segments / kLanes;
    const unsigned beyond = ballot(sums.before + sums.own > bar);
    int k = levels - 1;
    if (beyond != 0) {
        int lane = 0;
        while ((beyond >> lane & 1u) == 0) ++lane;
        double sum = shuffle(sums.before, lane);
        int segment = lane * share;
        const int last = segment + share - 1;
        while (segment < last && sum + crew.sums[segment] <= bar) sum += crew.sums[segment++];
        const int end = (segment + 1) * width < levels ? (segment + 1) * width : levels;
        for (k = segment * width; k < end; ++k) {
            sum += f(k);
            if (sum > bar) return k;
        }
        k = end - 1;
    }
    while (k >= 0 && !(f(k) > 0.0)) --k;
    return k;
}

// The largest of z(k), NaN where any is.
template <typename Z>
FASTAR_DEVICE float largest_level(const Chooser& crew, int levels, Z z) {
    float top = -INFINITY;
    bool wrong = false;
    crew.meet();
    for (int k = crew.rank; k < levels; k += crew.size) {
        const float one = z(k);
        wrong = wrong || one != one;
        top = one > top ? one : top;
    }
    // A thread's slot holds its warp's largest.
    top = warp_max(top);
    wrong = ballot(wrong) != 0;
    if (crew.lane() == 0) crew.sums[crew.rank / kLanes] = wrong ? NAN : top;
    crew.meet();
    top = -INFINITY;
    for (int w = 0; w < crew.size / kLanes; ++w) {
        const auto one = static_cast<float>(crew.sums[w]);
        if (one != one) return NAN;
        top = one > top ? one : top;
    }
    return top;
}

struct ChoiceOptions {
    double temperature;
    std::int64_t top_k;  // 0: none
    double top_p;        // 0: none
    const std::uint8_t* allowed;
};

// The beginning of the ranking that is left: levels above a key, and of those with it the first ones.
struct Kept {
    const float* z;
    const std::uint8_t* allowed;
    std::uint32_t key = 0;
    int last = 0x7fffffff;

    FASTAR_DEVICE bool operator()(int k) const {
        if (allowed != nullptr && allowed[k] == 0) return false;
        const std::uint32_t own = key_of(z[k]);
        return own > key || (own == key && k <= last);
    }
};

// Cuts `kept` to its shortest beginning with a weight of at least `needed`.
template <typename W>
FASTAR_DEVICE void cut(const Chooser& crew, int levels, Kept& kept, W weight, double needed) {
    std::uint32_t key = 0;
    for (int bit = 31; bit >= 0; --bit) {
        const std::uint32_t bar = key | 1u << bit;
        const Sums above =
            sum_levels(crew, levels, [&](int k) { return kept(k) && key_of(kept.z[k]) >= bar ? weight(k) : 0.0; });
        if (above.total >= needed) key = bar;
    }
    const Sums beyond =
        sum_levels(crew, levels, [&](int k) { return kept(k) && key_of(kept.z[k]) > key ? weight(k) : 0.0; });
    // Of equals the lower indices: the first of them whose weights fill what is missing.
    const auto equal = [&](int k) { return kept(k) && key_of(kept.z[k]) == key ? weight(k) : 0.0; };
    const Sums equals = sum_levels(crew, levels, equal);
    const double missing = needed - beyond.total;
    // The running sum has to reach, not to pass: half of the least weight before it.
    const int last = find_level(crew, levels, equals, missing * (1.0 - 1e-12), equal);
    kept.key = key;
    kept.last = last;
}

struct Choice {
    FailureKind failure;
    int level;
    double log_prob;
};

// Of logits z [levels]; `known` is the level where it is given, else -1.
FASTAR_DEVICE_CALL Choice choose(const Chooser& crew, const float* z, int levels, const ChoiceOptions& options,
                                 double u, int known, bool greedy) {
    const float top = largest_level(crew, levels, [&](int k) { return z[k]; });
    if (top != top) return {FailureKind::kNotANumber, 0, 0.0};
    if (top == -INFINITY) return {FailureKind::kNoSupport, 0, 0.0};
    const auto plain = [&](int k) { return static_cast<double>(expf(z[k] - top)); };
    const Sums all = sum_levels(crew, levels, plain);
    int level = known;
    const bool whole = options.allowed == nullptr && options.top_k == 0 && options.top_p == 0.0 && !greedy;
    if (known < 0 && whole && options.temperature == 1.0) {
        level = find_level(crew, levels, all, u * all.total, plain);
    } else if (known < 0) {
        Kept kept{z, options.allowed};
        const auto allowed = [&](int k) { return kept.allowed == nullptr || kept.allowed[k] != 0 ? z[k] : -INFINITY; };
        const float highest = largest_level(crew, levels, allowed);
        if (highest == -INFINITY) return {FailureKind::kNoSupport, 0, 0.0};
        const auto weight = [&](int k) {
            return static_cast<double>(expf(
                static_cast<float>((static_cast<double>(z[k]) - static_cast<double>(highest)) / options.temperature)));
        };
        const auto count = [](int) { return 1.0; };
        if (greedy) {
            cut(crew, levels, kept, count, 1.0);
        } else {
            if (options.top_k > 0 && options.top_k < levels) {
                const Sums there = sum_levels(crew, levels, [&](int k) { return kept(k) ? 1.0 : 0.0; });
                const auto wanted = static_cast<double>(options.top_k);
                if (wanted < there.total) cut(crew, levels, kept, count, wanted);
            }
            if (options.top_p > 0.0) {
                const Sums there = sum_levels(crew, levels, [&](int k) { return kept(k) ? weight(k) : 0.0; });
                cut(crew, levels, kept, weight, options.top_p * there.total);
            }
        }
        const auto left = [&](int k) { return kept(k) ? weight(k) : 0.0; };
        const Sums sums = sum_levels(crew, levels, left);
        level = find_level(crew, levels, sums, u * sums.total, left);
    }
    if (level < 0) return {FailureKind::kNoSupport, 0, 0.0};
    return {FailureKind::kNone, level, static_cast<double>(z[level]) - static_cast<double>(top) - log(all.total)};
}

}  // namespace fastar::cuda
