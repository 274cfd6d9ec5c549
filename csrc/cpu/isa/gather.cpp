#include "cpu/isa/gather.h"

#include <algorithm>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace fastar::cpu::FASTAR_ISA {
namespace {

template <typename T>
void gather_row(const T* source, const std::int32_t* index, T* out, std::int64_t count) {
    for (std::int64_t j = 0; j < count; ++j) out[j] = source[index[j]];
}

// Zero where the index is not below the limit. The source is never read there: those columns may be untouched memory.
// Without a branch, since which columns are beyond the limit looks random in this order.
template <typename T>
void gather_row_below(const T* source, const std::int32_t* index, std::int32_t limit, T* out, std::int64_t count) {
    if (limit <= 0) {
        std::memset(out, 0, static_cast<std::size_t>(count) * sizeof(T));
        return;
    }
    for (std::int64_t j = 0; j < count; ++j) {
        const bool below = index[j] < limit;
        const T value = source[below ? index[j] : 0];
        out[j] = below ? value : T{0};
    }
}

#ifdef __AVX512F__
// The source row stays in the first cache level while it is read in random order, so the gather unit is what bounds
// these: two 16-lane gathers are kept in flight.
template <>
void gather_row(const std::uint32_t* source, const std::int32_t* index, std::uint32_t* out, std::int64_t count) {
    std::int64_t j = 0;
    for (; j + 32 <= count; j += 32) {
        const __m512i first = _mm512_i32gather_epi32(_mm512_loadu_si512(index + j), source, 4);
        const __m512i second = _mm512_i32gather_epi32(_mm512_loadu_si512(index + j + 16), source, 4);
        _mm512_storeu_si512(out + j, first);
        _mm512_storeu_si512(out + j + 16, second);
    }
    for (; j < count; ++j) out[j] = source[index[j]];
}

template <>
void gather_row_below(const std::uint32_t* source, const std::int32_t* index, std::int32_t limit, std::uint32_t* out,
                      std::int64_t count) {
    const __m512i limits = _mm512_set1_epi32(limit);
    const __m512i zero = _mm512_setzero_si512();
    for (std::int64_t j = 0; j < count; j += 16) {
        const std::int64_t left = count - j;
        const auto valid = static_cast<__mmask16>(left >= 16 ? 0xffff : (1 << left) - 1);
        const __m512i at = _mm512_maskz_loadu_epi32(valid, index + j);
        const __mmask16 below = _mm512_mask_cmplt_epi32_mask(valid, at, limits);
        _mm512_mask_storeu_epi32(out + j, valid, _mm512_mask_i32gather_epi32(zero, below, at, source, 4));
    }
}
#endif

}  // namespace

template <typename T>
void gather(const GatherArguments<T>& a, std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t row = a.row_index ? a.row_index[i] : i;
        const T* source = a.source + row * a.source_stride;
        T* out = a.out + i * a.out_stride;
        if (a.limit && a.limit_counts_source_columns && a.column_index) {
            gather_row_below(source, a.column_index, a.limit[row], out, a.columns);
            continue;
        }
        std::int64_t taken = a.columns;
        if (a.limit) taken = std::min<std::int64_t>(taken, a.limit_counts_source_columns ? a.limit[row] : a.limit[i]);
        if (a.column_index) {
            gather_row(source, a.column_index, out, taken);
        } else {
            std::memcpy(out, source, static_cast<std::size_t>(taken) * sizeof(T));
        }
        std::memset(out + taken, 0, static_cast<std::size_t>(a.columns - taken) * sizeof(T));
    }
}

template <typename T>
void masked_copy(const MaskedCopyArguments<T>& a, std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
        const T* source = a.source + i * a.source_stride;
        const std::uint8_t* mask = a.mask + i * a.mask_stride;
        T* out = a.out + i * a.out_stride;
        for (std::int64_t j = 0; j < a.columns; ++j) {
            const T keep = static_cast<T>(-static_cast<T>(mask[j] != 0));
            out[j] = source[j] & keep;
        }
    }
}

template void gather(const GatherArguments<std::uint16_t>&, std::int64_t, std::int64_t);
template void gather(const GatherArguments<std::uint32_t>&, std::int64_t, std::int64_t);
template void masked_copy(const MaskedCopyArguments<std::uint16_t>&, std::int64_t, std::int64_t);
template void masked_copy(const MaskedCopyArguments<std::uint32_t>&, std::int64_t, std::int64_t);

std::uint64_t hash(const std::uint64_t* data, std::size_t words, std::uint64_t seed) {
    constexpr std::size_t kLanes = 64;
    constexpr std::uint64_t kOdd = 0x9e3779b97f4a7c15ULL;
    std::uint64_t lane[kLanes];
    for (std::size_t l = 0; l < kLanes; ++l) lane[l] = (seed + l + 1) * kOdd;
    std::size_t at = 0;
    // Each step is a bijection of the lane, so two inputs that differ in one word of a lane never meet again.
    for (; at + kLanes <= words; at += kLanes) {
        for (std::size_t l = 0; l < kLanes; ++l) {
            const std::uint64_t mixed = (lane[l] ^ data[at + l]) * kOdd;
            lane[l] = mixed ^ (mixed >> 32);
        }
    }
    std::uint64_t result = seed;
    const auto fold = [&result](std::uint64_t word) {
        const std::uint64_t mixed = (result ^ word) * kOdd;
        result = mixed ^ (mixed >> 29);
    };
    for (; at < words; ++at) fold(data[at]);
    for (std::size_t l = 0; l < kLanes; ++l) fold(lane[l]);
    return result;
}

}  // namespace fastar::cpu::FASTAR_ISA
