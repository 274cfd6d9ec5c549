// Sequences that look back: sums over delayed copies of channels, for causal convolutions and what is built on them.
//
// A tensor here is [batch, channels, time], consecutive in time. Where `index` is given, an input reaches only the
// times that have the same number in it: the rows of the batch are several sequences one behind the other.
#pragma once

#include <cstdint>

#include "cpu/element.h"

namespace fastar::cpu {

// Those that kernels apply by themselves.
enum class Gate { kNone, kRelu, kTanh, kSigmoid, kSilu };

// What is read: `data` at times [0, length), `history` at times [-history_length, 0) or zeros where it is null, and
// zeros elsewhere. Strides in elements.
struct Source {
    const void* data;
    std::int64_t batch_stride;
    std::int64_t channel_stride;
    std::int64_t length;
    const void* history;
    std::int64_t history_batch_stride;
    std::int64_t history_channel_stride;
    std::int64_t history_length;
    const std::int32_t* index;  // [batch, length], or null
};

// out[b, g, o, t] = act(bias[g, o] + sum over taps k and inputs i of W[g, o, i, k] source[b, g, i, t + offsets[k]]) for
// t from `first` on, `count` of them. `groups` share nothing. A causal convolution has offsets that are not positive,
// its input's gradient ones that are not negative.
struct DelayedSum {
    Element element;
    std::int64_t batch;
    std::int64_t groups;
    std::int64_t inputs;
    std::int64_t outputs;
    Source source;
    const std::int64_t* offsets;
    std::int64_t taps;
    const void* weight;
    std::int64_t weight_group;
    std::int64_t weight_output;
    std::int64_t weight_input;
    std::int64_t weight_tap;
    const float* bias;  // [groups, outputs], or null
    Gate activation;
    void* out;   // [batch, groups, outputs, count]
    void* kept;  // the same before the activation, or null
    std::int64_t first;
    std::int64_t count;
};

// dW[g, o, i, k] = sum over b and t of grad[b, g, o, t] source[b, g, i, t + offsets[k]], in an order that depends on
// the lengths alone.
struct DelayedProducts {
    Element element;
    std::int64_t batch;
    std::int64_t groups;
    std::int64_t inputs;
    std::int64_t outputs;
    const void* grad;
    std::int64_t grad_batch;
    std::int64_t grad_channel;
    Source source;
    const std::int64_t* offsets;
    std::int64_t taps;
    void* out;  // [groups, outputs, inputs, taps]
};

// A convolution in which each group has one input: out[b, c m + j, t] for j < multiplier sees channel c alone. In the
// backward `grad` takes the place of `out`.
struct DepthwiseSum {
    Element element;
    std::int64_t batch;
    std::int64_t channels;
    std::int64_t multiplier;
    Source source;
    std::int64_t dilation;
    std::int64_t taps;
    const float* weight;  // [channels, multiplier, taps]
    const float* bias;    // [channels, multiplier], or null
    Gate activation;
    void* out;   // [batch, channels, multiplier, length]
    void* kept;  // the same before the activation, or null
};

// The gradients that belong to DepthwiseSum; those that are null are left out. The activation's derivative is computed
// from its argument, which is recomputed.
struct DepthwiseGradients {
    DepthwiseSum forward;
    const void* grad;  // as `out`
    std::int64_t grad_batch;
    std::int64_t grad_channel;
    void* source;   // [batch, channels, length]
    void* history;  // [batch, channels, history_length]
    float* weight;  // as the weight
    float* bias;    // as the bias
};

// How a vector level cuts a delayed sum into work: tiles of the weight to pack, its packed bytes, and items.
struct DelayedExtent {
    std::int64_t tiles;
    std::int64_t bytes;
    std::int64_t items;
};

// The same of delayed products: an item takes some outputs, some pairs of a tap and an input, and a segment of all
// times. The segments' sums, floats [segments, groups, outputs, taps, inputs], are added afterwards.
struct ProductsExtent {
    std::int64_t rows;
    std::int64_t columns;
    std::int64_t segments;
    std::int64_t items;
    std::int64_t floats;
};

void delayed_sum(const DelayedSum& sum, int threads);
void delayed_products(const DelayedProducts& products, int threads);
void depthwise_sum(const DepthwiseSum& sum, int threads);
void depthwise_gradients(const DepthwiseGradients& gradients, int threads);

}  // namespace fastar::cpu
