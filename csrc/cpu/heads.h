// log p(x) under a head's parameters, one value per position, and its gradients: Bernoulli, categorical, mixtures of
// Gaussians, of Laplaces and of discretised logistics. float32 inside, whatever the parameters' type.
#pragma once

#include <cstdint>

namespace fastar::cpu {

enum class LogProbKind { kBernoulli, kCategorical, kGaussian, kLaplace, kLogistic };

enum class HeadElement { kFloat32, kBFloat16, kFloat16, kInt64, kUInt8 };

// The parameters of all positions, [outer, size, inner]: position (o, i) is number o * inner + i. One of the last two
// strides is 1. A Bernoulli's are [outer, size]: each outer entry is one sum over `size` positions of its own.
struct HeadParams {
    void* data;
    std::int64_t stride_outer;
    std::int64_t stride_size;
    std::int64_t stride_inner;
};

struct Heads {
    LogProbKind kind;
    HeadElement type;    // of the parameters and their gradient: float32, bfloat16 or float16
    HeadElement x_type;  // categorical: int64; mixtures: float32; Bernoulli: any
    std::int64_t outer;
    std::int64_t size;
    std::int64_t inner;
    HeadParams params;
    const void* x;  // contiguous; [channels, outer, inner] for mixtures, [outer, size] for Bernoulli
    // Mixtures. Parameters are logits [K], means [C, K], log-scales [C, K] and, for pairs (c, j) of colours with j < c
    // in the order (1, 0), (2, 0), (2, 1)..., coefficients [C (C - 1) / 2, K].
    std::int64_t components;
    std::int64_t channels;
    // Discretised logistics: x is x_scale * x + x_offset in [-1, 1], x itself within [x_low, x_high].
    float x_scale;
    float x_offset;
    float x_low;
    float x_high;
    float half_bin;
    float min_log_scale;
    float branch;
};

struct HeadsForward {
    Heads heads;
    float* log_prob;  // [outer, inner]; [outer] for Bernoulli
};

// Derivatives by a parameter are bounded by the largest number of the parameters' type before they are multiplied by
// `grad`.
struct HeadsBackward {
    Heads heads;
    const float* grad;       // as log_prob
    HeadParams grad_params;  // like the parameters, strides of its own
    float* grad_x;           // [outer, inner] for mixtures of Gaussians and of Laplaces, or null
};

// Positions that mixtures, and categoricals whose positions lie side by side, take at a time.
inline constexpr std::int64_t kHeadPositions = 64;

// False if an entry of x is no value that the head can take; what is written for it then is not a number.
bool heads_forward(const HeadsForward& f, int threads);

void heads_backward(const HeadsBackward& b, int threads);

}  // namespace fastar::cpu
