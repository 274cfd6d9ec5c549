#include "cpu/delayed.h"

#include <algorithm>
#include <cstddef>
#include <memory>

#include "common/workers.h"
#include "cpu/dispatch.h"

namespace fastar::cpu {
namespace {

// parallel_for with signed indices.
template <typename Body>
void share_out(std::int64_t count, std::int64_t grain, int threads, Body body) {
    parallel_for(static_cast<std::size_t>(count), static_cast<std::size_t>(std::max<std::int64_t>(1, grain)), threads,
                 [&](auto begin, auto end) { body(static_cast<std::int64_t>(begin), static_cast<std::int64_t>(end)); });
}

// Below this many multiplications or moved elements a second thread costs more to wake than it saves.
constexpr std::int64_t kWorkPerPiece = 1 << 18;
constexpr std::int64_t kElementsPerPiece = 1 << 15;

std::int64_t pieces(std::int64_t count, std::int64_t size) {
    return (count + size - 1) / size;
}

}  // namespace

void delayed_sum(const DelayedSum& a, int threads) {
    const DelayedExtent extent = kernels().delayed_extent(a);
    if (extent.items == 0) return;
    const auto packed = std::make_unique_for_overwrite<std::byte[]>(static_cast<std::size_t>(extent.bytes));
    const std::int64_t tile = extent.bytes / std::max<std::int64_t>(1, 4 * extent.tiles);
    share_out(extent.tiles, kElementsPerPiece / std::max<std::int64_t>(1, tile), threads,
              [&](auto begin, auto end) { kernels().pack_delayed(a, begin, end, packed.get()); });
    const std::int64_t work = a.taps * a.inputs * a.outputs * pieces(a.batch * a.groups * a.count, extent.items);
    share_out(extent.items, kWorkPerPiece / std::max<std::int64_t>(1, work), threads,
              [&](auto begin, auto end) { kernels().delayed_sum(a, packed.get(), begin, end); });
}

void delayed_products(const DelayedProducts& a, int threads) {
    const ProductsExtent extent = kernels().products_extent(a);
    if (extent.items == 0) return;
    const auto partial = std::make_unique_for_overwrite<float[]>(static_cast<std::size_t>(extent.floats));
    const std::int64_t depth = a.inputs * a.taps;
    const std::int64_t work = a.groups * a.outputs * depth * a.batch * a.source.length / extent.items;
    share_out(extent.items, kWorkPerPiece / std::max<std::int64_t>(1, work), threads,
              [&](auto begin, auto end) { kernels().delayed_products(a, extent, partial.get(), begin, end); });
    share_out(a.groups * a.outputs, kElementsPerPiece / (depth * extent.segments), threads,
              [&](auto begin, auto end) { kernels().sum_products(a, extent, partial.get(), begin, end); });
}

void depthwise_sum(const DepthwiseSum& a, int threads) {
    share_out(a.batch * a.channels, kElementsPerPiece / std::max<std::int64_t>(1, a.source.length * a.multiplier),
              threads, [&](auto begin, auto end) { kernels().depthwise_sum(a, begin, end); });
}

void depthwise_gradients(const DepthwiseGradients& a, int threads) {
    const DepthwiseSum& sum = a.forward;
    const std::int64_t elements = sum.batch * sum.source.length * sum.multiplier;
    share_out(sum.channels, kElementsPerPiece / std::max<std::int64_t>(1, elements), threads,
              [&](auto begin, auto end) { kernels().depthwise_gradients(a, begin, end); });
}

}  // namespace fastar::cpu
