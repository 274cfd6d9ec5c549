// Errors inside the library are exceptions; at its border they become messages.
#pragma once

#ifndef FASTAR_TWIN
#include <cuda_runtime.h>
#endif

#include <exception>
#include <stdexcept>
#include <string>

namespace fastar::cuda {

#ifndef FASTAR_TWIN
inline void check(cudaError_t status) {
    if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}
#endif

// The body of an entry point: nullptr where it succeeds, else a message that lives until this thread's next one.
template <typename Body>
const char* guarded(Body&& body) {
    thread_local std::string message;
    try {
        body();
        return nullptr;
    } catch (const std::exception& error) {
        message = error.what();
        return message.c_str();
    }
}

}  // namespace fastar::cuda
