// Runs of elements of any type as floats, and back.
#pragma once

#include <bit>
#include <cstring>

#include "cpu/heads.h"
#include "cpu/isa/vector.h"

namespace fastar::cpu::FASTAR_ISA {

inline float from_bfloat16(std::uint16_t bits) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

// To the nearest, ties to even; NaN stays NaN.
inline std::uint16_t to_bfloat16(float a) {
    const auto bits = std::bit_cast<std::uint32_t>(a);
    const std::uint32_t rounded = bits + 0x7fff + ((bits >> 16) & 1);
    return static_cast<std::uint16_t>((a == a ? rounded : bits | 0x400000) >> 16);
}

inline void widen_float16(const _Float16* source, float* out, std::int64_t count) {
    std::int64_t j = 0;
#if defined(__F16C__)
    for (; j + 8 <= count; j += 8) {
        const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + j));
        _mm256_storeu_ps(out + j, _mm256_cvtph_ps(narrow));
    }
#endif
    for (; j < count; ++j) out[j] = static_cast<float>(source[j]);
}

inline void narrow_float16(const float* source, _Float16* out, std::int64_t count) {
    std::int64_t j = 0;
#if defined(__F16C__)
    for (; j + 8 <= count; j += 8) {
        const __m128i narrow = _mm256_cvtps_ph(_mm256_loadu_ps(source + j), _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + j), narrow);
    }
#endif
    for (; j < count; ++j) out[j] = static_cast<_Float16>(source[j]);
}

// Elements [at, at + count) as floats: where they lie if they are floats, else in `scratch`.
inline const float* widen(HeadElement type, const void* data, std::int64_t at, std::int64_t count, float* scratch) {
    switch (type) {
        case HeadElement::kFloat32:
            return static_cast<const float*>(data) + at;
        case HeadElement::kBFloat16: {
            const auto* source = static_cast<const std::uint16_t*>(data) + at;
            for (std::int64_t j = 0; j < count; ++j) scratch[j] = from_bfloat16(source[j]);
            break;
        }
        case HeadElement::kFloat16:
            widen_float16(static_cast<const _Float16*>(data) + at, scratch, count);
            break;
        case HeadElement::kInt64: {
            const auto* source = static_cast<const std::int64_t*>(data) + at;
            for (std::int64_t j = 0; j < count; ++j) scratch[j] = static_cast<float>(source[j]);
            break;
        }
        case HeadElement::kUInt8: {
            const auto* source = static_cast<const std::uint8_t*>(data) + at;
            for (std::int64_t j = 0; j < count; ++j) scratch[j] = static_cast<float>(source[j]);
            break;
        }
    }
    return scratch;
}

// `count` floats into elements [at, at + count), rounded to the nearest.
inline void narrow(HeadElement type, const float* values, void* data, std::int64_t at, std::int64_t count) {
    if (type == HeadElement::kBFloat16) {
        auto* out = static_cast<std::uint16_t*>(data) + at;
        for (std::int64_t j = 0; j < count; ++j) out[j] = to_bfloat16(values[j]);
    } else if (type == HeadElement::kFloat16) {
        narrow_float16(values, static_cast<_Float16*>(data) + at, count);
    } else {
        std::memcpy(static_cast<float*>(data) + at, values, static_cast<std::size_t>(count) * sizeof(float));
    }
}

// Where elements from `at` on may be written as floats before they are narrowed: in place, or in `scratch`.
inline float* staging(HeadElement type, void* data, std::int64_t at, float* scratch) {
    return type == HeadElement::kFloat32 ? static_cast<float*>(data) + at : scratch;
}

// Moves what was staged into its place, if it is not there.
inline void commit(HeadElement type, const float* staged, void* data, std::int64_t at, std::int64_t count) {
    if (type != HeadElement::kFloat32) narrow(type, staged, data, at, count);
}

}  // namespace fastar::cpu::FASTAR_ISA
