// All kernels, one translation unit: what nvcc or NVRTC makes of it is loaded by cuda/library.cpp, and csrc/twin calls
// it as it is.
#include "common/philox.h"
#include "cuda/interpreter.cuh"
#include "cuda/run.h"

namespace fastar::cuda {

// One kernel for all schedules, since compiling it takes longest of all: what differs is a few uniform branches where
// blocks meet and where they write into one another's memory.
extern "C" FASTAR_KERNEL(kMostThreads) fastar_run(FASTAR_ARGUMENT(Run) run) {
    const SharedLayout layout(run.where, run.rows_per_team, run.threads, run.fast_stride);
    Interpreter{run, layout}();
}

extern "C" FASTAR_KERNEL(kUniformThreads) fastar_uniforms(FASTAR_ARGUMENT(Uniforms) u) {
    const std::int64_t count = u.rows * u.positions * u.draws;
    const std::int64_t stride = std::int64_t{block_count()} * kUniformThreads;
    for (std::int64_t i = std::int64_t{block_index()} * kUniformThreads + thread_index(); i < count; i += stride) {
        const std::int64_t draw = i % u.draws;
        const std::int64_t position = i / u.draws % u.positions;
        const std::int64_t row = i / u.draws / u.positions;
        const PhiloxWords words = philox(u.seed, u.row_offset + static_cast<std::uint64_t>(row),
                                         static_cast<std::uint32_t>(position), static_cast<std::uint32_t>(draw));
        u.out[i] = u.continuous != 0 ? continuous_uniform(words) : static_cast<double>(discrete_uniform(words));
    }
}

}  // namespace fastar::cuda
