// Elementary functions over sixteen lanes, each within a few units in the last place: polynomials fitted at Chebyshev
// nodes to the stated interval, after the usual reductions. Not-a-number stays not-a-number.
#pragma once

#include "cpu/executor/kernels.h"
#include "cpu/isa/lanes.h"

namespace fastar::cpu::FASTAR_ISA {
inline namespace sixteen {

// c[0] x^(n-1) + .. + c[n-1]
template <int N>
inline Lanes polynomial(Lanes x, const float (&c)[N]) {
    Lanes y = splat(c[0]);
#pragma GCC unroll 16
    for (int i = 1; i < N; ++i) y = fma(y, x, splat(c[i]));
    return y;
}

// Arguments beyond +-86 are clamped: what follows divides by 1 + exp, which must stay below 2^126.
constexpr float kLargestExponent = 86.0f;
constexpr float kRounder = 12582912.0f;

// e^r - 1 - r over r^2, for |r| <= ln 2 / 2.
constexpr float kExpCore[] = {1.392692661e-3f, 8.363773874e-3f, 0.04166655011f, 0.1666657338f, 0.5f};

// x of at most 88.
inline Lanes exp_unchecked(Lanes x) {
    const Lanes n = round_even(x * splat(1.44269504f));
    // ln 2 in two parts, the first short enough that n times it is exact.
    Lanes r = fma(n, splat(-0.693359375f), x);
    r = fma(n, splat(2.12194440e-4f), r);
    const Lanes y = fma(polynomial(r, kExpCore), r * r, r) + splat(1.0f);
    return scale_by_power(y, n);
}

inline Lanes exp(Lanes x) {
    // Infinity above ln(2^128): 128 as a power, times at least 1.
    const Lanes y = exp_unchecked(at_least(at_most(x, splat(88.72284f)), splat(-104.0f)));
    return pick(splat(88.72284f) < x, splat(__builtin_inff()), y);
}

// 1 / (1 + 2^t), t = -x log2 e, of N registers side by side: the function of which a NADE computes one per hidden unit
// and step. One register alone is a chain of some seventy cycles, and a core's window holds too few such chains to fill
// its multipliers; the stages of four in turn do.
template <int N>
inline void sigmoid_of(Lanes (&x)[N]) {
    // 2^r for |r| <= 1/2.
    constexpr float kPower[] = {1.339086336e-3f, 9.676031918e-3f, 0.05550357114f,
                                0.2402210749f,   0.693147188f,    1.000000075f};
    const Lanes minus_log2e = splat(-1.44269504f);
    Lanes shifted[N];
    Lanes power[N];
    const auto each = [](auto stage) {
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i) stage(i);
    };
    each([&](int i) { x[i] = at_most(at_least(x[i], splat(-kLargestExponent)), splat(kLargestExponent)); });
    // Adding 1.5 * 2^23 rounds t to a whole number and leaves it in the lowest bits, from where it can be added to the
    // exponent of 2^r: the multipliers, which are what this runs out of, are spared.
    each([&](int i) { shifted[i] = fma(x[i], minus_log2e, splat(kRounder)); });
    each([&](int i) { x[i] = fused_difference(x[i], minus_log2e, shifted[i] - splat(kRounder)); });
    each([&](int i) { power[i] = fma(splat(kPower[0]), x[i], splat(kPower[1])); });
#pragma GCC unroll 8
    for (int c = 2; c < 6; ++c) each([&](int i) { power[i] = fma(power[i], x[i], splat(kPower[c])); });
    each([&](int i) { power[i] = add_to_exponent(power[i], shifted[i]) + splat(1.0f); });
    each([&](int i) { x[i] = reciprocal(power[i]); });
}

inline Lanes sigmoid(Lanes x) {
    Lanes one[1] = {x};
    sigmoid_of(one);
    return one[0];
}

// x sigmoid(z) where z falls with x. The least that sigmoid gives is not quite 0, so neither may x run away.
inline Lanes times_sigmoid(Lanes x, Lanes z) {
    return at_least(x, splat(-kLargestExponent)) * sigmoid(z);
}

inline Lanes tanh(Lanes x) {
    // Odd polynomial near 0, where 1 - 2 / (e^2x + 1) cancels.
    constexpr float kCore[] = {-6.07516659e-3f, 0.02098229759f, -0.0538477577f, 0.1333274891f, -0.3333332874f};
    const Lanes a = magnitude(x);
    const Lanes s = x * x;
    const Lanes small = fma(polynomial(s, kCore) * s, x, x);
    const Lanes e = exp_unchecked(at_most(a + a, splat(40.0f)));
    const Lanes large = fma(splat(-2.0f), reciprocal(e + splat(1.0f)), splat(1.0f));
    return pick(a < splat(0.625f), small, with_sign(large, x));
}

// e^x - 1 for x of at most 0.
inline Lanes expm1_negative(Lanes x) {
    constexpr float kCore[] = {
        2.045466058e-5f, 1.955269733e-4f, 1.38792154e-3f, 8.333165615e-3f, 0.04166665276f, 0.1666666662f, 0.5f};
    const Lanes small = fma(polynomial(x, kCore), x * x, x);
    return pick(splat(-0.5f) < x, small, exp_unchecked(at_least(x, splat(-80.0f))) - splat(1.0f));
}

inline Lanes elu(Lanes x) {
    return pick(splat(0.0f) < x, x, expm1_negative(at_most(x, splat(0.0f))));
}

// erfc(x) for x >= 0 as e^(-x^2) t P(t), t = 1 / (1 + 0.4 x), fitted for x up to 10.
inline Lanes erfc_positive(Lanes x) {
    constexpr float kCore[] = {-0.03350112687f, 0.2187853561f, -0.5465026178f, 0.6093421803f, -0.3343118762f,
                               0.2979731946f,   0.1210599825f, 0.216689386f,   0.2247486653f, 0.2257168574f};
    const Lanes t = reciprocal(fma(splat(0.4f), x, splat(1.0f)));
    return exp_unchecked(at_least(splat(0.0f) - x * x, splat(-86.0f))) * t * polynomial(t, kCore);
}

// x Phi(x). The lower tail keeps its relative accuracy, since it never subtracts from 1.
inline Lanes gelu(Lanes x) {
    const Lanes tail = splat(0.5f) * erfc_positive(at_most(magnitude(x) * splat(0.70710678f), splat(10.0f)));
    return at_least(x, splat(-100.0f)) * pick(x < splat(0.0f), tail, splat(1.0f) - tail);
}

inline Lanes gelu_tanh(Lanes x) {
    // 0.5 (1 + tanh z) is sigmoid(2 z).
    const Lanes z = splat(1.5957691216f) * fma(splat(0.044715f) * x * x, x, x);
    return times_sigmoid(x, z);
}

// log(1 + r) - r over r^2, for 1 + r from sqrt(1/2) to sqrt(2).
constexpr float kLogCore[] = {0.06767020336f, -0.1155657755f, 0.1181256867f,  -0.1242095011f, 0.1423228523f,
                              -0.1666752881f, 0.2000144769f,  -0.2500001109f, 0.3333332279f,  -0.4999999994f};

// log(1 + u) for u in [0, 1].
inline Lanes log1p_unit(Lanes u) {
    const Mask large = splat(0.41421356f) < u;
    const Lanes r = pick(large, splat(0.5f) * (u - splat(1.0f)), u);
    const Lanes y = fma(polynomial(r, kLogCore), r * r, r);
    return pick(large, y + splat(0.69314718f), y);
}

// -infinity at 0, for which the executor takes denormals too; not a number below.
inline Lanes log(Lanes x) {
    constexpr float kInfinity = __builtin_inff();
    const Lanes whole = exponent_of(x);
    const Lanes mantissa = scale_by_power(x, splat(0.0f) - whole);
    const Mask large = splat(1.41421356f) < mantissa;
    const Lanes n = pick(large, whole + splat(1.0f), whole);
    const Lanes r = pick(large, splat(0.5f) * mantissa, mantissa) - splat(1.0f);
    // ln 2 in two parts, as for exp.
    const Lanes low = fma(n, splat(-2.12194440e-4f), polynomial(r, kLogCore) * r * r);
    const Lanes y = fma(n, splat(0.693359375f), r + low);
    const Lanes ordinary = pick(splat(3.40282347e38f) < x, splat(kInfinity), y);
    const Lanes none = pick(x < splat(0.0f), splat(__builtin_nanf("")), x - splat(kInfinity));
    return pick(splat(0.0f) < x, ordinary, none);
}

inline Lanes softplus(Lanes x) {
    const Lanes e = exp_unchecked(at_least(splat(0.0f) - magnitude(x), splat(-86.0f)));
    return at_least(x, splat(0.0f)) + log1p_unit(e);
}

inline Lanes apply(Function function, Lanes x) {
    switch (function) {
        case Function::kNone:
            return x;
        case Function::kRelu:
            return at_least(x, splat(0.0f));
        case Function::kElu:
            return elu(x);
        case Function::kGelu:
            return gelu(x);
        case Function::kGeluTanh:
            return gelu_tanh(x);
        case Function::kTanh:
            return tanh(x);
        case Function::kSigmoid:
            return sigmoid(x);
        case Function::kSilu:
            return times_sigmoid(x, x);
        case Function::kExp:
            return exp(x);
        case Function::kLog:
            return log(x);
        case Function::kSoftplus:
            return softplus(x);
    }
    return x;
}

}  // namespace sixteen
}  // namespace fastar::cpu::FASTAR_ISA
