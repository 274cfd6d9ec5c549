#include "cpu/wavenet.h"

#include <algorithm>
#include <cstddef>
#include <memory>

#include "cpu/dispatch.h"
#include "cpu/share_out.h"

namespace fastar::cpu {
namespace {

template <typename Run>
void run_gates(const WavenetGates& a, bool backward, int threads, Run run) {
    const WavenetExtent extent = kernels().wavenet_extent(a, backward);
    if (extent.items == 0) return;
    const auto packed = std::make_unique_for_overwrite<std::byte[]>(static_cast<std::size_t>(extent.bytes));
    share_out(extent.tiles, kElementsPerPiece * extent.tiles * 4 / std::max<std::int64_t>(1, extent.bytes), threads,
              [&](auto begin, auto end) { kernels().pack_wavenet(a, backward, begin, end, packed.get()); });
    const std::int64_t weights = a.gate * (2 * a.residual * a.taps + a.residual + a.skip);
    const std::int64_t work = weights * a.batch * a.source.length / extent.items;
    share_out(extent.items, kWorkPerPiece / std::max<std::int64_t>(1, work), threads,
              [&](auto begin, auto end) { run(packed.get(), begin, end); });
}

}  // namespace

void wavenet_forward(const WavenetForward& a, int threads) {
    run_gates(a.gates, false, threads, [&](const void* packed, std::int64_t begin, std::int64_t end) {
        kernels().wavenet_forward(a, packed, begin, end);
    });
}

void wavenet_backward(const WavenetBackward& a, int threads) {
    run_gates(a.gates, true, threads, [&](const void* packed, std::int64_t begin, std::int64_t end) {
        kernels().wavenet_backward(a, packed, begin, end);
    });
}

}  // namespace fastar::cpu
