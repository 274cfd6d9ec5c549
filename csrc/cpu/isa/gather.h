// Moving rows and columns of a matrix into another order, at one vector level.
#pragma once

#include "cpu/kernel_table.h"

namespace fastar::cpu::FASTAR_ISA {

template <typename T>
void gather(const GatherArguments<T>& a, std::int64_t begin, std::int64_t end);

template <typename T>
void masked_copy(const MaskedCopyArguments<T>& a, std::int64_t begin, std::int64_t end);

std::uint64_t hash(const std::uint64_t* data, std::size_t words, std::uint64_t seed);

}  // namespace fastar::cpu::FASTAR_ISA
