// Mixtures: log sum_k pi_k prod_c p(x_c; k), one position per lane.
//
// Per component, F is the logarithm of its density or mass. The posterior weight r_k = softmax(logit + F)_k gives every
// gradient: r_k - pi_k by the logit, r_k F' by the rest. The backward keeps F' where the parameter lay, and scales it
// when all components are known, so that no function is evaluated twice.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/isa/elements.h"
#include "cpu/isa/heads.h"
#include "cpu/isa/vector_math.h"

namespace fastar::cpu::FASTAR_ISA {
namespace {

constexpr std::int64_t kBlock = kHeadPositions;

// Scales outside exp(-87) .. exp(87) are taken as these: beyond, they or their inverse are no float.
constexpr float kMostLogScale = 87.0f;
// What a component is bounded by, so that sums and differences of components stay numbers.
constexpr float kMostTotal = 2e38f;

Floats clamp(Floats a, float bound) {
    return min(splat(bound), max(splat(-bound), a));
}

float largest(HeadElement type) {
    if (type == HeadElement::kFloat16) return 65504.0f;
    if (type == HeadElement::kBFloat16) return from_bfloat16(0x7f7f);
    return std::numeric_limits<float>::max();
}

// v[i][j] becomes v[j][i]: interleaving the first half with the second, log2(kLanes) times.
void transpose(Floats (&v)[kLanes]) {
#pragma GCC unroll 4
    for (int step = 1; step < kLanes; step *= 2) {
        Floats w[kLanes];
#pragma GCC unroll 8
        for (int i = 0; i < kLanes / 2; ++i) {
            const Floats a = v[i];
            const Floats b = v[i + kLanes / 2];
#if defined(__AVX512F__)
            w[2 * i] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            w[2 * i + 1] = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif defined(__AVX2__)
            w[2 * i] = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
            w[2 * i + 1] = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
            w[2 * i] = __builtin_shufflevector(a, b, 0, 4, 1, 5);
            w[2 * i + 1] = __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
        }
        std::copy_n(w, kLanes, v);
    }
}

// Where the parameters of position n begin.
std::int64_t offset(const Heads& h, const HeadParams& p, std::int64_t n) {
    return n / h.inner * p.stride_outer + n % h.inner * p.stride_inner;
}

// Calls body(first, count, offset) for runs of the positions [n, n + count) that lie side by side.
template <typename Body>
void over_runs(const Heads& h, const HeadParams& p, std::int64_t n, std::int64_t count, Body body) {
    for (std::int64_t j = 0; j < count;) {
        const std::int64_t run = std::min(count - j, h.inner - (n + j) % h.inner);
        body(j, run, offset(h, p, n + j));
        j += run;
    }
}

// The parameters of positions [n, n + count), [size, kBlock]; lanes without a position hold zeros.
void read(const Heads& h, std::int64_t n, std::int64_t count, float* out, float* scratch) {
    if (count < kBlock) std::fill_n(out, h.size * kBlock, 0.0f);
    if (h.params.stride_size != 1) {
        over_runs(h, h.params, n, count, [&](std::int64_t j, std::int64_t run, std::int64_t at) {
            for (std::int64_t p = 0; p < h.size; ++p) {
                const float* row = widen(h.type, h.params.data, at + p * h.params.stride_size, run, scratch);
                std::copy_n(row, run, out + p * kBlock + j);
            }
        });
        return;
    }
    for (std::int64_t j = 0; j < count; j += kLanes) {
        const float* rows[kLanes];
        const std::int64_t last = std::min<std::int64_t>(kLanes, count - j) - 1;
        for (std::int64_t r = 0; r <= last; ++r) {
            rows[r] = widen(h.type, h.params.data, offset(h, h.params, n + j + r), h.size, scratch + r * h.size);
        }
        // Lanes without a position repeat the last one; nobody reads them.
        for (std::int64_t r = last + 1; r < kLanes; ++r) rows[r] = rows[last];
        for (std::int64_t p = 0; p < h.size; p += kLanes) {
            const std::int64_t left = h.size - p;
            Floats v[kLanes];
            for (int r = 0; r < kLanes; ++r) v[r] = load_upto(rows[r] + p, left);
            transpose(v);
            for (std::int64_t q = 0; q < std::min<std::int64_t>(kLanes, left); ++q) {
                store(out + (p + q) * kBlock + j, v[q]);
            }
        }
    }
}

// The way back of `read`, for the gradients.
void write(const Heads& h, const HeadParams& grads, std::int64_t n, std::int64_t count, const float* values,
           float* scratch) {
    if (grads.stride_size != 1) {
        over_runs(h, grads, n, count, [&](std::int64_t j, std::int64_t run, std::int64_t at) {
            for (std::int64_t p = 0; p < h.size; ++p) {
                narrow(h.type, values + p * kBlock + j, grads.data, at + p * grads.stride_size, run);
            }
        });
        return;
    }
    for (std::int64_t j = 0; j < count; j += kLanes) {
        const std::int64_t filled = std::min<std::int64_t>(kLanes, count - j);
        float* rows[kLanes];
        for (std::int64_t r = 0; r < filled; ++r) {
            rows[r] = staging(h.type, grads.data, offset(h, grads, n + j + r), scratch + r * h.size);
        }
        for (std::int64_t p = 0; p < h.size; p += kLanes) {
            const std::int64_t left = h.size - p;
            Floats v[kLanes]{};
            for (std::int64_t q = 0; q < std::min<std::int64_t>(kLanes, left); ++q) {
                v[q] = load(values + (p + q) * kBlock + j);
            }
            transpose(v);
            for (std::int64_t r = 0; r < filled; ++r) store_upto(rows[r] + p, v[r], left);
        }
        for (std::int64_t r = 0; r < filled; ++r) {
            commit(h.type, rows[r], grads.data, offset(h, grads, n + j + r), h.size);
        }
    }
}

// x of positions [n, n + count), scaled, [channels, kBlock].
bool read_x(const Heads& h, std::int64_t n, std::int64_t count, float* out) {
    bool valid = true;
    for (std::int64_t c = 0; c < h.channels; ++c) {
        const float* x = static_cast<const float*>(h.x) + c * h.outer * h.inner + n;
        std::fill_n(out + c * kBlock, kBlock, 0.0f);
        for (std::int64_t j = 0; j < count; ++j) {
            valid &= x[j] >= h.x_low && x[j] <= h.x_high;
            out[c * kBlock + j] = x[j] * h.x_scale + h.x_offset;
        }
    }
    return valid;
}

// F of one component, and its derivatives by the mean and by the log-scale.
struct Law {
    Floats value;
    Floats by_mean;
    Floats by_log_scale;
};

Floats inverse_scale(Floats log_scale) {
    return exp_within(clamp(splat(0.0f) - log_scale, kMostLogScale));
}

template <bool kGradient>
Law gaussian(Floats x, Floats mean, Floats log_scale) {
    const Floats inverse = inverse_scale(log_scale);
    const Floats z = (x - mean) * inverse;
    const Floats square = z * z;
    Law law;
    law.value = fma(splat(-0.5f), square, splat(-0.91893853f) - log_scale);
    if constexpr (kGradient) {
        law.by_mean = z * inverse;
        law.by_log_scale = square - splat(1.0f);
    }
    return law;
}

template <bool kGradient>
Law laplace(Floats x, Floats mean, Floats log_scale) {
    const Floats inverse = inverse_scale(log_scale);
    const Floats z = (x - mean) * inverse;
    Law law;
    law.value = splat(-0.69314718f) - log_scale - abs(z);
    if constexpr (kGradient) {
        law.by_mean = z == splat(0.0f) ? splat(0.0f) : copysign(inverse, z);
        law.by_log_scale = abs(z) - splat(1.0f);
    }
    return law;
}

// exp(-h) and 1 - exp(-h), both to a few units in the last place, for h in [0, 25].
struct Decay {
    Floats left;
    Floats lost;
};

Decay decay(Floats h) {
    const Floats magic = splat(0x1.8p23f);
    const Floats x = splat(0.0f) - h;
    const Floats n = fma(x, splat(0x1.715476p0f), magic) - magic;
    const Floats r = fnma(n, splat(kLn2Low), fnma(n, splat(kLn2High), x));
    // exp(r) - 1 for |r| <= ln(2) / 2: its digits are those of 1 - exp(-h) where h is small.
    Floats p = fma(r, splat(0.0013813144760206342f), splat(0.008369418792426586f));
    p = fma(r, p, splat(0.04166845604777336f));
    p = fma(r, p, splat(0.16666515171527863f));
    p = fma(r, p, splat(0.4999999403953552f));
    p = fma(r * r, p, r);
    const Floats power = scale_by_power(splat(1.0f), n);
    return {fma(p, power, power), fnma(p, power, splat(1.0f) - power)};
}

// What the levels of a channel have in common for all components: x, and on which end of the range it lies.
struct Level {
    Floats x;
    Floats end;  // -1 at the lowest level, 1 at the highest, 0 between
};

Level level_of(const Heads& h, Floats x) {
    const Floats edge = splat(1.0f - h.half_bin);
    const Floats one = splat(1.0f);
    const Floats zero = splat(0.0f);
    return {x, x <= zero - edge ? zero - one : (x >= edge ? one : zero)};
}

// A discretised logistic. With z = (x - m) / s, h = half a bin / s, t = exp(-|z|) and g = exp(-h):
//
//   the bin's mass      sigmoid(z + h) - sigmoid(z - h) = t (1 - g) (1 + g) / ((t + g) (1 + t g)),
//   an end's mass       t / (t + g) where x lies further out than the mean, 1 / (1 + t g) where it lies further in,
//   the density's mass  t / (1 + t)^2 times the width of a bin: for masses below the branch.
//
// So two exponentials give all three, without a difference of nearly equal numbers, and F is a linear part plus the
// logarithm of a quotient; one logarithm serves the channels together.
struct Logistic {
    Floats linear;
    Floats numerator;
    Floats denominator;
    Floats by_mean;
    Floats by_log_scale;
};

template <bool kGradient>
Logistic logistic(const Heads& h, const Level& level, Floats mean, Floats raw_log_scale) {
    // More than this many scales from the mean to the edge of a bin change nothing that a float shows.
    const Floats far = splat(25.0f);
    const Floats zero = splat(0.0f);
    const Floats one = splat(1.0f);
    const Floats log_scale = max(splat(h.min_log_scale), raw_log_scale);
    const Floats inverse = inverse_scale(log_scale);
    const Floats z = (level.x - mean) * inverse;
    const Floats size = min(splat(1e37f), abs(z));
    const Floats half = splat(h.half_bin) * inverse;
    // Only the difference of the two matters where both are large.
    const Floats near_half = min(far, half);
    const Floats near_size = max(zero, size - (half - near_half));
    const Decay d = decay(near_half);
    const Floats t = exp(zero - near_size);
    const Floats g = d.left;
    const Floats outer = t + g;
    const Floats inner = fma(t, g, one);
    const Floats both = outer * inner;
    const Floats width = fma(d.lost, g, d.lost);
    // A narrow bin's mass is its density, and the latter is the more exact.
    const Ints thin = (half < splat(1e-4f)) | (width * t < splat(h.branch) * both);
    const Ints end = level.end != zero;
    const Ints outward = level.end * z > zero;
    const Floats near = one + t;
    const Floats by_density = splat(std::log(2.0f * h.half_bin)) - log_scale - size;
    Logistic law;
    law.linear = end ? (outward ? zero - near_size : zero) : (thin ? by_density : zero - near_size);
    law.numerator = end | thin ? one : width;
    law.denominator = end ? (outward ? outer : inner) : (thin ? near * near : both);
    if constexpr (kGradient) {
        const Floats tg = t * g;
        // -dF/d|z|
        const Floats above = end ? (outward ? g : zero - tg) : (thin ? one - t : fnma(t, t, one) * g);
        const Floats below = reciprocal(end ? (outward ? outer : inner) : (thin ? near : both));
        const Floats slope = above * below;
        // h dF/dh of a bin: coth(h) less its mass, as a sum of positive terms.
        const Floats cosines = fma(fma(g, g, one), fma(t, t, one), splat(4.0f) * tg);
        const Floats bin = near_half * g * cosines * below * reciprocal(max(splat(1e-30f), width));
        const Floats by_half = end ? near_half * (outward ? slope : zero - slope) : (thin ? one : bin);
        const Floats by_size = (thin & ~end ? size : near_size) * slope;
        // At an end the mean pulls one way, also where it is x.
        const Floats direction = end ? (outward ? level.end : zero - level.end) : z;
        law.by_mean = copysign(inverse, direction) * slope;
        law.by_log_scale = raw_log_scale >= splat(h.min_log_scale) ? by_size - by_half : zero;
    }
    return law;
}

// One vector of positions of a block: where its values lie.
struct Lane {
    const Heads& h;
    float* params;   // [size, kBlock]
    const float* x;  // [channels, kBlock]
    float* totals;   // [components, kLanes]
    float limit;

    float* logit(std::int64_t k) const { return params + k * kBlock; }
    float* mean(std::int64_t c, std::int64_t k) const { return logit(h.components * (1 + c) + k); }
    float* log_scale(std::int64_t c, std::int64_t k) const { return logit(h.components * (1 + h.channels + c) + k); }
    float* coefficient(std::int64_t c, std::int64_t j, std::int64_t k) const {
        return logit(h.components * (1 + 2 * h.channels + c * (c - 1) / 2 + j) + k);
    }
};

// F of component k; with kGradient its derivatives take the places of the parameters.
template <LogProbKind kKind, bool kGradient>
Floats component(const Lane& lane, std::int64_t k) {
    const Heads& h = lane.h;
    if constexpr (kKind != LogProbKind::kLogistic) {
        const Floats mean = load(lane.mean(0, k));
        const Floats log_scale = load(lane.log_scale(0, k));
        const Law law = kKind == LogProbKind::kGaussian ? gaussian<kGradient>(load(lane.x), mean, log_scale)
                                                        : laplace<kGradient>(load(lane.x), mean, log_scale);
        if constexpr (kGradient) {
            store(lane.mean(0, k), clamp(law.by_mean, lane.limit));
            store(lane.log_scale(0, k), clamp(law.by_log_scale, lane.limit));
        }
        return law.value;
    } else {
        const Floats one = splat(1.0f);
        Floats value = splat(0.0f);
        Floats numerator = one;
        Floats denominator = one;
        for (std::int64_t c = 0; c < h.channels; ++c) {
            Floats mean = load(lane.mean(c, k));
            for (std::int64_t j = 0; j < c; ++j) {
                const Floats share = tanh(load(lane.coefficient(c, j, k)));
                mean = fma(share, load(lane.x + j * kBlock), mean);
                if constexpr (kGradient) store(lane.coefficient(c, j, k), share);
            }
            const Level level = level_of(h, load(lane.x + c * kBlock));
            const Logistic law = logistic<kGradient>(h, level, mean, load(lane.log_scale(c, k)));
            value = value + law.linear;
            numerator = numerator * law.numerator;
            denominator = denominator * law.denominator;
            // A channel's factors lie between exp(-25) and 4: three of them are floats.
            if (c % 3 == 2 || c == h.channels - 1) {
                value = value + log(numerator / denominator);
                numerator = denominator = one;
            }
            if constexpr (kGradient) {
                const Floats by_mean = clamp(law.by_mean, lane.limit);
                store(lane.mean(c, k), by_mean);
                store(lane.log_scale(c, k), clamp(law.by_log_scale, lane.limit));
                for (std::int64_t j = 0; j < c; ++j) {
                    const Floats share = load(lane.coefficient(c, j, k));
                    const Floats by_share = by_mean * load(lane.x + j * kBlock);
                    store(lane.coefficient(c, j, k), by_share * fnma(share, share, one));
                }
            }
        }
        return value;
    }
}

// log p, with every component's logit + F in `totals`, less the greatest logit.
struct Mixed {
    Floats top_logit;
    Floats sum_logits;
    Floats top;
    Floats sum;
};

template <LogProbKind kKind, bool kGradient>
Mixed mix(const Lane& lane) {
    const std::int64_t components = lane.h.components;
    Mixed m{load(lane.logit(0)), splat(0.0f), splat(-kMostTotal), splat(0.0f)};
    for (std::int64_t k = 1; k < components; ++k) m.top_logit = max(m.top_logit, load(lane.logit(k)));
    for (std::int64_t k = 0; k < components; ++k) {
        const Floats logit = load(lane.logit(k)) - m.top_logit;
        m.sum_logits = m.sum_logits + exp(logit);
        const Floats total = clamp(logit + component<kKind, kGradient>(lane, k), kMostTotal);
        store(lane.totals + k * kLanes, total);
        m.top = max(m.top, total);
    }
    for (std::int64_t k = 0; k < components; ++k) {
        m.sum = m.sum + exp(load(lane.totals + k * kLanes) - m.top);
    }
    return m;
}

// Gradients in the places of the parameters; returns that of x, for one channel.
Floats spread(const Lane& lane, const Mixed& m, Floats grad) {
    const Heads& h = lane.h;
    const Floats per_total = splat(1.0f) / m.sum;
    const Floats per_logit = splat(1.0f) / m.sum_logits;
    Floats by_x = splat(0.0f);
    for (std::int64_t k = 0; k < h.components; ++k) {
        const Floats posterior = exp(load(lane.totals + k * kLanes) - m.top) * per_total;
        const Floats prior = exp(load(lane.logit(k)) - m.top_logit) * per_logit;
        by_x = fnma(posterior, load(lane.mean(0, k)), by_x);
        store(lane.logit(k), grad * (posterior - prior));
        for (std::int64_t p = h.components + k; p < h.size; p += h.components) {
            store(lane.logit(p), grad * (posterior * load(lane.logit(p))));
        }
    }
    return grad * clamp(by_x, lane.limit);
}

template <LogProbKind kKind>
bool forward(const HeadsForward& f, std::int64_t begin, std::int64_t end, float* scratch) {
    const Heads& h = f.heads;
    float* const params = scratch;
    float* const x = params + h.size * kBlock;
    float* const totals = x + h.channels * kBlock;
    float* const rest = totals + h.components * kLanes;
    bool valid = true;
    for (std::int64_t unit = begin; unit < end; ++unit) {
        const std::int64_t n = unit * kBlock;
        const std::int64_t count = std::min(kBlock, h.outer * h.inner - n);
        read(h, n, count, params, rest);
        valid = read_x(h, n, count, x) && valid;
        for (std::int64_t j = 0; j < count; j += kLanes) {
            const Mixed m = mix<kKind, false>({h, params + j, x + j, totals, 0.0f});
            store_upto(f.log_prob + n + j, m.top + log(m.sum / m.sum_logits), count - j);
        }
    }
    return valid;
}

template <LogProbKind kKind>
void backward(const HeadsBackward& b, std::int64_t begin, std::int64_t end, float* scratch) {
    const Heads& h = b.heads;
    float* const params = scratch;
    float* const x = params + h.size * kBlock;
    float* const totals = x + h.channels * kBlock;
    float* const rest = totals + h.components * kLanes;
    for (std::int64_t unit = begin; unit < end; ++unit) {
        const std::int64_t n = unit * kBlock;
        const std::int64_t count = std::min(kBlock, h.outer * h.inner - n);
        read(h, n, count, params, rest);
        read_x(h, n, count, x);
        for (std::int64_t j = 0; j < count; j += kLanes) {
            const Lane lane{h, params + j, x + j, totals, largest(h.type)};
            const Floats by_x = spread(lane, mix<kKind, true>(lane), load_upto(b.grad + n + j, count - j));
            if (b.grad_x) store_upto(b.grad_x + n + j, by_x, count - j);
        }
        write(h, b.grad_params, n, count, params, rest);
    }
}

}  // namespace

bool mixtures_forward(const HeadsForward& f, std::int64_t begin, std::int64_t end, float* scratch) {
    switch (f.heads.kind) {
        case LogProbKind::kGaussian:
            return forward<LogProbKind::kGaussian>(f, begin, end, scratch);
        case LogProbKind::kLaplace:
            return forward<LogProbKind::kLaplace>(f, begin, end, scratch);
        default:
            return forward<LogProbKind::kLogistic>(f, begin, end, scratch);
    }
}

void mixtures_backward(const HeadsBackward& b, std::int64_t begin, std::int64_t end, float* scratch) {
    switch (b.heads.kind) {
        case LogProbKind::kGaussian:
            return backward<LogProbKind::kGaussian>(b, begin, end, scratch);
        case LogProbKind::kLaplace:
            return backward<LogProbKind::kLaplace>(b, begin, end, scratch);
        default:
            return backward<LogProbKind::kLogistic>(b, begin, end, scratch);
    }
}

}  // namespace fastar::cpu::FASTAR_ISA
