// Gathers and masked copies over whole matrices, shared out over threads.
#pragma once

#include <cstdint>

#include "cpu/kernel_table.h"

namespace fastar::cpu {

// out[i, j] = source[row_index[i], column_index[j]] for i < rows and j < columns, or 0
// where j >= limit[i]; with limit_counts_source_columns, 0 where column_index[j] >= limit[row_index[i]]. A null index
// is the identity. Source and out must not overlap.
template <typename T>
void gather(const GatherArguments<T>& arguments, std::int64_t rows, int threads);

// out[i, j] = mask[i, j] ? source[i, j] : 0.
template <typename T>
void masked_copy(const MaskedCopyArguments<T>& arguments, std::int64_t rows, int threads);

}  // namespace fastar::cpu
