// Laws with a mean and a scale, alone or mixed, in float64: docs/step-programs.md, "Draws".
//
// constexpr for the same reason as common/philox.h: device code may call it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>

#include "common/head.h"

namespace fastar {

// The smallest k whose cumulative softmax exceeds u; the last with probability where rounding leaves none; -1 where
// every logit is minus infinity. The logits are overwritten.
constexpr std::int64_t pick_from_logits(double* z, std::int64_t n, double u) {
    const double top = *std::max_element(z, z + n);
    if (top == -std::numeric_limits<double>::infinity()) return -1;
    double total = 0;
    for (std::int64_t k = 0; k < n; ++k) total += z[k] = std::exp(z[k] - top);
    double sum = 0;
    std::int64_t last = -1;
    for (std::int64_t k = 0; k < n; ++k) {
        sum += z[k];
        if (sum > u * total) return k;
        if (z[k] > 0) last = k;
    }
    return last;
}

// Parameters of one draw, as the program left them.
struct MixtureParameters {
    const float* params;
    double* logits;  // scratch of 2 * components
};

// Bounds of a draw's channels, null where there are none.
struct Bounds {
    const double* low;
    const double* high;
};

namespace laws {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

constexpr double log_sigmoid(double z) {
    return z < 0 ? z - std::log1p(std::exp(z)) : -std::log1p(std::exp(-z));
}

// Where the parameters of component k and colour c lie.
struct Fields {
    const Head& head;
    const float* params;

    constexpr bool alone() const { return head.kind == HeadKind::kNormal; }
    constexpr double logit(std::int64_t k) const { return alone() ? 0.0 : params[k]; }
    constexpr const float* means() const { return params + (alone() ? 0 : head.components); }
    constexpr const float* log_scales() const { return means() + head.channels * head.components; }
    constexpr double mean(std::int64_t c, std::int64_t k, const double* earlier) const {
        double m = means()[c * head.components + k];
        const float* coefficients = log_scales() + head.channels * head.components;
        for (std::int64_t j = 0; j < c; ++j) {
            m += std::tanh(static_cast<double>(coefficients[(c * (c - 1) / 2 + j) * head.components + k])) * earlier[j];
        }
        return m;
    }
    constexpr double log_scale(std::int64_t c, std::int64_t k) const {
        const double s = log_scales()[c * head.components + k];
        return head.min_log_scale ? std::max(s, *head.min_log_scale) : s;
    }
};

constexpr double half_bin(const Head& head) {
    return (*head.high - *head.low) / static_cast<double>(head.levels - 1) / 2;
}

// A value as the law sees it.
constexpr double scaled(const Head& head, double value, bool integer) {
    return head.levels == 0 || !integer ? value : *head.low + value * 2 * half_bin(head);
}

constexpr double cdf(const Head& head, double z) {
    if (head.kind == HeadKind::kLogistic) return 1 / (1 + std::exp(-z));
    if (head.kind == HeadKind::kLaplace) return z < 0 ? 0.5 * std::exp(z) : 1 - 0.5 * std::exp(-z);
    return 0.5 * std::erfc(-z / std::numbers::sqrt2);
}

// The normal quantile: a rational start, then steps of third order on the function itself.
constexpr double normal_quantile(double u) {
    const bool upper = u > 0.5;
    const double tail = upper ? 1 - u : u;
    const double t = std::sqrt(-2 * std::log(tail));
    double z = (2.515517 + t * (0.802853 + t * 0.010328)) / (1 + t * (1.432788 + t * (0.189269 + t * 0.001308))) - t;
    for (int i = 0; i < 2; ++i) {
        const double error = 0.5 * std::erfc(-z / std::numbers::sqrt2) - tail;
        const double step = error * std::sqrt(2 * std::numbers::pi) * std::exp(z * z / 2);
        z -= step / (1 + z * step / 2);
    }
    return upper ? -z : z;
}

constexpr double quantile(const Head& head, double u) {
    if (head.kind == HeadKind::kLogistic) return std::log(u) - std::log1p(-u);
    if (head.kind == HeadKind::kLaplace) return u < 0.5 ? std::log(2 * u) : -std::log(2 * (1 - u));
    return normal_quantile(u);
}

// A range above 0 is taken by its mirror image, where differences of the CDF do not cancel.
struct Folded {
    bool flip;
    double a;
    double b;

    constexpr Folded(double low, double high) : flip(low > 0), a(flip ? -high : low), b(flip ? -low : high) {}
};

constexpr double quantile_between(const Head& head, double u, double low, double high) {
    const Folded f(low, high);
    if (f.flip) u = 1 - u;
    const double below = cdf(head, f.a);
    const double at = below + u * (cdf(head, f.b) - below);
    const double z = at <= 0 || at >= 1 ? f.b : quantile(head, at);
    return f.flip ? -z : z;
}

constexpr double log_mass(const Head& head, double mean, double log_scale, double low, double high) {
    const double scale = std::exp(log_scale);
    const Folded f((low - mean) / scale, (high - mean) / scale);
    return std::log(cdf(head, f.b) - cdf(head, f.a));
}

struct Edges {
    double low;
    double high;
};

// The outer edges of the supported levels' bins, or the range itself.
constexpr Edges edges_of(const Head& head, Bounds support, std::int64_t c, bool integer) {
    const double low = scaled(head, support.low[c], integer);
    const double high = scaled(head, support.high[c], integer);
    if (head.levels == 0) return {low, high};
    const double half = half_bin(head);
    return {low <= *head.low + half ? -kInfinity : low - half, high >= *head.high - half ? kInfinity : high + half};
}

constexpr double component_log_prob(const Head& head, double x, double mean, double log_scale) {
    const double z = (x - mean) * std::exp(-log_scale);
    if (head.kind == HeadKind::kNormal || head.kind == HeadKind::kGaussian) {
        return -0.5 * z * z - log_scale - 0.5 * std::log(2 * std::numbers::pi);
    }
    if (head.kind == HeadKind::kLaplace) return -std::fabs(z) - log_scale - std::numbers::ln2;
    const double density = log_sigmoid(z) + log_sigmoid(-z) - log_scale;
    if (head.levels == 0) return density;
    const double half = half_bin(head);
    const double below = z - half * std::exp(-log_scale);
    const double above = z + half * std::exp(-log_scale);
    if (x <= *head.low + half) return log_sigmoid(above);
    if (x >= *head.high - half) return log_sigmoid(-below);
    // sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)): no cancellation in either tail.
    const double inner = log_sigmoid(above) + log_sigmoid(-below) + std::log(-std::expm1(below - above));
    if (head.branch > 0 && inner < std::log(head.branch)) return density + std::log(2 * half);
    return inner;
}

constexpr double log_sum_exp(const double* z, std::int64_t n) {
    const double top = *std::max_element(z, z + n);
    if (!std::isfinite(top)) return top;
    double total = 0;
    for (std::int64_t k = 0; k < n; ++k) total += std::exp(z[k] - top);
    return top + std::log(total);
}

// The value in the data's terms, and in `x` the scaled value that it stands for.
constexpr double to_grid(const Head& head, Bounds support, std::int64_t c, bool integer, double& x) {
    if (head.low) x = std::clamp(x, *head.low, *head.high);
    if (head.levels == 0) return x;
    double level = std::floor((x - *head.low) / (2 * half_bin(head)) + 0.5);
    // An edge between two bins belongs to both, so rounding may step just outside the support.
    if (integer && support.low) level = std::clamp(level, support.low[c], support.high[c]);
    x = scaled(head, level, true);
    return integer ? level : x;
}

}  // namespace laws

// Values of head.channels into `value`, from 1 + channels (a normal: 1) uniforms. False: no component can be chosen.
constexpr bool draw_mixture(const Head& head, const MixtureParameters& p, const double* u, double temperature,
                            bool greedy, Bounds support, bool integer, double* value) {
    using namespace laws;
    const Fields fields{head, p.params};
    const std::int64_t K = head.components;
    double* z = p.logits;
    for (std::int64_t k = 0; k < K; ++k) z[k] = fields.logit(k);
    if (support.low) {
        const Edges edges = edges_of(head, support, 0, integer);
        double* within = p.logits + K;
        bool any = false;
        for (std::int64_t k = 0; k < K; ++k) {
            within[k] =
                z[k] + log_mass(head, fields.mean(0, k, nullptr), fields.log_scale(0, k), edges.low, edges.high);
            any = any || !std::isinf(within[k]);
        }
        if (any) std::copy_n(within, K, z);
    }
    for (std::int64_t k = 0; k < K; ++k) z[k] /= temperature;
    const std::int64_t k = greedy ? std::max_element(z, z + K) - z : pick_from_logits(z, K, u[0]);
    if (k < 0) return false;
    const int first = head.kind == HeadKind::kNormal ? 0 : 1;
    double earlier[kMaxChannels];
    for (std::int64_t c = 0; c < head.channels; ++c) {
        const double mean = fields.mean(c, k, earlier);
        const double scale = std::exp(fields.log_scale(c, k)) * temperature;
        double x = mean;
        if (!greedy && !support.low) x = mean + scale * quantile(head, u[first + c]);
        if (support.low) {
            const Edges edges = edges_of(head, support, c, integer);
            if (!greedy) {
                x = mean + scale * quantile_between(head, u[first + c], (edges.low - mean) / scale,
                                                    (edges.high - mean) / scale);
            }
            x = std::min(std::max(x, edges.low), edges.high);
        }
        value[c] = to_grid(head, support, c, integer, x);
        earlier[c] = x;
    }
    return true;
}

constexpr double mixture_log_prob(const Head& head, const MixtureParameters& p, const double* value, bool integer) {
    using namespace laws;
    const Fields fields{head, p.params};
    const std::int64_t K = head.components;
    double x[kMaxChannels];
    for (std::int64_t c = 0; c < head.channels; ++c) x[c] = scaled(head, value[c], integer);
    double* logits = p.logits;
    double* joint = p.logits + K;
    for (std::int64_t k = 0; k < K; ++k) {
        logits[k] = fields.logit(k);
        joint[k] = 0;
        for (std::int64_t c = 0; c < head.channels; ++c) {
            joint[k] += component_log_prob(head, x[c], fields.mean(c, k, x), fields.log_scale(c, k));
        }
    }
    const double total = log_sum_exp(logits, K);
    for (std::int64_t k = 0; k < K; ++k) joint[k] += logits[k] - total;
    return log_sum_exp(joint, K);
}

}  // namespace fastar
