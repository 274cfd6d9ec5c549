// Sixteen float lanes at every vector level (vector.h has one register of each), so that the layout of packed weights
// is the same at all of them: one AVX-512 register, two of AVX2, or an array that the compiler vectorises as it can.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace fastar::cpu::FASTAR_ISA {
// Inline, so that these and the namesakes in vector.h are different functions to the linker.
inline namespace sixteen {

constexpr std::int64_t kLanes = 16;

#if defined(__AVX512F__)

struct Lanes {
    __m512 v;
};
struct Mask {
    __mmask16 v;
};

inline __mmask16 first_lanes(std::int64_t n) {
    return static_cast<__mmask16>(n >= kLanes ? 0xffff : (1 << n) - 1);
}

inline Mask all_lanes(bool yes) {
    return {static_cast<__mmask16>(-static_cast<int>(yes))};
}
inline Lanes splat(float x) {
    return {_mm512_set1_ps(x)};
}
inline Lanes load(const float* p) {
    return {_mm512_loadu_ps(p)};
}
inline Lanes load_first(const float* p, std::int64_t n, float rest = 0.0f) {
    return {_mm512_mask_loadu_ps(_mm512_set1_ps(rest), first_lanes(n), p)};
}
inline void store(float* p, Lanes a) {
    _mm512_storeu_ps(p, a.v);
}
inline void store_first(float* p, Lanes a, std::int64_t n) {
    _mm512_mask_storeu_ps(p, first_lanes(n), a.v);
}
inline Lanes operator+(Lanes a, Lanes b) {
    return {_mm512_add_ps(a.v, b.v)};
}
inline Lanes operator-(Lanes a, Lanes b) {
    return {_mm512_sub_ps(a.v, b.v)};
}
inline Lanes operator*(Lanes a, Lanes b) {
    return {_mm512_mul_ps(a.v, b.v)};
}
inline Lanes operator/(Lanes a, Lanes b) {
    return {_mm512_div_ps(a.v, b.v)};
}
inline Mask operator<(Lanes a, Lanes b) {
    return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)};
}
// a b + c, rounded once where the level has it.
inline Lanes fma(Lanes a, Lanes b, Lanes c) {
    return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
// a b - c
inline Lanes fused_difference(Lanes a, Lanes b, Lanes c) {
    return {_mm512_fmsub_ps(a.v, b.v, c.v)};
}
// Where a lane of `a` is not a number, so is the result: minimum and maximum return their second operand then.
inline Lanes at_least(Lanes a, Lanes low) {
    return {_mm512_max_ps(low.v, a.v)};
}
inline Lanes at_most(Lanes a, Lanes high) {
    return {_mm512_min_ps(high.v, a.v)};
}
inline Lanes pick(Mask m, Lanes yes, Lanes no) {
    return {_mm512_mask_blend_ps(m.v, no.v, yes.v)};
}
inline Lanes round_even(Lanes a) {
    return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline Lanes magnitude(Lanes a) {
    return {_mm512_abs_ps(a.v)};
}
// a with the sign of s.
inline Lanes with_sign(Lanes a, Lanes s) {
    const __m512i sign = _mm512_set1_epi32(static_cast<int>(0x80000000u));
    return {
        _mm512_castsi512_ps(_mm512_ternarylogic_epi32(sign, _mm512_castps_si512(s.v), _mm512_castps_si512(a.v), 0xCA))};
}
// a 2^n for whole n.
inline Lanes scale_by_power(Lanes a, Lanes n) {
    return {_mm512_scalef_ps(a.v, n.v)};
}
// a 2^n, where the lowest bits of `shifted` are n and neither a nor the result leaves the normal numbers.
inline Lanes add_to_exponent(Lanes a, Lanes shifted) {
    const __m512i n = _mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23);
    return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a.v), n))};
}
// floor(log2 a) for normal a above 0.
inline Lanes exponent_of(Lanes a) {
    return {_mm512_getexp_ps(a.v)};
}
inline Lanes square_root(Lanes a) {
    return {_mm512_sqrt_ps(a.v)};
}
// 1 / a for normal a below 2^126: an estimate of 14 bits and one Newton step, which costs half of a division.
inline Lanes reciprocal(Lanes a) {
    const __m512 y = _mm512_rcp14_ps(a.v);
    return {_mm512_fmadd_ps(y, _mm512_fnmadd_ps(a.v, y, _mm512_set1_ps(1.0f)), y)};
}
inline float sum(Lanes a) {
    return _mm512_reduce_add_ps(a.v);
}
// The sum of all lanes, in each of them.
inline Lanes sum_everywhere(Lanes a) {
    __m512 v = _mm512_add_ps(a.v, _mm512_shuffle_f32x4(a.v, a.v, 0x4e));
    v = _mm512_add_ps(v, _mm512_shuffle_f32x4(v, v, 0xb1));
    v = _mm512_add_ps(v, _mm512_permute_ps(v, 0x4e));
    return {_mm512_add_ps(v, _mm512_permute_ps(v, 0xb1))};
}
inline float largest(Lanes a) {
    return _mm512_reduce_max_ps(a.v);
}

#elif defined(__AVX2__)

struct Lanes {
    __m256 lo, hi;
};
struct Mask {
    __m256 lo, hi;
};

inline Mask all_lanes(bool yes) {
    const __m256 m = _mm256_castsi256_ps(_mm256_set1_epi32(-static_cast<int>(yes)));
    return {m, m};
}
inline Lanes splat(float x) {
    return {_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
inline Lanes load(const float* p) {
    return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
inline void store(float* p, Lanes a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
inline Lanes operator+(Lanes a, Lanes b) {
    return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
inline Lanes operator-(Lanes a, Lanes b) {
    return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
inline Lanes operator*(Lanes a, Lanes b) {
    return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
inline Lanes operator/(Lanes a, Lanes b) {
    return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
inline Mask operator<(Lanes a, Lanes b) {
    return {_mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ)};
}
inline Lanes fma(Lanes a, Lanes b, Lanes c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline Lanes fused_difference(Lanes a, Lanes b, Lanes c) {
    return {_mm256_fmsub_ps(a.lo, b.lo, c.lo), _mm256_fmsub_ps(a.hi, b.hi, c.hi)};
}
inline Lanes at_least(Lanes a, Lanes low) {
    return {_mm256_max_ps(low.lo, a.lo), _mm256_max_ps(low.hi, a.hi)};
}
inline Lanes at_most(Lanes a, Lanes high) {
    return {_mm256_min_ps(high.lo, a.lo), _mm256_min_ps(high.hi, a.hi)};
}
inline Lanes pick(Mask m, Lanes yes, Lanes no) {
    return {_mm256_blendv_ps(no.lo, yes.lo, m.lo), _mm256_blendv_ps(no.hi, yes.hi, m.hi)};
}
inline Lanes round_even(Lanes a) {
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.lo, kNearest), _mm256_round_ps(a.hi, kNearest)};
}
inline Lanes magnitude(Lanes a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
inline Lanes with_sign(Lanes a, Lanes s) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_or_ps(_mm256_andnot_ps(sign, a.lo), _mm256_and_ps(sign, s.lo)),
            _mm256_or_ps(_mm256_andnot_ps(sign, a.hi), _mm256_and_ps(sign, s.hi))};
}
inline __m256 times_power(__m256 a, __m256 n) {
    // Two factors, since 2^n alone leaves the range of float for n below -126.
    const __m256i whole = _mm256_cvtps_epi32(n);
    const __m256i half = _mm256_srai_epi32(whole, 1);
    const __m256i rest = _mm256_sub_epi32(whole, half);
    const __m256i bias = _mm256_set1_epi32(127);
    const __m256 first = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    const __m256 second = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
    return _mm256_mul_ps(_mm256_mul_ps(a, first), second);
}
inline Lanes scale_by_power(Lanes a, Lanes n) {
    return {times_power(a.lo, n.lo), times_power(a.hi, n.hi)};
}
inline __m256 exponent_sum(__m256 a, __m256 shifted) {
    const __m256i n = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), n));
}
inline Lanes add_to_exponent(Lanes a, Lanes shifted) {
    return {exponent_sum(a.lo, shifted.lo), exponent_sum(a.hi, shifted.hi)};
}
inline __m256 exponent_bits(__m256 a) {
    const __m256i exponent = _mm256_srli_epi32(_mm256_castps_si256(a), 23);
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(exponent, _mm256_set1_epi32(127)));
}
inline Lanes exponent_of(Lanes a) {
    return {exponent_bits(a.lo), exponent_bits(a.hi)};
}
inline Lanes square_root(Lanes a) {
    return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)};
}
inline Lanes reciprocal(Lanes a) {
    return splat(1.0f) / a;
}
inline float sum(Lanes a) {
    const __m256 eight = _mm256_add_ps(a.lo, a.hi);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline Lanes sum_everywhere(Lanes a) {
    return splat(sum(a));
}
inline float largest(Lanes a) {
    const __m256 eight = _mm256_max_ps(a.lo, a.hi);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

#else

struct Lanes {
    float v[kLanes];
};
struct Mask {
    bool v[kLanes];
};

template <typename F>
inline Lanes each(F f) {
    Lanes r;
    for (int i = 0; i < kLanes; ++i) r.v[i] = f(i);
    return r;
}

inline Mask all_lanes(bool yes) {
    Mask m;
    for (bool& one : m.v) one = yes;
    return m;
}
inline Lanes splat(float x) {
    return each([x](int) { return x; });
}
inline Lanes load(const float* p) {
    Lanes r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
}
inline void store(float* p, Lanes a) {
    std::memcpy(p, a.v, sizeof a.v);
}
inline Lanes operator+(Lanes a, Lanes b) {
    return each([&](int i) { return a.v[i] + b.v[i]; });
}
inline Lanes operator-(Lanes a, Lanes b) {
    return each([&](int i) { return a.v[i] - b.v[i]; });
}
inline Lanes operator*(Lanes a, Lanes b) {
    return each([&](int i) { return a.v[i] * b.v[i]; });
}
inline Lanes operator/(Lanes a, Lanes b) {
    return each([&](int i) { return a.v[i] / b.v[i]; });
}
inline Mask operator<(Lanes a, Lanes b) {
    Mask m;
    for (int i = 0; i < kLanes; ++i) m.v[i] = a.v[i] < b.v[i];
    return m;
}
inline Lanes fma(Lanes a, Lanes b, Lanes c) {
    return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
inline Lanes fused_difference(Lanes a, Lanes b, Lanes c) {
    return each([&](int i) { return a.v[i] * b.v[i] - c.v[i]; });
}
inline Lanes at_least(Lanes a, Lanes low) {
    return each([&](int i) { return low.v[i] > a.v[i] ? low.v[i] : a.v[i]; });
}
inline Lanes at_most(Lanes a, Lanes high) {
    return each([&](int i) { return high.v[i] < a.v[i] ? high.v[i] : a.v[i]; });
}
inline Lanes pick(Mask m, Lanes yes, Lanes no) {
    return each([&](int i) { return m.v[i] ? yes.v[i] : no.v[i]; });
}
inline Lanes round_even(Lanes a) {
    // Adding 1.5 * 2^23 leaves no bits below the point; the arguments here are far smaller.
    return each([&](int i) { return a.v[i] + 12582912.0f - 12582912.0f; });
}
inline Lanes magnitude(Lanes a) {
    return each([&](int i) { return __builtin_fabsf(a.v[i]); });
}
inline Lanes with_sign(Lanes a, Lanes s) {
    return each([&](int i) { return __builtin_copysignf(a.v[i], s.v[i]); });
}
inline Lanes scale_by_power(Lanes a, Lanes n) {
    return each([&](int i) {
        const auto whole = static_cast<std::int32_t>(n.v[i]);
        const std::int32_t half = whole >> 1;
        const std::uint32_t bits[2] = {static_cast<std::uint32_t>(half + 127) << 23,
                                       static_cast<std::uint32_t>(whole - half + 127) << 23};
        float factor[2];
        std::memcpy(factor, bits, sizeof bits);
        return a.v[i] * factor[0] * factor[1];
    });
}
inline Lanes add_to_exponent(Lanes a, Lanes shifted) {
    std::uint32_t bits[kLanes];
    std::uint32_t n[kLanes];
    std::memcpy(bits, a.v, sizeof bits);
    std::memcpy(n, shifted.v, sizeof n);
    for (int i = 0; i < kLanes; ++i) bits[i] += n[i] << 23;
    std::memcpy(a.v, bits, sizeof bits);
    return a;
}
inline Lanes exponent_of(Lanes a) {
    std::uint32_t bits[kLanes];
    std::memcpy(bits, a.v, sizeof bits);
    for (int i = 0; i < kLanes; ++i) a.v[i] = static_cast<float>(static_cast<std::int32_t>(bits[i] >> 23) - 127);
    return a;
}
inline Lanes square_root(Lanes a) {
    return each([&](int i) { return __builtin_sqrtf(a.v[i]); });
}
inline Lanes reciprocal(Lanes a) {
    return splat(1.0f) / a;
}
inline float sum(Lanes a) {
    for (int width = kLanes / 2; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) a.v[i] += a.v[i + width];
    }
    return a.v[0];
}
inline Lanes sum_everywhere(Lanes a) {
    return splat(sum(a));
}
inline float largest(Lanes a) {
    float m = a.v[0];
    for (float x : a.v) m = x > m ? x : m;
    return m;
}

#endif

#if !defined(__AVX512F__)
inline Lanes load_first(const float* p, std::int64_t n, float rest = 0.0f) {
    if (n >= kLanes) return load(p);
    float whole[kLanes];
    for (float& one : whole) one = rest;
    std::memcpy(whole, p, static_cast<std::size_t>(n) * sizeof(float));
    return load(whole);
}
inline void store_first(float* p, Lanes a, std::int64_t n) {
    if (n >= kLanes) return store(p, a);
    float whole[kLanes];
    store(whole, a);
    std::memcpy(p, whole, static_cast<std::size_t>(n) * sizeof(float));
}
#endif

}  // namespace sixteen
}  // namespace fastar::cpu::FASTAR_ISA
