// Weights of less than 32 bits: how inputs are staged for them, and one step of their sums.
//
// A word of 32 bits holds an output's weights for two (bfloat16) or four (int8) inputs in a row. bfloat16 weights meet
// inputs rounded to bfloat16; int8 weights, scaled per output, meet inputs scaled per row, and their sums are exact.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/executor/kernels.h"
#include "cpu/isa/lanes.h"

namespace fastar::cpu::FASTAR_ISA {
inline namespace sixteen {

// Word k of row r is words[r stride + k]; the sums run over first_word .. last_word.
struct StagedInputs {
    const std::uint32_t* words;
    std::int64_t stride;
    std::int64_t first_word;
    std::int64_t last_word;
    const float* scales;
};

inline std::uint16_t to_bfloat16(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if (x != x) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
    return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float half_of_word(std::uint32_t word, bool upper) {
    const std::uint32_t bits = upper ? word & 0xffff0000u : word << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// One input at a time, as it is.
struct Float32Format {
    using Sum = Lanes;
    using Weight = float;
    using Input = float;
    using Spread = Lanes;

    static Lanes load(const float* w) { return FASTAR_ISA::load(w); }
    static Lanes spread(float x) { return splat(x); }
    static Lanes step(Lanes w, Lanes x, Lanes sum) { return fma(w, x, sum); }
};

struct Bfloat16Format {
    static constexpr std::int64_t kPerWord = 2;
    using Sum = Lanes;
    using Weight = std::uint32_t;
    using Input = std::uint32_t;

    static void round(const float* x, std::uint16_t* out, std::int64_t count) {
        std::int64_t k = 0;
#if defined(__AVX512BF16__)
        for (; k + kLanes <= count; k += kLanes) {
            const __m256bh y = _mm512_cvtneps_pbh(_mm512_loadu_ps(x + k));
            std::memcpy(out + k, &y, sizeof y);
        }
#endif
        for (; k < count; ++k) out[k] = to_bfloat16(x[k]);
    }

    // Inputs between and beyond the segments are zeros: a tap that is outside adds nothing.
    static StagedInputs stage(const MatrixArguments& a) {
        auto* words = static_cast<std::uint32_t*>(a.staging);
        const std::int64_t stride = a.inputs / kPerWord;
        if (a.segment_count == 0) return {words, stride, 0, 0, nullptr};
        const Segment& last = a.segments[a.segment_count - 1];
        const std::int64_t begin = a.segments[0].first / kPerWord;
        const std::int64_t end = (last.first + last.count + kPerWord - 1) / kPerWord;
        for (std::int64_t r = 0; r < a.rows; ++r) {
            auto* out = reinterpret_cast<std::uint16_t*>(words + r * stride);
            std::int64_t at = begin * kPerWord;
            for (std::int64_t s = 0; s < a.segment_count; ++s) {
                const Segment& segment = a.segments[s];
                std::fill(out + at, out + segment.first, std::uint16_t{0});
                round(segment.x + r * a.x_stride, out + segment.first, segment.count);
                at = segment.first + segment.count;
            }
            std::fill(out + at, out + end * kPerWord, std::uint16_t{0});
        }
        return {words, stride, begin, end, nullptr};
    }

    static Lanes start(const MatrixArguments& a, std::int64_t row, std::int64_t output) {
        return a.start ? load_first(a.start + row * a.start_stride + output, a.outputs - output) : splat(0.0f);
    }

    static Lanes total(const MatrixArguments&, const float*, std::int64_t, std::int64_t, Lanes sum) { return sum; }

#if defined(__AVX512F__)
    static __m512i load(const std::uint32_t* w) { return _mm512_loadu_si512(w); }

#if defined(__AVX512BF16__)
    using Spread = __m512i;

    static __m512i spread(std::uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }

    static Lanes step(__m512i w, __m512i x, Lanes sum) {
        return {_mm512_dpbf16_ps(sum.v, __builtin_bit_cast(__m512bh, w), __builtin_bit_cast(__m512bh, x))};
    }
#else
    using Spread = std::uint32_t;

    static std::uint32_t spread(std::uint32_t x) { return x; }

    static Lanes step(__m512i w, std::uint32_t x, Lanes sum) {
        const __m512i upper = _mm512_and_si512(w, _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
        const __m512 first = _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
        sum.v = _mm512_fmadd_ps(first, _mm512_set1_ps(half_of_word(x, false)), sum.v);
        return {_mm512_fmadd_ps(_mm512_castsi512_ps(upper), _mm512_set1_ps(half_of_word(x, true)), sum.v)};
    }
#endif
#else
    using Spread = std::uint32_t;
    struct Pair {
        Lanes first, second;
    };

    static std::uint32_t spread(std::uint32_t x) { return x; }

    static Pair load(const std::uint32_t* w) {
        float first[kLanes];
        float second[kLanes];
        for (int i = 0; i < kLanes; ++i) {
            first[i] = half_of_word(w[i], false);
            second[i] = half_of_word(w[i], true);
        }
        return {FASTAR_ISA::load(first), FASTAR_ISA::load(second)};
    }

    static Lanes step(const Pair& w, std::uint32_t x, Lanes sum) {
        sum = fma(w.first, splat(half_of_word(x, false)), sum);
        return fma(w.second, splat(half_of_word(x, true)), sum);
    }
#endif
};

struct Int8Format {
    static constexpr std::int64_t kPerWord = 4;
    using Weight = std::uint32_t;
    using Input = std::uint32_t;
    // What makes a signed input unsigned, as the instruction asks; the packed weights bring 128 times their sum along.
    static constexpr int kShift = 128;
    struct Sum {
#if defined(__AVX512F__)
        __m512i v;
#else
        std::int32_t v[kLanes];
#endif
    };

    static StagedInputs stage(const MatrixArguments& a) {
        auto* words = static_cast<std::uint32_t*>(a.staging);
        const std::int64_t stride = a.inputs / kPerWord;
        auto* scales = reinterpret_cast<float*>(words + a.rows * stride);
        for (std::int64_t r = 0; r < a.rows; ++r) {
            Lanes top = splat(0.0f);
            for (std::int64_t s = 0; s < a.segment_count; ++s) {
                const float* x = a.segments[s].x + r * a.x_stride;
                for (std::int64_t k = 0; k < a.segments[s].count; k += kLanes) {
                    top = at_least(magnitude(load_first(x + k, a.segments[s].count - k)), top);
                }
            }
            const float size = largest(top);
            scales[r] = size / 127.0f;
            const float factor = size > 0.0f ? 127.0f / size : 0.0f;
            auto* out = reinterpret_cast<std::uint8_t*>(words + r * stride);
            std::fill(out, out + a.inputs, static_cast<std::uint8_t>(kShift));
            for (std::int64_t s = 0; s < a.segment_count; ++s) {
                quantise(a.segments[s].x + r * a.x_stride, factor, out + a.segments[s].first, a.segments[s].count);
            }
        }
        return {words, stride, 0, stride, scales};
    }

    static void quantise(const float* x, float factor, std::uint8_t* out, std::int64_t count) {
        std::int64_t k = 0;
#if defined(__AVX512F__)
        for (; k + kLanes <= count; k += kLanes) {
            const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + k), _mm512_set1_ps(factor)));
            const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_add_epi32(whole, _mm512_set1_epi32(kShift)));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out + k), bytes);
        }
#endif
        // Adding 1.5 * 2^23 rounds to the nearest whole number, ties to even, as the instruction above does.
        for (; k < count; ++k) {
            const float whole = x[k] * factor + 12582912.0f - 12582912.0f;
            out[k] = static_cast<std::uint8_t>(static_cast<int>(whole) + kShift);
        }
    }

    static Sum start(const MatrixArguments&, std::int64_t, std::int64_t) { return Sum{}; }

    // The second half of `scales` holds 128 times the sum of an output's weights, as int32. A vector that is not a
    // number has a scale that is not one either.
    static Lanes total(const MatrixArguments& a, const float* x_scales, std::int64_t row, std::int64_t output,
                       Sum sum) {
        const std::int64_t count = std::min(kLanes, a.outputs - output);
        const Lanes shifts = load_first(a.scales + a.outputs + output, count);
        float exact[kLanes];
        std::int32_t raw[kLanes];
        std::int32_t shift[kLanes];
        std::memcpy(raw, &sum, sizeof raw);
        std::memcpy(shift, &shifts, sizeof shift);
        for (int i = 0; i < kLanes; ++i) exact[i] = static_cast<float>(raw[i] - shift[i]);
        const Lanes scale = load_first(a.scales + output, count) * splat(x_scales[row]);
        const Lanes start = a.start ? load_first(a.start + row * a.start_stride + output, count) : splat(0.0f);
        return fma(FASTAR_ISA::load(exact), scale, start);
    }

#if defined(__AVX512VNNI__)
    using Spread = __m512i;

    static __m512i load(const std::uint32_t* w) { return _mm512_loadu_si512(w); }
    static __m512i spread(std::uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
    static Sum step(__m512i w, __m512i x, Sum sum) { return {_mm512_dpbusd_epi32(sum.v, x, w)}; }
#else
    using Spread = std::uint32_t;
    struct Words {
        std::uint32_t v[kLanes];
    };

    static std::uint32_t spread(std::uint32_t x) { return x; }

    static Words load(const std::uint32_t* w) {
        Words words;
        std::memcpy(words.v, w, sizeof words.v);
        return words;
    }

    static Sum step(const Words& w, std::uint32_t x, Sum sum) {
        std::int32_t total[kLanes];
        std::memcpy(total, &sum, sizeof total);
        for (int i = 0; i < kLanes; ++i) {
            for (int byte = 0; byte < 4; ++byte) {
                const auto weight = static_cast<std::int8_t>(w.v[i] >> (8 * byte));
                total[i] += weight * static_cast<int>(x >> (8 * byte) & 0xff);
            }
        }
        std::memcpy(&sum, total, sizeof total);
        return sum;
    }
#endif
};

}  // namespace sixteen
}  // namespace fastar::cpu::FASTAR_ISA
