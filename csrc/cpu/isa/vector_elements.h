// Float32, bfloat16 and float16 in memory, as one vector of floats at this vector level.
#pragma once

#include <bit>
#include <cstdint>

#include "cpu/isa/vector.h"

namespace fastar::cpu::FASTAR_ISA {

// As bits; rounding is to nearest even, and a NaN stays one.
struct Bfloat16 {
    std::uint16_t bits;
};
using Float16 = _Float16;

using Halves = std::uint16_t __attribute__((vector_size(2 * kLanes)));

inline Halves load_halves(const void* p) {
    Halves a;
    __builtin_memcpy(&a, p, sizeof a);
    return a;
}

inline Ints zero_extend(Halves a) {
    return __builtin_convertvector(a, Ints);
}

inline Floats load(const Bfloat16* p) {
    return from_bits(zero_extend(load_halves(p)) << 16);
}
inline void store(Bfloat16* p, Floats a) {
#if defined(__AVX512BF16__)
    // Takes values below the least normal one for zero.
    const __m256bh halves = _mm512_cvtneps_pbh(a);
    __builtin_memcpy(p, &halves, sizeof halves);
#else
    const Ints bits = bits_of(a);
    const Ints rounded = bits + 0x7fff + ((bits >> 16) & 1);
    const Ints nan = (bits & 0x7fffffff) > 0x7f800000;
    const Halves halves = __builtin_convertvector((nan ? bits | 0x400000 : rounded) >> 16, Halves);
    __builtin_memcpy(p, &halves, sizeof halves);
#endif
}

inline Floats load(const Float16* p) {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
    Floats a;
    for (int i = 0; i < kLanes; ++i) a[i] = static_cast<float>(p[i]);
    return a;
#endif
}
inline void store(Float16* p, Floats a) {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < kLanes; ++i) p[i] = static_cast<Float16>(a[i]);
#endif
}

// 0 < count; one vector at most.
template <typename T>
Floats load_elements(const T* p, std::int64_t count) {
    if (count >= kLanes) return load(p);
    if constexpr (sizeof(T) == sizeof(float)) {
        return load_first(p, count);
    } else {
        T near[kLanes] = {};
        __builtin_memcpy(near, p, static_cast<std::size_t>(count) * sizeof(T));
        return load(near);
    }
}
template <typename T>
void store_elements(T* p, Floats a, std::int64_t count) {
    if (count >= kLanes) return store(p, a);
    if constexpr (sizeof(T) == sizeof(float)) {
        store_first(p, a, count);
    } else {
        T near[kLanes];
        store(near, a);
        __builtin_memcpy(p, near, static_cast<std::size_t>(count) * sizeof(T));
    }
}

inline float widen(float a) {
    return a;
}
inline float widen(Float16 a) {
    return static_cast<float>(a);
}
inline float widen(Bfloat16 a) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(a.bits) << 16);
}

template <typename T>
T narrow(float a) {
    T near[kLanes];
    store(near, splat(a));
    return near[0];
}

}  // namespace fastar::cpu::FASTAR_ISA
