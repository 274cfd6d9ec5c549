// Launching a kernel by hand on the twin, for tests of the twin itself.
#pragma once

#include <cstddef>
#include <exception>
#include <string>

#include "cuda/vocabulary.cuh"

namespace fastar::cuda {

struct Grid {
    unsigned blocks;
    unsigned threads;
    std::size_t shared = 0;
    unsigned cluster = 1;
    bool together = false;  // all blocks at once, or a refusal
};

template <typename... Parameters, typename... Arguments>
void launch(const Grid& grid, void*, void (*kernel)(Parameters...), Arguments... arguments) {
    twin::launch({grid.blocks, grid.threads, grid.shared, grid.cluster, grid.together}, [&] { kernel(arguments...); });
}

// nullptr where the body succeeds, else a message that lives until this thread's next one.
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
