// The functions that are compiled once per vector level (csrc/cpu/isa), reached through one table per level.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/delayed.h"
#include "cpu/element.h"
#include "cpu/executor/kernels.h"
#include "cpu/heads.h"
#include "cpu/tanh_gate.h"
#include "cpu/wavenet.h"

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

// Packed matrices have their columns in panels of at most four vectors of 16, each panel a matrix of its own with its
// rows one after another. The layout is the same at every level.
inline constexpr std::int64_t kVector = 16;
inline constexpr std::int64_t kPanelVectors = 4;

struct Panel {
    std::int64_t first;
    std::int64_t vectors;
};

constexpr std::int64_t vectors_of(std::int64_t columns) {
    return (columns + kVector - 1) / kVector;
}

constexpr std::int64_t panels_of(std::int64_t columns) {
    return (vectors_of(columns) + kPanelVectors - 1) / kPanelVectors;
}

// Panels share the vectors out evenly: a narrow one at the end would be slow.
constexpr Panel panel_of(std::int64_t panel, std::int64_t columns) {
    const std::int64_t vectors = vectors_of(columns);
    const std::int64_t panels = panels_of(columns);
    const std::int64_t begin = panel * vectors / panels;
    return {begin * kVector, (panel + 1) * vectors / panels - begin};
}

// A part of a run, see conv.h; the accumulators go back to memory after one that ends a chunk.
struct Piece {
    std::int64_t offset;
    std::int64_t length;
    bool ends_chunk;
};

// out[i, c, y, x] = source[i, c, y - top, x - left] as float32, 0 outside the source's channels, height and width. Of
// the output, channels or pixels lie side by side. The strides are in the order of the indices.
struct PadArguments {
    Element element;
    const void* source;
    std::int64_t source_strides[4];
    std::int64_t channels;
    std::int64_t height;
    std::int64_t width;
    std::int64_t top;
    std::int64_t left;
    float* out;
    std::int64_t out_strides[4];
    std::int64_t out_channels;
    std::int64_t out_height;
    std::int64_t out_width;
};

// Output positions of one block of tap_sum.
inline constexpr std::int64_t kPositions = 96;

// out[i, y, x, :] = bias + source[i, y, x, pieces] times a packed matrix [depth, columns]. Strides are those between
// neighbouring output positions; source and out point at the first one's element.
struct TapSumArguments {
    const float* source;
    std::int64_t source_image;
    std::int64_t source_row;
    std::int64_t source_pixel;
    const float* packed;
    const float* bias;
    Element element;
    void* out;
    std::int64_t out_image;
    std::int64_t out_row;
    std::int64_t out_pixel;
    std::int64_t out_channel;
    std::int64_t images;
    std::int64_t height;
    std::int64_t width;
    std::int64_t columns;
    std::int64_t depth;
    const Piece* pieces;
    std::int64_t piece_count;
};

enum class NadeActivation { kSigmoid, kRelu, kTanh };

// A NADE of D = dim positions, H = hidden units, K = params parameters per position, see nade.h, packed in float32:
// `stride` is H rounded up to kNadeSlice, and what lies between H and it is zero.
struct NadeModel {
    std::int64_t dim;
    std::int64_t hidden;
    std::int64_t params;
    std::int64_t stride;
    const float* weight;        // [D, stride]: W transposed
    const float* readout;       // [D, K, H]
    const float* hidden_bias;   // [stride]
    const std::int32_t* order;  // [D], or null for 0, 1, 2...
    NadeActivation activation;
};

struct NadeForward {
    NadeModel model;
    const float* bias;  // [D, K]
    const float* x;     // [B, D]
    float* out;         // [B, D, K], or null
    float* log_prob;    // [B], or null
};

// Arrays with D in front hold one position's batch together: the backward takes one position of many rows at a time.
struct NadeBackward {
    NadeModel model;
    std::int64_t batch;
    const float* x;                    // [D, B]
    const float* grad;                 // [D, B, K]
    const std::uint8_t* active;        // [groups, D, kNadeGroup]: the rows of a group whose x is not 0
    const std::uint8_t* active_count;  // [groups, D]
    float* grad_x;                     // [slices, D, B]: what each slice of hidden units adds; or null
    float* grad_weight;                // [D, stride]
    float* grad_readout;               // [D, K, H]
    float* grad_hidden_bias;           // [stride]
};

// Rows of the batch that share a load of the readout in the forward; rows that are walked together in the backward, and
// hidden units in a slice of it: the state of a slice, 3 x 64 x 32 floats, takes half of the first cache level.
inline constexpr std::int64_t kNadeRows = 8;
inline constexpr std::int64_t kNadeGroup = 64;
inline constexpr std::int64_t kNadeSlice = 32;

// One step of an LSTM scan, see lstm_scan.h, for `count` lanes of an image, whose pixels are `stride` pixels apart:
// rows of x and gates are 4 hidden floats per pixel (o, f, i, g), of h, cells and grad `hidden`. Rows of what is named
// z, cell, state, handed and cell_gradient follow one another, lane by lane; so do state_gradient's, of 4 hidden.
struct LstmGates {
    std::int64_t hidden;
    std::int64_t count;
    std::int64_t stride;
    const float* x;
    const float* z;  // the product with the hidden units before, 4 hidden; or null
    float* cell;     // the cell before, and then this step's
    float* state;    // hidden units for the next step's product
    float* h;
    float* gates;  // activated; null together with cells
    float* cells;
};

struct LstmGatesBackward {
    std::int64_t hidden;
    std::int64_t count;
    std::int64_t stride;
    const float* grad;    // of h; or null
    const float* handed;  // what the next step's product says of h; or null
    const float* gates;
    const float* cells;
    const float* before;  // the cell before, before_stride floats from lane to lane; or null
    std::int64_t before_stride;
    float* cell_gradient;   // of this step's cell from the next step, and then of the cell before
    float* state_gradient;  // of the gates before their activation, twice
    float* x_gradient;
};

struct KernelTable {
    void (*gather_16)(const GatherArguments<std::uint16_t>&, std::int64_t begin, std::int64_t end);
    void (*gather_32)(const GatherArguments<std::uint32_t>&, std::int64_t begin, std::int64_t end);
    void (*masked_copy_16)(const MaskedCopyArguments<std::uint16_t>&, std::int64_t begin, std::int64_t end);
    void (*masked_copy_32)(const MaskedCopyArguments<std::uint32_t>&, std::int64_t begin, std::int64_t end);
    // A 64-bit hash of `words` 64-bit words; see fingerprint.h.
    // Rows [begin, end) of the batch; `scratch` holds 2 x kNadeGroup x stride + kNadeRows x dim floats.
    // False where log_prob was asked for and an x is outside [0, 1].
    bool (*nade_forward)(const NadeForward&, std::int64_t begin, std::int64_t end, float* scratch);
    // out[i] = scale (x[i] - sigmoid(logits[i])): the gradient of the logits from that of their row's log-probability.
    void (*nade_logit_gradient)(const float* logits, const float* x, float scale, float* out, std::int64_t count);
    // Slices [begin, end) of the hidden units; `scratch` holds 4 x kNadeGroup x kNadeSlice floats.
    void (*nade_backward)(const NadeBackward&, std::int64_t begin, std::int64_t end, float* scratch);
    bool (*heads_forward)(const HeadsForward&, std::int64_t begin, std::int64_t end, float* scratch);
    void (*heads_backward)(const HeadsBackward&, std::int64_t begin, std::int64_t end, float* scratch);
    void (*lstm_gates)(const LstmGates&);
    void (*lstm_gates_backward)(const LstmGatesBackward&);
    std::uint64_t (*hash)(const std::uint64_t* data, std::size_t words, std::uint64_t seed);
    // Rows of all images of the padded output, [begin, end).
    void (*pad)(const PadArguments&, std::int64_t begin, std::int64_t end);
    // Items are numbered panel by panel, in each panel block of positions by block.
    void (*tap_sum)(const TapSumArguments&, std::int64_t begin, std::int64_t end);
    // See delayed.h; tiles of the weight, then items of a sum, are numbered from 0.
    DelayedExtent (*delayed_extent)(const DelayedSum&);
    void (*pack_delayed)(const DelayedSum&, std::int64_t begin, std::int64_t end, void* packed);
    void (*delayed_sum)(const DelayedSum&, const void* packed, std::int64_t begin, std::int64_t end);
    ProductsExtent (*products_extent)(const DelayedProducts&);
    void (*delayed_products)(const DelayedProducts&, const ProductsExtent&, float* partial, std::int64_t begin,
                             std::int64_t end);
    // Outputs of all groups.
    void (*sum_products)(const DelayedProducts&, const ProductsExtent&, const float* partial, std::int64_t begin,
                         std::int64_t end);
    // See wavenet.h; tiles of the weights and items as for delayed sums.
    WavenetExtent (*wavenet_extent)(const WavenetGates&, bool backward);
    void (*pack_wavenet)(const WavenetGates&, bool backward, std::int64_t begin, std::int64_t end, void* packed);
    void (*wavenet_forward)(const WavenetForward&, const void* packed, std::int64_t begin, std::int64_t end);
    void (*wavenet_backward)(const WavenetBackward&, const void* packed, std::int64_t begin, std::int64_t end);
    // Channels of all rows of the batch.
    void (*depthwise_sum)(const DepthwiseSum&, std::int64_t begin, std::int64_t end);
    // Channels, each over the whole batch.
    void (*depthwise_gradients)(const DepthwiseGradients&, std::int64_t begin, std::int64_t end);
    // Elements of the result.
    void (*tanh_gate)(const TanhGate&, std::int64_t begin, std::int64_t end);
    ExecutorKernels executor;
};

}  // namespace fastar::cpu
