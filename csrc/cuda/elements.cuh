// Functions of single numbers, as docs/step-programs.md names them.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/commands.h"
#include "cuda/vocabulary.cuh"

namespace fastar::cuda {

struct alignas(16) Float4 {
    float at[4];
};

FASTAR_DEVICE float sigmoid(float z) {
    return 1.0f / (1.0f + expf(-z));
}

FASTAR_DEVICE_CALL float apply(Function function, float z) {
    switch (function) {
        case Function::kRelu:
            // A NaN stays one.
            return z < 0.0f ? 0.0f : z;
        case Function::kElu:
            return z > 0.0f ? z : expm1f(z);
        case Function::kGelu:
            return 0.5f * z * (1.0f + erff(z * 0.70710678f));
        case Function::kGeluTanh:
            return 0.5f * z * (1.0f + tanhf(0.79788456f * (z + 0.044715f * z * z * z)));
        case Function::kTanh:
            return tanhf(z);
        case Function::kSigmoid:
            return sigmoid(z);
        case Function::kSilu:
            return z * sigmoid(z);
        case Function::kExp:
            return expf(z);
        case Function::kLog:
            return logf(z);
        case Function::kSoftplus:
            return fmaxf(z, 0.0f) + log1pf(expf(-fabsf(z)));
        default:
            return z;
    }
}

// Over a warp; every lane gets the same result, whose order of additions is fixed.
template <typename T>
FASTAR_DEVICE T warp_sum(T value) {
    for (int distance = kLanes / 2; distance > 0; distance /= 2) value += shuffle_xor(value, distance);
    return value;
}

FASTAR_DEVICE float warp_max(float value) {
    for (int distance = kLanes / 2; distance > 0; distance /= 2) value = fmaxf(value, shuffle_xor(value, distance));
    return value;
}

}  // namespace fastar::cuda
