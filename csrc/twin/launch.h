// Launching a kernel by hand on the twin, for tests of the twin itself.
#pragma once

#include <cstddef>
#include <exception>
#include <span>
#include <string>

#include "cuda/vocabulary.cuh"

namespace fastar::cuda {

// Global memory that blocks of the launch write for one another: see `exchanged` of the vocabulary.
struct Exchanged {
    void* begin;
    std::size_t bytes;
};

struct Grid {
    unsigned blocks;
    unsigned threads;
    std::size_t shared = 0;
    unsigned cluster = 1;
    bool together = false;  // all blocks at once, or a refusal
    std::span<const Exchanged> exchanged = {};
};

template <typename... Parameters, typename... Arguments>
void launch(const Grid& grid, void*, void (*kernel)(Parameters...), Arguments... arguments) {
    twin::Shape shape{grid.blocks, grid.threads, grid.shared, grid.cluster, grid.together};
    for (const Exchanged& one : grid.exchanged) {
        shape.exchanged.push_back({static_cast<std::byte*>(one.begin), one.bytes});
    }
    twin::launch(shape, [&] { kernel(arguments...); });
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
