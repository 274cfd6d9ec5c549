// NADE over a whole batch: a_0 = c, a_{i+1} = a_i + W[:, i] x_i, out[b, i, k] = b[i, k] + V[i, k] . act(a_i), along any
// order of the positions i.
#pragma once

#include "cpu/kernel_table.h"

namespace fastar::cpu {

// The model as its owner holds it; W in any layout, the rest contiguous.
struct NadeWeights {
    std::int64_t dim;
    std::int64_t hidden;
    std::int64_t params;
    const float* weight;  // W[h, d] at h * weight_stride_h + d * weight_stride_d
    std::int64_t weight_stride_h;
    std::int64_t weight_stride_d;
    const float* readout;       // [D, K, H]
    const float* hidden_bias;   // [H]
    const std::int32_t* order;  // [D], or null for 0, 1, 2...
    NadeActivation activation;
};

// The parameters of every position into out [B, D, K] and, for K = 1, the sum over i of log Bernoulli(x_i; logit
// out[b, i]) into log_prob [B]; either may be null. False where log_prob was asked for and an x [B, D] is outside
// [0, 1]. Rows are shared out over threads; a row's result depends on no other row.
bool nade_forward(const NadeWeights& weights, const float* bias, const float* x, std::int64_t batch, float* out,
                  float* log_prob, int threads);

// What the backward starts from: the gradient of out, in any layout, or of log_prob with the logits [B, D] that the
// forward gave, or both, in which case they add up.
struct NadeSource {
    const float* grad;  // out[b, d, k]'s at b * stride_b + d * stride_d + k * stride_k, or null
    std::int64_t stride_b;
    std::int64_t stride_d;
    std::int64_t stride_k;
    const float* grad_log_prob;  // [B], or null
    const float* logits;
};

struct NadeGradients {
    float* x;            // [B, D], or null
    float* weight;       // [H, D]
    float* readout;      // [D, K, H]
    float* hidden_bias;  // [H]
    float* bias;         // [D, K]
};

// Hidden units are shared out over threads: no two add to one sum, and the results do not depend on their number.
void nade_backward(const NadeWeights& weights, const NadeSource& source, const float* x, std::int64_t batch,
                   const NadeGradients& gradients, int threads);

}  // namespace fastar::cpu
