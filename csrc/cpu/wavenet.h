// One layer of a WaveNet, on tiles of times that stay in the first cache levels from the input to both outputs.
#pragma once

#include <cstdint>

#include "cpu/delayed.h"

namespace fastar::cpu {

// A matrix [rows, inputs, taps] of any strides, in elements.
struct WavenetWeight {
    const void* data;
    std::int64_t row;
    std::int64_t input;
    std::int64_t tap;
};

// z = delayed sum of x + bias + conditioning, h = tanh(z_f) sigmoid(z_g), z_f being the first `gate` rows of z.
struct WavenetGates {
    Element element;
    std::int64_t batch;
    std::int64_t residual;
    std::int64_t gate;
    std::int64_t skip;
    Source source;
    std::int64_t taps;
    std::int64_t dilation;
    WavenetWeight weight;           // [2 gate, residual, taps]
    const float* bias;              // [2 gate], or null
    WavenetWeight residual_weight;  // [residual, gate]
    WavenetWeight skip_weight;      // [skip, gate]
    const void* conditioning;       // [batch, 2 gate, frames], or null: frame t / hop at time t
    std::int64_t frames;
    std::int64_t hop;
    float residual_scale;
    float skip_scale;
};

// residual_out = (W_r h + b_r + x) residual_scale, skip_out = (W_s h + b_s) skip_scale + skip_sum.
struct WavenetForward {
    WavenetGates gates;
    const float* residual_bias;  // or null
    const float* skip_bias;      // or null
    const void* skip_sum;        // [batch, skip, time], or null
    std::int64_t skip_batch;
    std::int64_t skip_channel;
    void* residual_out;  // [batch, residual, time]
    void* skip_out;      // [batch, skip, time]
};

// What the other gradients are products of: h again, and the gradient of z. A gradient that is null is zero.
struct WavenetBackward {
    WavenetGates gates;
    const void* grad_residual;
    std::int64_t residual_batch;
    std::int64_t residual_channel;
    const void* grad_skip;
    std::int64_t skip_batch;
    std::int64_t skip_channel;
    void* h;       // [batch, gate, time]
    void* grad_z;  // [batch, 2 gate, time]
};

// How a vector level cuts a block into work: tiles of the weights to pack, their packed bytes, and items.
struct WavenetExtent {
    std::int64_t tiles;
    std::int64_t bytes;
    std::int64_t items;
};

void wavenet_forward(const WavenetForward& block, int threads);
void wavenet_backward(const WavenetBackward& block, int threads);

}  // namespace fastar::cpu
