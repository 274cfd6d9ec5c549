// The functions that are compiled once per vector level (csrc/cpu/isa), reached through one table per level.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/heads.h"

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
    std::uint64_t (*hash)(const std::uint64_t* data, std::size_t words, std::uint64_t seed);
};

}  // namespace fastar::cpu
