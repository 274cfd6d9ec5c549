// Softmax heads and cached attention at one vector level.
#include <algorithm>
#include <limits>

#include "cpu/isa/executor.h"
#include "cpu/isa/functions.h"

namespace fastar::cpu::FASTAR_ISA {

float largest(const float* a, std::int64_t n) {
    // The maximum instruction drops what is not a number, a sum of x - x keeps it. An infinity gives one as well, so
    // only then the numbers are looked at one by one.
    Lanes top = splat(-std::numeric_limits<float>::infinity());
    Lanes strange = splat(0.0f);
    for (std::int64_t i = 0; i < n; i += kLanes) {
        const std::int64_t count = n - i < kLanes ? n - i : kLanes;
        const Lanes x = load_first(a + i, count, a[0]);
        strange = strange + (x - x);
        top = at_least(x, top);
    }
    const float odd = sum(strange);
    if (odd == odd) return largest(top);
    float m = a[0];
    for (std::int64_t i = 0; i < n; ++i) {
        if (a[i] != a[i]) return a[i];
        if (a[i] > m) m = a[i];
    }
    return m;
}

void exponentials(const float* z, float shift, float* out, double* sums, std::int64_t n) {
    for (std::int64_t i = 0; i < n; i += kLanes) {
        const std::int64_t count = n - i < kLanes ? n - i : kLanes;
        const Lanes x = load_first(z + i, count, -std::numeric_limits<float>::infinity()) - splat(shift);
        // Below -87 the result leaves the range of normal numbers: 0, whatever the level does with denormal ones.
        const Lanes e = pick(x < splat(-87.0f), splat(0.0f), exp_unchecked(at_least(x, splat(-87.0f))));
        store_first(out + i, e, count);
        float each[kLanes];
        store(each, e);
        double total = 0.0;
        for (float one : each) total += one;
        sums[i / kLanes] = total;
    }
}

namespace {

// N keys at a time: the sums across lanes of several overlap.
template <int N>
void dots(const float* query, const float* keys, std::int64_t stride, std::int64_t n, float scale, float* out) {
    Lanes total[N];
    for (Lanes& one : total) one = splat(0.0f);
    for (std::int64_t i = 0; i < n; i += kLanes) {
        const std::int64_t count = n - i < kLanes ? n - i : kLanes;
        const Lanes q = load_first(query + i, count);
#pragma GCC unroll 4
        for (int k = 0; k < N; ++k) total[k] = fma(q, load_first(keys + k * stride + i, count), total[k]);
    }
#pragma GCC unroll 4
    for (int k = 0; k < N; ++k) out[k] = scale * sum(total[k]);
}

// The slots in their order, as stretches without a turn of the ring: body(first slot, first j, count).
template <typename Body>
void by_stretches(const AttentionArguments& a, Body body) {
    for (std::int64_t j = 0; j < a.seen.count; j += a.seen.span) {
        const std::int64_t begin = a.seen.at(j) % a.slots;
        const std::int64_t count = std::min(a.seen.span, a.seen.count - j);
        const std::int64_t straight = std::min(count, a.slots - begin);
        body(begin, j, straight);
        if (straight < count) body(std::int64_t{0}, j + straight, count - straight);
    }
}

}  // namespace

void attention(const AttentionArguments& a) {
    constexpr int kKeys = 4;
    by_stretches(a, [&](std::int64_t slot, std::int64_t first, std::int64_t count) {
        const float* keys = a.keys + slot * a.key_stride;
        std::int64_t j = 0;
        for (; j + kKeys <= count; j += kKeys) {
            dots<kKeys>(a.query, keys + j * a.key_stride, a.key_stride, a.key_width, a.scale, a.scores + first + j);
        }
        for (; j < count; ++j) {
            dots<1>(a.query, keys + j * a.key_stride, a.key_stride, a.key_width, a.scale, a.scores + first + j);
        }
    });
    const float top = largest(a.scores, a.seen.count);
    Lanes total = splat(0.0f);
    for (std::int64_t j = 0; j < a.seen.count; j += kLanes) {
        const std::int64_t count = a.seen.count - j < kLanes ? a.seen.count - j : kLanes;
        const Lanes z = load_first(a.scores + j, count, -std::numeric_limits<float>::infinity()) - splat(top);
        const Lanes e = pick(z < splat(-87.0f), splat(0.0f), exp_unchecked(at_least(z, splat(-87.0f))));
        store_first(a.scores + j, e, count);
        total = total + e;
    }
    const float share = 1.0f / sum(total);
    // Four registers of the output at a time stay out of memory while the slots go by, two slots side by side.
    for (std::int64_t i = 0; i < a.value_width; i += 4 * kLanes) {
        Lanes even[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
        Lanes odd[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
        const std::int64_t width = a.value_width - i < 4 * kLanes ? a.value_width - i : 4 * kLanes;
        by_stretches(a, [&](std::int64_t slot, std::int64_t first, std::int64_t count) {
            const float* v = a.values + slot * a.value_stride + i;
            const auto gather = [&](std::int64_t j, Lanes(&y)[4]) {
                const Lanes p = splat(a.scores[first + j]);
#pragma GCC unroll 4
                for (int k = 0; k < 4; ++k) {
                    if (width == 4 * kLanes) {
                        y[k] = fma(p, load(v + j * a.value_stride + k * kLanes), y[k]);
                    } else if (k * kLanes < width) {
                        y[k] = fma(p, load_first(v + j * a.value_stride + k * kLanes, width - k * kLanes), y[k]);
                    }
                }
            };
            std::int64_t j = 0;
            for (; j + 2 <= count; j += 2) {
                gather(j, even);
                gather(j + 1, odd);
            }
            if (j < count) gather(j, even);
        });
        for (int k = 0; k * kLanes < width; ++k) {
            store_first(a.out + i + k * kLanes, (even[k] + odd[k]) * splat(share), width - k * kLanes);
        }
    }
}

}  // namespace fastar::cpu::FASTAR_ISA
