// exp, log and relatives on vectors of floats. Each states its greatest error, in units in the last place of the
// result, which tests/native/test_vector_math.py holds it to at every level. NaN stays NaN.
//
// The polynomials are minimax fits of the relative error over the stated interval.
#pragma once

#include <limits>

#include "cpu/isa/vector.h"

namespace fastar::cpu::FASTAR_ISA {

// ln 2 in two parts: n times the first is exact for the n that occur.
inline constexpr float kLn2High = 0x1.62e4p-1f;
inline constexpr float kLn2Low = 0x1.7f7d1cp-20f;

// exp(x) for |x| <= 105, or NaN; 2 ulp, and one unit of the smallest denormal.
inline Floats exp_within(Floats x) {
    // Adding 1.5 * 2^23 rounds to an integer in the current mode, to nearest.
    const Floats magic = splat(0x1.8p23f);
    const Floats n = fma(x, splat(0x1.715476p0f), magic) - magic;
    const Floats r = fnma(n, splat(kLn2Low), fnma(n, splat(kLn2High), x));
    // (exp(r) - 1 - r) / r^2 for |r| <= ln(2) / 2.
    Floats p = fma(r, splat(0.0013813144760206342f), splat(0.008369418792426586f));
    p = fma(r, p, splat(0.04166845604777336f));
    p = fma(r, p, splat(0.16666515171527863f));
    p = fma(r, p, splat(0.4999999403953552f));
    return scale_by_power(fma(r * r, p, r) + splat(1.0f), n);
}

// exp(x): 2 ulp, and one unit of the smallest denormal.
inline Floats exp(Floats x) {
    return exp_within(min(splat(105.0f), max(splat(-105.0f), x)));
}

// 1 / (1 + exp(-x)): 3 ulp for x >= -87; below it stays at 1.6e-38.
inline Floats sigmoid(Floats x) {
    // Within these bounds 1 + exp(-x) and its reciprocal are normal numbers.
    const Floats bounded = min(splat(87.0f), max(splat(-87.0f), x));
    return reciprocal(splat(1.0f) + exp_within(splat(0.0f) - bounded));
}

// tanh(x): 3 ulp.
inline Floats tanh(Floats x) {
    const Floats size = abs(x);
    const Floats z = x * x;
    // (tanh(x) - x) / x^3 for |x| <= 0.625, in x^2: near 0 the other form would cancel.
    Floats p = fma(z, splat(-0.005704986862838268f), splat(0.02063908614218235f));
    p = fma(z, p, splat(-0.05373971536755562f));
    p = fma(z, p, splat(0.13331441581249237f));
    p = fma(z, p, splat(-0.3333328068256378f));
    const Floats near = fma(x * z, p, x);
    // From 10 on the result is 1.
    const Floats e = exp_within(splat(2.0f) * min(splat(10.0f), size));
    const Floats far = fnma(splat(2.0f), reciprocal(e + splat(1.0f)), splat(1.0f));
    // A NaN compares as false, and must take the branch that keeps it.
    return copysign(size >= splat(0.625f) ? far : near, x);
}

// log(x): 2 ulp; -infinity at 0, NaN below.
inline Floats log(Floats x) {
    // Denormals are brought into range first.
    const Ints tiny = x < splat(std::numeric_limits<float>::min());
    const Floats y = tiny ? x * splat(0x1p24f) : x;
    // y = 2^n m with m in [sqrt(1/2), sqrt(2)): the difference to the bits of sqrt(1/2) carries into the exponent.
    const Ints offset = bits_of(y) - 0x3f3504f3;
    const Ints exponent = (offset >> 23) - (tiny & 24);
    const Floats m = from_bits((offset & 0x007fffff) + 0x3f3504f3);
    const Floats n = __builtin_convertvector(exponent, Floats);
    // log(m) = 2 atanh(s); here (2 atanh(s) - 2 s) / s^3 for |s| <= 0.1716, in s^2.
    const Floats f = m - splat(1.0f);
    const Floats s = f / (splat(2.0f) + f);
    const Floats z = s * s;
    Floats p = fma(z, splat(0.29898789525032043f), splat(0.39976608753204346f));
    p = fma(z, p, splat(0.6666678190231323f));
    // 2 s = f - s f, of which f is exact.
    const Floats low = fma(n, splat(kLn2Low), s * (z * p - f));
    const Floats result = fma(n, splat(kLn2High), f + low);
    const Floats infinity = splat(std::numeric_limits<float>::infinity());
    const Floats none = splat(std::numeric_limits<float>::quiet_NaN());
    const Floats edge = x == splat(0.0f) ? splat(0.0f) - infinity : (x == infinity ? infinity : none);
    const Ints ordinary = (x > splat(0.0f)) & (x < infinity);
    return ordinary ? result : edge;
}

// log(1 + x): 3 ulp; -infinity at -1, NaN below; +0 at -0.
inline Floats log1p(Floats x) {
    const Floats one = splat(1.0f);
    const Floats u = one + x;
    // What rounding took from 1 + x, as a first-order correction; where u is infinite or 0 there is none.
    const Floats lost = x - (u - one);
    const Floats correction = lost / u;
    const Ints finite = (u > splat(0.0f)) & (u < splat(std::numeric_limits<float>::infinity()));
    return finite ? log(u) + correction : log(u);
}

// log(1 + exp(x)): 3 ulp.
inline Floats softplus(Floats x) {
    return max(splat(0.0f), x) + log1p(exp(splat(0.0f) - abs(x)));
}

}  // namespace fastar::cpu::FASTAR_ISA
