// Bernoulli and categorical heads.
#include "cpu/isa/heads.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/isa/elements.h"
#include "cpu/isa/vector_math.h"

namespace fastar::cpu::FASTAR_ISA {
namespace {

constexpr std::int64_t kChunk = 4 * kHeadPositions;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

bool any(Ints mask) {
    std::int32_t folded = 0;
    for (int i = 0; i < kLanes; ++i) folded |= mask[i];
    return folded != 0;
}

// Calls body(from, count) over pieces of [begin, end).
template <typename Body>
void in_chunks(std::int64_t begin, std::int64_t end, Body body) {
    for (std::int64_t from = begin; from < end; from += kChunk) body(from, std::min(kChunk, end - from));
}

// log p of x under the logit l; `bad` gathers lanes where x is outside [0, 1].
Floats bernoulli(Floats l, Floats x, Ints& bad) {
    const Floats zero = splat(0.0f);
    bad |= ~((x >= zero) & (x <= splat(1.0f)));
    // Near certainty x l and max(l, 0) cancel exactly, and what is left keeps its digits.
    return fma(x, l, zero - max(zero, l)) - log1p(exp(zero - abs(l)));
}

bool bernoulli_sums(const HeadsForward& f, std::int64_t begin, std::int64_t end, float* scratch) {
    const Heads& h = f.heads;
    Ints bad{};
    for (std::int64_t row = begin; row < end; ++row) {
        Floats total = splat(0.0f);
        float last[kLanes] = {};
        in_chunks(0, h.size, [&](std::int64_t from, std::int64_t count) {
            const float* l = widen(h.type, h.params.data, row * h.params.stride_outer + from, count, scratch);
            const float* x = widen(h.x_type, h.x, row * h.size + from, count, scratch + kChunk);
            std::int64_t j = 0;
            for (; j + kLanes <= count; j += kLanes) total = total + bernoulli(load(l + j), load(x + j), bad);
            if (j < count) {
                store_first(last, bernoulli(load_first(l + j, count - j), load_first(x + j, count - j), bad),
                            count - j);
            }
        });
        f.log_prob[row] = sum(total + load(last));
    }
    return !any(bad);
}

// Positions [from, to) of elementwise Bernoullis, where `unit` counts kHeadPositions of them.
template <typename Body>
void bernoulli_elements(const Heads& h, std::int64_t begin, std::int64_t end, Body body) {
    in_chunks(begin * kHeadPositions, std::min(end * kHeadPositions, h.outer * h.inner), body);
}

bool bernoulli_each(const HeadsForward& f, std::int64_t begin, std::int64_t end, float* scratch) {
    const Heads& h = f.heads;
    Ints bad{};
    bernoulli_elements(h, begin, end, [&](std::int64_t from, std::int64_t count) {
        const float* l = widen(h.type, h.params.data, from, count, scratch);
        const float* x = widen(h.x_type, h.x, from, count, scratch + kChunk);
        for (std::int64_t j = 0; j < count; j += kLanes) {
            const Floats value = bernoulli(load_upto(l + j, count - j), load_upto(x + j, count - j), bad);
            store_upto(f.log_prob + from + j, value, count - j);
        }
    });
    return !any(bad);
}

// g (x - sigmoid(l)) for `count` elements from element `from` of x on.
template <typename Grad>
void bernoulli_gradient(const HeadsBackward& b, std::int64_t at, std::int64_t out_at, std::int64_t from,
                        std::int64_t count, float* scratch, Grad grad) {
    const Heads& h = b.heads;
    const float* l = widen(h.type, h.params.data, at, count, scratch);
    const float* x = widen(h.x_type, h.x, from, count, scratch + kChunk);
    float* const out = staging(h.type, b.grad_params.data, out_at, scratch + 2 * kChunk);
    for (std::int64_t j = 0; j < count; j += kLanes) {
        const Floats p = sigmoid(load_upto(l + j, count - j));
        store_upto(out + j, grad(j, count - j) * (load_upto(x + j, count - j) - p), count - j);
    }
    commit(h.type, out, b.grad_params.data, out_at, count);
}

void bernoulli_backward(const HeadsBackward& b, std::int64_t begin, std::int64_t end, float* scratch) {
    const Heads& h = b.heads;
    if (h.inner != 1) {
        bernoulli_elements(h, begin, end, [&](std::int64_t from, std::int64_t count) {
            bernoulli_gradient(b, from, from, from, count, scratch,
                               [&](std::int64_t j, std::int64_t left) { return load_upto(b.grad + from + j, left); });
        });
        return;
    }
    for (std::int64_t row = begin; row < end; ++row) {
        in_chunks(0, h.size, [&](std::int64_t from, std::int64_t count) {
            bernoulli_gradient(b, row * h.params.stride_outer + from, row * b.grad_params.stride_outer + from,
                               row * h.size + from, count, scratch,
                               [&](std::int64_t, std::int64_t) { return splat(b.grad[row]); });
        });
    }
}

// Several vectors a step, each with a sum of its own, hide the latency of max and of exp.
constexpr int kAbreast = 4;

float maximum(const float* l, std::int64_t count) {
    Floats top[kAbreast];
    std::fill_n(top, kAbreast, splat(-kInfinity));
    std::int64_t j = 0;
    for (; j + kAbreast * kLanes <= count; j += kAbreast * kLanes) {
        for (int i = 0; i < kAbreast; ++i) top[i] = max(top[i], load(l + j + i * kLanes));
    }
    for (; j + kLanes <= count; j += kLanes) top[0] = max(top[0], load(l + j));
    const Floats folded = max(max(top[0], top[1]), max(top[2], top[3]));
    float result = -kInfinity;
    for (int i = 0; i < kLanes; ++i) result = std::max(result, folded[i]);
    for (; j < count; ++j) result = std::max(result, l[j]);
    return result;
}

// The sum of e[j] = exp(l[j] - top), which are stored if asked for; e may be l.
template <bool kStore>
float exponentials(const float* l, float top, std::int64_t count, float* e) {
    const Floats shift = splat(top);
    Floats total[kAbreast];
    std::fill_n(total, kAbreast, splat(0.0f));
    std::int64_t j = 0;
    const auto step = [&](std::int64_t at, Floats& sum) {
        const Floats value = exp(load(l + at) - shift);
        if constexpr (kStore) store(e + at, value);
        sum = sum + value;
    };
    for (; j + kAbreast * kLanes <= count; j += kAbreast * kLanes) {
        for (int i = 0; i < kAbreast; ++i) step(j + i * kLanes, total[i]);
    }
    for (; j + kLanes <= count; j += kLanes) step(j, total[0]);
    float last[kLanes] = {};
    if (j < count) {
        store_first(last, exp(load_first(l + j, count - j) - shift), count - j);
        if constexpr (kStore) std::copy_n(last, count - j, e + j);
    }
    return sum((total[0] + total[1]) + (total[2] + total[3]) + load(last));
}

bool is_level(const Heads& h, std::int64_t level) {
    return level >= 0 && level < h.size;
}

// One position at a time, its levels side by side.
bool categorical_rows(const HeadsForward& f, std::int64_t begin, std::int64_t end, float* scratch) {
    const Heads& h = f.heads;
    const auto* x = static_cast<const std::int64_t*>(h.x);
    bool valid = true;
    for (std::int64_t n = begin; n < end; ++n) {
        if (!is_level(h, x[n])) {
            f.log_prob[n] = kNan;
            valid = false;
            continue;
        }
        const std::int64_t at = n / h.inner * h.params.stride_outer + n % h.inner * h.params.stride_inner;
        const float* l = widen(h.type, h.params.data, at, h.size, scratch);
        const float top = maximum(l, h.size);
        f.log_prob[n] = (l[x[n]] - top) - std::log(exponentials<false>(l, top, h.size, nullptr));
    }
    return valid;
}

void categorical_rows_backward(const HeadsBackward& b, std::int64_t begin, std::int64_t end, float* scratch) {
    const Heads& h = b.heads;
    const auto* x = static_cast<const std::int64_t*>(h.x);
    for (std::int64_t n = begin; n < end; ++n) {
        const std::int64_t o = n / h.inner;
        const std::int64_t i = n % h.inner;
        const std::int64_t at = o * h.params.stride_outer + i * h.params.stride_inner;
        const std::int64_t out_at = o * b.grad_params.stride_outer + i * b.grad_params.stride_inner;
        const float* l = widen(h.type, h.params.data, at, h.size, scratch);
        const float top = maximum(l, h.size);
        const float total = exponentials<true>(l, top, h.size, scratch);
        const float grad = b.grad[n];
        float* const out = staging(h.type, b.grad_params.data, out_at, scratch);
        // Read before it is overwritten: `out` may be the scratch.
        const float p = is_level(h, x[n]) ? scratch[x[n]] / total : 0.0f;
        const Floats factor = splat(-grad / total);
        for (std::int64_t j = 0; j < h.size; j += kLanes) {
            store_upto(out + j, factor * load_upto(scratch + j, h.size - j), h.size - j);
        }
        if (is_level(h, x[n])) out[x[n]] = grad * (1.0f - p);
        commit(h.type, out, b.grad_params.data, out_at, h.size);
    }
}

// A block of positions side by side, levels `stride_size` apart. `top` and `total` take kHeadPositions floats each.
struct Columns {
    const Heads& h;
    std::int64_t at;     // of the block's first logit
    std::int64_t count;  // positions

    const float* level(std::int64_t k, float* scratch) const {
        return widen(h.type, h.params.data, at + k * h.params.stride_size, count, scratch);
    }

    // The greatest logit of each position, and the sum of exp(l - that). Levels are taken a few at a time, so that one
    // pass over memory does for both: what a step reads is still in the first cache level when it is read again. Eight,
    // because in images of 32 x 32 the levels are 4096 bytes apart, and that cache holds 8 to 12 such lines.
    void normalise(float* top, float* total, float* scratch) const {
        constexpr std::int64_t kLevels = 8;
        std::fill_n(top, kHeadPositions, -kInfinity);
        std::fill_n(total, kHeadPositions, 0.0f);
        const float* rows[kLevels];
        for (std::int64_t first = 0; first < h.size; first += kLevels) {
            const std::int64_t levels = std::min(kLevels, h.size - first);
            for (std::int64_t k = 0; k < levels; ++k) rows[k] = level(first + k, scratch + k * kHeadPositions);
            for (std::int64_t j = 0; j < count; j += kLanes) {
                const std::int64_t left = count - j;
                const Floats before = load(top + j);
                Floats now = before;
                for (std::int64_t k = 0; k < levels; ++k) now = max(now, load_upto(rows[k] + j, left));
                // Where all levels so far have no probability, -inf - -inf would be no number.
                const Floats shift = now == splat(-kInfinity) ? splat(0.0f) : now;
                Floats added = splat(0.0f);
                for (std::int64_t k = 0; k < levels; ++k) added = added + exp(load_upto(rows[k] + j, left) - shift);
                store(top + j, now);
                store(total + j, fma(load(total + j), exp(before - shift), added));
            }
        }
    }
};

template <typename Body>
void over_columns(const Heads& h, std::int64_t begin, std::int64_t end, Body body) {
    const std::int64_t blocks = (h.inner + kHeadPositions - 1) / kHeadPositions;
    for (std::int64_t unit = begin; unit < end; ++unit) body(unit / blocks, unit % blocks * kHeadPositions);
}

bool categorical_columns(const HeadsForward& f, std::int64_t begin, std::int64_t end, float* scratch) {
    const Heads& h = f.heads;
    float* const top = scratch;
    float* const total = top + kHeadPositions;
    bool valid = true;
    over_columns(h, begin, end, [&](std::int64_t o, std::int64_t i) {
        const Columns block{h, o * h.params.stride_outer + i * h.params.stride_inner,
                            std::min(kHeadPositions, h.inner - i)};
        block.normalise(top, total, total + kHeadPositions);
        const std::int64_t first = o * h.inner + i;
        const auto* x = static_cast<const std::int64_t*>(h.x) + first;
        for (std::int64_t j = 0; j < block.count; ++j) {
            float l = kNan;
            if (is_level(h, x[j])) {
                l = *widen(h.type, h.params.data, block.at + x[j] * h.params.stride_size + j, 1, &l);
            } else {
                valid = false;
            }
            f.log_prob[first + j] = l - top[j];
        }
        for (std::int64_t j = 0; j < block.count; j += kLanes) {
            const std::int64_t left = block.count - j;
            store_upto(f.log_prob + first + j, load_upto(f.log_prob + first + j, left) - log(load(total + j)), left);
        }
    });
    return valid;
}

void categorical_columns_backward(const HeadsBackward& b, std::int64_t begin, std::int64_t end, float* scratch) {
    const Heads& h = b.heads;
    float* const top = scratch;
    float* const total = top + kHeadPositions;
    float* const factor = total + kHeadPositions;
    float* const rest = factor + kHeadPositions;
    over_columns(h, begin, end, [&](std::int64_t o, std::int64_t i) {
        const Columns block{h, o * h.params.stride_outer + i * h.params.stride_inner,
                            std::min(kHeadPositions, h.inner - i)};
        const std::int64_t count = block.count;
        block.normalise(top, total, rest);
        const std::int64_t first = o * h.inner + i;
        const std::int64_t out_at = o * b.grad_params.stride_outer + i * b.grad_params.stride_inner;
        for (std::int64_t j = 0; j < count; ++j) factor[j] = -b.grad[first + j] / total[j];
        for (std::int64_t k = 0; k < h.size; ++k) {
            const float* l = block.level(k, rest);
            const std::int64_t at = out_at + k * b.grad_params.stride_size;
            float* const out = staging(h.type, b.grad_params.data, at, rest + kHeadPositions);
            for (std::int64_t j = 0; j < count; j += kLanes) {
                const std::int64_t left = count - j;
                store_upto(out + j, load(factor + j) * exp(load_upto(l + j, left) - load(top + j)), left);
            }
            commit(h.type, out, b.grad_params.data, at, count);
        }
        const auto* x = static_cast<const std::int64_t*>(h.x) + first;
        for (std::int64_t j = 0; j < count; ++j) {
            if (!is_level(h, x[j])) continue;
            float l;
            l = *widen(h.type, h.params.data, block.at + x[j] * h.params.stride_size + j, 1, &l);
            const float derivative = 1.0f - std::exp(l - top[j]) / total[j];
            const float value = b.grad[first + j] * derivative;
            narrow(h.type, &value, b.grad_params.data, out_at + x[j] * b.grad_params.stride_size + j, 1);
        }
    });
}

}  // namespace

bool heads_forward(const HeadsForward& f, std::int64_t begin, std::int64_t end, float* scratch) {
    const Heads& h = f.heads;
    if (h.kind == LogProbKind::kBernoulli) {
        return h.inner == 1 ? bernoulli_sums(f, begin, end, scratch) : bernoulli_each(f, begin, end, scratch);
    }
    if (h.kind != LogProbKind::kCategorical) return mixtures_forward(f, begin, end, scratch);
    return h.params.stride_size == 1 ? categorical_rows(f, begin, end, scratch)
                                     : categorical_columns(f, begin, end, scratch);
}

void heads_backward(const HeadsBackward& b, std::int64_t begin, std::int64_t end, float* scratch) {
    const Heads& h = b.heads;
    if (h.kind == LogProbKind::kBernoulli) return bernoulli_backward(b, begin, end, scratch);
    if (h.kind != LogProbKind::kCategorical) return mixtures_backward(b, begin, end, scratch);
    if (h.params.stride_size == 1) return categorical_rows_backward(b, begin, end, scratch);
    return categorical_columns_backward(b, begin, end, scratch);
}

}  // namespace fastar::cpu::FASTAR_ISA
