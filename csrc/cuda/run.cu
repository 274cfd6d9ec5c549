// The kernel of all schedules. One, since compiling it takes longest of all: what differs is a few uniform branches
// where blocks meet and where they write into one another's memory.
#include "cuda/api.h"
#include "cuda/interpreter.cuh"
#include "cuda/launch.cuh"

namespace fastar::cuda {
namespace {

FASTAR_KERNEL(kMostThreads) run_program(FASTAR_ARGUMENT(Run) run) {
    const SharedLayout layout(run.where, run.rows_per_team, run.threads, run.fast_stride);
    Interpreter{run, layout}();
}

}  // namespace
}  // namespace fastar::cuda

extern "C" const char* fastar_cuda_run(const fastar::cuda::Run* run, void* stream) {
    using namespace fastar::cuda;
    return guarded([&] {
        if (run->rows == 0) return;
        const SharedLayout layout(run->where, run->rows_per_team, run->threads, run->fast_stride);
        const auto teams = static_cast<unsigned>((run->rows + run->rows_per_team - 1) / run->rows_per_team);
        const auto blocks = static_cast<unsigned>(run->blocks_per_team);
        const bool grid = run->schedule == Schedule::kGrid;
        const auto rows = static_cast<std::size_t>(run->rows);
        const auto values = rows * static_cast<std::size_t>(run->length) * static_cast<std::size_t>(run->channels);
        const Exchanged exchanged[] = {
            {run->arena, rows * static_cast<std::size_t>(run->arena_stride) * sizeof *run->arena},
            {run->values, values * sizeof *run->values},
            {run->lengths, rows * sizeof *run->lengths},
        };
        launch({.blocks = teams * blocks,
                .threads = static_cast<unsigned>(run->threads),
                .shared = static_cast<std::size_t>(layout.bytes),
                .cluster = run->schedule == Schedule::kCluster ? blocks : 1,
                .together = grid,
                .exchanged = exchanged},
               stream, run_program, *run);
    });
}
