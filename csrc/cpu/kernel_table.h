// The functions that are compiled once per vector level (csrc/cpu/isa), reached through one table per level.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastar::cpu {

// A rectangle [rows, columns] of elements inside a larger row-major matrix.
template <typename T>
struct Strided {
    T* data;
    std::int64_t row_stride;
    std::int64_t column_stride;
};

struct KernelTable {
    // out[i, j] = j < reach[i] ? weight[row_order[i], column_order[j]] : 0, for rows [begin, end) and j < columns.
    void (*gather_weight_32)(Strided<const std::uint32_t> weight, const std::int32_t* row_order,
                             const std::int32_t* column_order, const std::int32_t* reach, std::uint32_t* out,
                             std::int64_t out_stride, std::int64_t columns, std::int64_t begin, std::int64_t end);
};

}  // namespace fastar::cpu
