// Errors of the CUDA runtime: exceptions inside the library, messages at its border.
#pragma once

#include <cuda_runtime.h>

namespace fastar::cuda {

struct Failure {
    cudaError_t status;
};

inline void check(cudaError_t status) {
    if (status != cudaSuccess) throw Failure{status};
}

// The body of an entry point: nullptr where it succeeds, the runtime's message where a check inside it fails.
template <typename Body>
const char* guarded(Body&& body) {
    try {
        body();
        return nullptr;
    } catch (const Failure& failure) {
        return cudaGetErrorString(failure.status);
    }
}

}  // namespace fastar::cuda
