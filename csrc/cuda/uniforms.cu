// The random numbers of csrc/common/philox.h, made on the device.
#include <algorithm>
#include <cstdint>

#include "common/philox.h"
#include "cuda/api.h"
#include "cuda/launch.cuh"

namespace fastar::cuda {
namespace {

constexpr int kThreads = 256;

FASTAR_KERNEL(kThreads)
fill_uniforms(double* uniforms, std::uint64_t seed, std::uint64_t row_offset, std::int64_t count,
              std::int64_t positions, std::int64_t draws, bool continuous) {
    const std::int64_t stride = std::int64_t{block_count()} * kThreads;
    for (std::int64_t i = std::int64_t{block_index()} * kThreads + thread_index(); i < count; i += stride) {
        const std::int64_t draw = i % draws;
        const std::int64_t position = i / draws % positions;
        const std::int64_t row = i / draws / positions;
        const PhiloxWords words = philox(seed, row_offset + static_cast<std::uint64_t>(row),
                                         static_cast<std::uint32_t>(position), static_cast<std::uint32_t>(draw));
        uniforms[i] = continuous ? continuous_uniform(words) : static_cast<double>(discrete_uniform(words));
    }
}

}  // namespace
}  // namespace fastar::cuda

extern "C" const char* fastar_cuda_fill_uniforms(double* uniforms, std::uint64_t seed, std::uint64_t row_offset,
                                                 std::int64_t rows, std::int64_t positions, std::int64_t draws,
                                                 bool continuous, void* stream) {
    using namespace fastar::cuda;
    return guarded([&] {
        const std::int64_t count = rows * positions * draws;
        if (count == 0) return;
        // A grid is at most 2^31 - 1 blocks wide; what is beyond goes round the kernel's own loop.
        const auto blocks = static_cast<unsigned>(std::min<std::int64_t>((count + kThreads - 1) / kThreads, 1 << 20));
        launch({.blocks = blocks, .threads = kThreads}, stream, fill_uniforms, uniforms, seed, row_offset, count,
               positions, draws, continuous);
    });
}
