#include "cpu/conv.h"

#include <algorithm>
#include <vector>

#include "common/workers.h"
#include "cpu/dispatch.h"

namespace fastar::cpu {
namespace {

// Steps of a sum between two visits of the accumulators to memory. Their part of the packed matrix, 64 columns wide, is
// 64 KiB and stays near while a block of positions goes over it.
constexpr std::int64_t kChunk = 256;

// Depth rows that are packed together, so that what they read of a weight's line is read once.
constexpr std::int64_t kPackedRows = 8;

// Below this many elements a second thread costs more to wake than it saves.
constexpr std::int64_t kElementsPerPiece = 1 << 15;

}  // namespace

std::int64_t packed_elements(std::int64_t depth, std::int64_t columns) {
    return depth * kVector * vectors_of(columns);
}

void pack_taps(const TapWeight& weight, bool transposed, float* packed, int threads) {
    const std::int64_t rows = transposed ? weight.outputs : weight.inputs;
    const std::int64_t columns = transposed ? weight.inputs : weight.outputs;
    const std::int64_t row_stride = transposed ? weight.output_stride : weight.input_stride;
    const std::int64_t column_stride = transposed ? weight.input_stride : weight.output_stride;
    const std::int64_t mask_row = transposed ? weight.inputs : 1;
    const std::int64_t mask_column = transposed ? 1 : weight.inputs;
    const auto taps = static_cast<std::int64_t>(weight.taps.size());
    const std::int64_t depth = taps * rows;
    const std::int64_t strips = (rows + kPackedRows - 1) / kPackedRows;

    const auto pack = [&](std::int64_t panel, std::int64_t strip, std::vector<float>& near) {
        const Panel p = panel_of(panel, columns);
        const std::int64_t width = p.vectors * kVector;
        const std::int64_t visible = std::min(width, columns - p.first);
        const std::int64_t first = strip * kPackedRows;
        const std::int64_t count = std::min(rows - first, kPackedRows);
        near.assign(static_cast<std::size_t>(taps * count * width), 0.0F);
        for (std::int64_t j = 0; j < visible; ++j) {
            for (std::int64_t i = 0; i < count; ++i) {
                const float* source = weight.data + (first + i) * row_stride + (p.first + j) * column_stride;
                float* to = near.data() + i * width + j;
                for (std::int64_t t = 0; t < taps; ++t)
                    to[t * count * width] = source[weight.taps[t] * weight.tap_stride];
            }
        }
        if (weight.mask) {
            float* masked = near.data() + weight.masked * count * width;
            for (std::int64_t i = 0; i < count; ++i) {
                const std::uint8_t* seen = weight.mask + (first + i) * mask_row + p.first * mask_column;
                for (std::int64_t j = 0; j < visible; ++j) {
                    if (!seen[j * mask_column]) masked[i * width + j] = 0.0F;
                }
            }
        }
        for (std::int64_t t = 0; t < taps; ++t) {
            std::copy_n(near.data() + t * count * width, count * width,
                        packed + depth * p.first + (t * rows + first) * width);
        }
    };
    parallel_for(static_cast<std::size_t>(panels_of(columns) * strips), 4, threads, [&](auto begin, auto end) {
        // Taps lie a power of two apart in the packed matrix and would push each other out of the first cache level:
        // they are put together here and leave by whole rows.
        std::vector<float> near;
        for (auto item = static_cast<std::int64_t>(begin); item < static_cast<std::int64_t>(end); ++item) {
            pack(item / strips, item % strips, near);
        }
    });
}

void pad(const PadArguments& arguments, std::int64_t images, int threads) {
    const std::int64_t row = std::max<std::int64_t>(1, arguments.out_width * arguments.out_channels);
    const auto grain = static_cast<std::size_t>(std::max<std::int64_t>(1, kElementsPerPiece / row));
    parallel_for(static_cast<std::size_t>(images * arguments.out_height), grain, threads, [&](auto begin, auto end) {
        kernels().pad(arguments, static_cast<std::int64_t>(begin), static_cast<std::int64_t>(end));
    });
}

void pack_pixels(const PadArguments& arguments, std::int64_t images, float* packed, int threads) {
    const std::int64_t size = arguments.height * arguments.width;
    for (std::int64_t panel = 0; panel < panels_of(arguments.channels); ++panel) {
        const Panel p = panel_of(panel, arguments.channels);
        const std::int64_t width = p.vectors * kVector;
        PadArguments a = arguments;
        const std::int64_t bytes = a.element == Element::float32 ? 4 : 2;
        a.source = static_cast<const char*>(a.source) + p.first * a.source_strides[1] * bytes;
        a.channels = std::min(width, arguments.channels - p.first);
        a.out = packed + images * size * p.first;
        a.out_channels = width;
        const std::int64_t strides[] = {size * width, 1, a.width * width, width};
        std::copy_n(strides, 4, a.out_strides);
        a.out_height = a.height;
        a.out_width = a.width;
        pad(a, images, threads);
    }
}

Pieces pieces_of(std::span<const TapRun> runs) {
    Pieces pieces{.list = {}, .depth = 0};
    for (const TapRun& run : runs) {
        for (std::int64_t at = 0; at < run.length;) {
            const std::int64_t length = std::min(run.length - at, kChunk - pieces.depth % kChunk);
            pieces.list.push_back(
                {.offset = run.offset + at, .length = length, .ends_chunk = (pieces.depth + length) % kChunk == 0});
            pieces.depth += length;
            at += length;
        }
    }
    if (!pieces.list.empty()) pieces.list.back().ends_chunk = true;
    return pieces;
}

std::int64_t tap_sum_items(const TapSumArguments& arguments) {
    const std::int64_t positions = arguments.images * arguments.height * arguments.width;
    return panels_of(arguments.columns) * ((positions + kPositions - 1) / kPositions);
}

void tap_sum(const TapSumArguments& arguments, std::span<const TapRun> runs, int threads) {
    const Pieces pieces = pieces_of(runs);
    TapSumArguments a = arguments;
    a.pieces = pieces.list.data();
    a.piece_count = static_cast<std::int64_t>(pieces.list.size());
    a.depth = pieces.depth;
    parallel_for(static_cast<std::size_t>(tap_sum_items(a)), 1, threads, [&](auto begin, auto end) {
        kernels().tap_sum(a, static_cast<std::int64_t>(begin), static_cast<std::int64_t>(end));
    });
}

}  // namespace fastar::cpu
