// A step program into the stretch of device memory that the kernels read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/executor/program.h"
#include "cuda/commands.h"

namespace fastar::cuda {

enum class Precision { kFloat32, kBfloat16, kFloat16, kInt8 };

struct AssemblyOptions {
    Precision precision = Precision::kFloat32;
    std::int64_t fast_numbers = 0;  // of a row, that may lie in shared memory
};

// What a pass over all commands costs a team, each command counted once.
struct Tally {
    std::int64_t commands = 0;
    std::int64_t block_meetings = 0;
    std::int64_t team_meetings = 0;
    std::int64_t weight_bytes = 0;  // read
};

struct Assembly {
    struct Where {
        int space;
        std::int64_t base;
        std::int64_t size;
    };
    std::vector<std::byte> bytes;
    Stretch stretch{};
    std::vector<Where> buffers;  // of the program, in its order
    std::int64_t fast = 0;       // numbers of a row
    std::int64_t slow = 0;
    Tally tally;

    // Throws std::invalid_argument, naming the entry, for what the kernels cannot hold.
    Assembly(cpu::Program program, const AssemblyOptions& options);
};

}  // namespace fastar::cuda
