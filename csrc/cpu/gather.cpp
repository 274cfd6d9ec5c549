#include "cpu/gather.h"

#include <algorithm>
#include <type_traits>

#include "common/workers.h"
#include "cpu/dispatch.h"

namespace fastar::cpu {
namespace {

// Below this many elements a second thread costs more to wake than it saves.
constexpr std::int64_t kElementsPerPiece = 1 << 15;

std::size_t grain(std::int64_t columns) {
    return static_cast<std::size_t>(std::max<std::int64_t>(1, kElementsPerPiece / std::max<std::int64_t>(1, columns)));
}

}  // namespace

template <typename T>
void gather(const GatherArguments<T>& arguments, std::int64_t rows, int threads) {
    parallel_for(static_cast<std::size_t>(rows), grain(arguments.columns), threads, [&](auto begin, auto end) {
        const auto from = static_cast<std::int64_t>(begin);
        const auto to = static_cast<std::int64_t>(end);
        if constexpr (std::is_same_v<T, std::uint16_t>) {
            kernels().gather_16(arguments, from, to);
        } else {
            kernels().gather_32(arguments, from, to);
        }
    });
}

template <typename T>
void masked_copy(const MaskedCopyArguments<T>& arguments, std::int64_t rows, int threads) {
    parallel_for(static_cast<std::size_t>(rows), grain(arguments.columns), threads, [&](auto begin, auto end) {
        const auto from = static_cast<std::int64_t>(begin);
        const auto to = static_cast<std::int64_t>(end);
        if constexpr (std::is_same_v<T, std::uint16_t>) {
            kernels().masked_copy_16(arguments, from, to);
        } else {
            kernels().masked_copy_32(arguments, from, to);
        }
    });
}

template void gather(const GatherArguments<std::uint16_t>&, std::int64_t, int);
template void gather(const GatherArguments<std::uint32_t>&, std::int64_t, int);
template void masked_copy(const MaskedCopyArguments<std::uint16_t>&, std::int64_t, int);
template void masked_copy(const MaskedCopyArguments<std::uint32_t>&, std::int64_t, int);

}  // namespace fastar::cpu
