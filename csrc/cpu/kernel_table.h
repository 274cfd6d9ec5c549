// The functions that are compiled once per vector level (csrc/cpu/isa), reached through one table per level.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/executor/kernels.h"

namespace fastar::cpu {

// A gather of rows and columns out of a row-major matrix, see gather.h. Elements are moved as bits.
template <typename T>
struct GatherArguments {
    const T* source;
    std::int64_t source_stride;
    const std::int32_t* row_index;
    const std::int32_t* column_index;
    const std::int32_t* limit;
    bool limit_counts_source_columns;
    T* out;
    std::int64_t out_stride;
    std::int64_t columns;
};

// out[i, j] = mask[i, j] ? source[i, j] : 0. `out` may be `source`.
template <typename T>
struct MaskedCopyArguments {
    const T* source;
    std::int64_t source_stride;
    const std::uint8_t* mask;
    std::int64_t mask_stride;
    T* out;
    std::int64_t out_stride;
    std::int64_t columns;
};

struct KernelTable {
    void (*gather_16)(const GatherArguments<std::uint16_t>&, std::int64_t begin, std::int64_t end);
    void (*gather_32)(const GatherArguments<std::uint32_t>&, std::int64_t begin, std::int64_t end);
    void (*masked_copy_16)(const MaskedCopyArguments<std::uint16_t>&, std::int64_t begin, std::int64_t end);
    void (*masked_copy_32)(const MaskedCopyArguments<std::uint32_t>&, std::int64_t begin, std::int64_t end);
    // A 64-bit hash of `words` 64-bit words; see fingerprint.h.
    std::uint64_t (*hash)(const std::uint64_t* data, std::size_t words, std::uint64_t seed);
    ExecutorKernels executor;
};

}  // namespace fastar::cpu
