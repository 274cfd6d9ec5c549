// Launching a kernel: on the card, or on its twin.
#pragma once

#include <cstddef>
#include <span>

#include "cuda/error.cuh"
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

#ifdef FASTAR_TWIN

template <typename... Parameters, typename... Arguments>
void launch(const Grid& grid, void*, void (*kernel)(Parameters...), Arguments... arguments) {
    twin::Shape shape{grid.blocks, grid.threads, grid.shared, grid.cluster, grid.together};
    for (const Exchanged& one : grid.exchanged) {
        shape.exchanged.push_back({static_cast<std::byte*>(one.begin), one.bytes});
    }
    twin::launch(shape, [&] { kernel(arguments...); });
}

#else

template <typename... Parameters, typename... Arguments>
void launch(const Grid& grid, void* stream, void (*kernel)(Parameters...), Arguments... arguments) {
    constexpr std::size_t kWithoutAsking = 48 * 1024;
    constexpr unsigned kPortableCluster = 8;
    if (grid.shared > kWithoutAsking) {
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(grid.shared)));
    }
    if (grid.cluster > kPortableCluster) {
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    }
    cudaLaunchAttribute attributes[2] = {};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(grid.blocks);
    config.blockDim = dim3(grid.threads);
    config.dynamicSmemBytes = grid.shared;
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = attributes;
    if (grid.cluster > 1) {
        attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
        attributes[config.numAttrs++].val.clusterDim = {grid.cluster, 1, 1};
    }
    if (grid.together) {
        attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
        attributes[config.numAttrs++].val.cooperative = 1;
    }
    check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

#endif

}  // namespace fastar::cuda
