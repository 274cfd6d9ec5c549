// Convolution over a list of taps: a matrix product whose left side is never formed.
//
// The source is channels last with its padding written out, so that what an output position sees is a few *runs* of
// consecutive elements: taps beside each other in a row are one run. A run starts at the same distance from the
// position's own element everywhere. With the source planar, pairs of a channel and a tap in the place of positions,
// and rows of pixels as runs, the same product is the gradient of the weight.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cpu/kernel_table.h"

namespace fastar::cpu {

// Where a run starts, relative to the position's own element, and its length; both in elements.
struct TapRun {
    std::int64_t offset;
    std::int64_t length;
};

// A weight [output, input, tap] with any strides, and which taps of it survive. Where `mask` (bool [outputs, inputs],
// contiguous) is given, it holds for the entry `masked` of `taps`.
struct TapWeight {
    const float* data;
    std::int64_t output_stride;
    std::int64_t input_stride;
    std::int64_t tap_stride;
    std::int64_t outputs;
    std::int64_t inputs;
    std::span<const std::int64_t> taps;
    const std::uint8_t* mask;
    std::int64_t masked;
};

// Elements of the packed form of a matrix [depth, columns].
std::int64_t packed_elements(std::int64_t depth, std::int64_t columns);

// Packs the matrix [taps x inputs, outputs], or where `transposed` [taps x outputs, inputs], for tap_sum.
void pack_taps(const TapWeight& weight, bool transposed, float* packed, int threads);

// Writes the padding out, see kernel_table.h.
void pad(const PadArguments& arguments, std::int64_t images, int threads);

// Packs the matrix [images x height x width, channels] for tap_sum: of the arguments, only what describes the source is
// read.
void pack_pixels(const PadArguments& arguments, std::int64_t images, float* packed, int threads);

// The runs cut and joined into chunks of equal depth, as the kernel takes them.
struct Pieces {
    std::vector<Piece> list;
    std::int64_t depth;
};

Pieces pieces_of(std::span<const TapRun> runs);

// How many items the kernel counts for these arguments.
std::int64_t tap_sum_items(const TapSumArguments& arguments);

// out[position] = bias + the runs of that position times the packed matrix, whose depth is the runs' total length. The
// order of each sum depends on the runs alone.
void tap_sum(const TapSumArguments& arguments, std::span<const TapRun> runs, int threads);

}  // namespace fastar::cpu
