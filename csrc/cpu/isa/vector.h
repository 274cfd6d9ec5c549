// One vector of floats at this vector level, and what can be done with it.
//
// Floats is a vector type of the compiler: + - * / and comparisons work on it as on a float. Comparisons give Ints, all
// ones where true, which `mask ? a : b` takes. Only what those operators cannot say is written per level.
#pragma once

#include <cstdint>
#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace fastar::cpu::FASTAR_ISA {

#if defined(__AVX512F__)

inline constexpr int kLanes = 16;
using Floats = __m512;

inline Floats splat(float a) {
    return _mm512_set1_ps(a);
}
inline Floats load(const float* p) {
    return _mm512_loadu_ps(p);
}
inline void store(float* p, Floats a) {
    _mm512_storeu_ps(p, a);
}

inline __mmask16 first_lanes(std::int64_t count) {
    return static_cast<__mmask16>((1u << count) - 1);
}
inline Floats load_first(const float* p, std::int64_t count) {
    return _mm512_maskz_loadu_ps(first_lanes(count), p);
}
inline void store_first(float* p, Floats a, std::int64_t count) {
    _mm512_mask_storeu_ps(p, first_lanes(count), a);
}

inline Floats fma(Floats a, Floats b, Floats c) {
    return _mm512_fmadd_ps(a, b, c);
}
inline Floats fnma(Floats a, Floats b, Floats c) {
    return _mm512_fnmadd_ps(a, b, c);
}
inline Floats min(Floats a, Floats b) {
    return _mm512_min_ps(a, b);
}
inline Floats max(Floats a, Floats b) {
    return _mm512_max_ps(a, b);
}

#elif defined(__AVX2__)

inline constexpr int kLanes = 8;
using Floats = __m256;

inline Floats splat(float a) {
    return _mm256_set1_ps(a);
}
inline Floats load(const float* p) {
    return _mm256_loadu_ps(p);
}
inline void store(float* p, Floats a) {
    _mm256_storeu_ps(p, a);
}

inline __m256i first_lanes(std::int64_t count) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane);
}
inline Floats load_first(const float* p, std::int64_t count) {
    return _mm256_maskload_ps(p, first_lanes(count));
}
inline void store_first(float* p, Floats a, std::int64_t count) {
    _mm256_maskstore_ps(p, first_lanes(count), a);
}

inline Floats fma(Floats a, Floats b, Floats c) {
    return _mm256_fmadd_ps(a, b, c);
}
inline Floats fnma(Floats a, Floats b, Floats c) {
    return _mm256_fnmadd_ps(a, b, c);
}
inline Floats min(Floats a, Floats b) {
    return _mm256_min_ps(a, b);
}
inline Floats max(Floats a, Floats b) {
    return _mm256_max_ps(a, b);
}

#else

inline constexpr int kLanes = 4;
using Floats = float __attribute__((vector_size(16)));

inline Floats splat(float a) {
    return Floats{a, a, a, a};
}
inline Floats load(const float* p) {
    Floats a;
    __builtin_memcpy(&a, p, sizeof a);
    return a;
}
inline void store(float* p, Floats a) {
    __builtin_memcpy(p, &a, sizeof a);
}

inline Floats load_first(const float* p, std::int64_t count) {
    Floats a{};
    for (int i = 0; i < count; ++i) a[i] = p[i];
    return a;
}
inline void store_first(float* p, Floats a, std::int64_t count) {
    for (int i = 0; i < count; ++i) p[i] = a[i];
}

inline Floats fma(Floats a, Floats b, Floats c) {
    return a * b + c;
}
inline Floats fnma(Floats a, Floats b, Floats c) {
    return c - a * b;
}
inline Floats min(Floats a, Floats b) {
    return a < b ? a : b;
}
inline Floats max(Floats a, Floats b) {
    return a > b ? a : b;
}

#endif

using Ints = std::int32_t __attribute__((vector_size(sizeof(Floats))));

// The vector types carry an attribute that template arguments lose, hence the builtin in place of std::bit_cast.
inline Ints bits_of(Floats a) {
    return __builtin_bit_cast(Ints, a);
}
inline Floats from_bits(Ints a) {
    return __builtin_bit_cast(Floats, a);
}

// load_first and store_first take 0 < count < kLanes; these take any count > 0 and touch one vector at most.
inline Floats load_upto(const float* p, std::int64_t count) {
    return count >= kLanes ? load(p) : load_first(p, count);
}
inline void store_upto(float* p, Floats a, std::int64_t count) {
    if (count >= kLanes) {
        store(p, a);
    } else {
        store_first(p, a, count);
    }
}

inline Floats abs(Floats a) {
    return from_bits(bits_of(a) & 0x7fffffff);
}

// |magnitude| with the sign of `sign`.
inline Floats copysign(Floats magnitude, Floats sign) {
    return from_bits((bits_of(magnitude) & 0x7fffffff) | (bits_of(sign) & static_cast<std::int32_t>(0x80000000)));
}

// a[0] b[0] a[1] b[1]...
inline void interleave(Floats a, Floats b, Floats& low, Floats& high) {
#if defined(__AVX512F__)
    low = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    high = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif defined(__AVX2__)
    low = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
    high = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
    low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
    high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
}

// The sum of the lanes, always in the same order: halves are folded onto each other.
inline float sum(Floats a) {
#if defined(__AVX512F__)
    const __m256 folded = __builtin_shufflevector(a, a, 0, 1, 2, 3, 4, 5, 6, 7) +
                          __builtin_shufflevector(a, a, 8, 9, 10, 11, 12, 13, 14, 15);
#elif defined(__AVX2__)
    const __m256 folded = a;
#endif
#if defined(__AVX2__)
    const __m128 quarter =
        __builtin_shufflevector(folded, folded, 0, 1, 2, 3) + __builtin_shufflevector(folded, folded, 4, 5, 6, 7);
#else
    const Floats quarter = a;
#endif
    return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}

// a * 2^n for integral n in [-252, 254].
inline Floats scale_by_power(Floats a, Floats n) {
#if defined(__AVX512F__)
    return _mm512_scalef_ps(a, n);
#else
    // Two factors, since 2^n itself need not be a float.
    const Ints whole = __builtin_convertvector(n, Ints);
    const Ints half = whole >> 1;
    return a * from_bits((half + 127) << 23) * from_bits((whole - half + 127) << 23);
#endif
}

// 1 / a to the last unit or so, for a in [2^-125, 2^126].
inline Floats reciprocal(Floats a) {
#if defined(__AVX512F__)
    // 14 bits and one step of Newton's: a third of the time of a division.
    const Floats r = _mm512_rcp14_ps(a);
    return fma(r, fnma(a, r, splat(1.0f)), r);
#else
    return splat(1.0f) / a;
#endif
}

}  // namespace fastar::cpu::FASTAR_ISA
