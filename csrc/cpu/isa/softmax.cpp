// Softmax heads and cached attention at one vector level.
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

float dot(const float* a, const float* b, std::int64_t n) {
    Lanes total = splat(0.0f);
    for (std::int64_t i = 0; i < n; i += kLanes) {
        const std::int64_t count = n - i < kLanes ? n - i : kLanes;
        total = fma(load_first(a + i, count), load_first(b + i, count), total);
    }
    return sum(total);
}

}  // namespace

void attention(const AttentionArguments& a) {
    const auto slot = [&](std::int64_t j) { return (a.first_slot + j) % a.slots; };
    float top = -std::numeric_limits<float>::infinity();
    bool number = true;
    for (std::int64_t j = 0; j < a.count; ++j) {
        const float score = a.scale * dot(a.query, a.keys + slot(j) * a.key_stride, a.key_width);
        a.scores[j] = score;
        number = number && score == score;
        top = score > top ? score : top;
    }
    if (!number) top = std::numeric_limits<float>::quiet_NaN();
    Lanes total = splat(0.0f);
    for (std::int64_t j = 0; j < a.count; j += kLanes) {
        const std::int64_t count = a.count - j < kLanes ? a.count - j : kLanes;
        const Lanes z = load_first(a.scores + j, count, -std::numeric_limits<float>::infinity()) - splat(top);
        const Lanes e = pick(z < splat(-87.0f), splat(0.0f), exp_unchecked(at_least(z, splat(-87.0f))));
        store_first(a.scores + j, e, count);
        total = total + e;
    }
    const float share = 1.0f / sum(total);
    // Four registers of the output at a time stay out of memory while the slots go by.
    for (std::int64_t i = 0; i < a.value_width; i += 4 * kLanes) {
        Lanes y[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
        const std::int64_t width = a.value_width - i < 4 * kLanes ? a.value_width - i : 4 * kLanes;
        for (std::int64_t j = 0; j < a.count; ++j) {
            const Lanes p = splat(a.scores[j]);
            const float* v = a.values + slot(j) * a.value_stride + i;
            if (width == 4 * kLanes) {
                for (int k = 0; k < 4; ++k) y[k] = fma(p, load(v + k * kLanes), y[k]);
            } else {
                for (int k = 0; k * kLanes < width; ++k) {
                    y[k] = fma(p, load_first(v + k * kLanes, width - k * kLanes), y[k]);
                }
            }
        }
        for (int k = 0; k * kLanes < width; ++k) {
            store_first(a.out + i + k * kLanes, y[k] * splat(share), width - k * kLanes);
        }
    }
}

}  // namespace fastar::cpu::FASTAR_ISA
