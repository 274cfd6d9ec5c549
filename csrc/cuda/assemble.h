// A step program into the stretch of device memory that the kernels read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/executor/program.h"
#include "cuda/commands.h"
#include "cuda/run.h"

namespace fastar::cuda {

enum class Precision { kFloat32, kBfloat16, kFloat16, kInt8 };

struct AssemblyOptions {
    Precision precision = Precision::kFloat32;
    Schedule schedule = Schedule::kRow;
    std::int64_t fast_numbers = 0;    // of a row, that may lie in shared memory
    std::int64_t resident_bytes = 0;  // of matrices, that a block may keep in shared memory
    std::int64_t local_bytes = 0;     // of a matrix that every block of a cluster multiplies for itself
    std::int64_t stages = 0;          // of each warp's ring for matrices that are not kept: 0, 8, 16, 24 or 32
    bool caches_far = false;          // rings and caches lie in global memory, so that matrices have their room
    std::int64_t blocks = 1;          // of a team
    bool contents = true;             // false: all but the weights themselves, to see what fits
};

// What a pass over all commands costs a team, each command counted once.
struct Tally {
    std::int64_t commands = 0;
    std::int64_t block_meetings = 0;
    std::int64_t team_meetings = 0;
    std::int64_t edges = 0;           // waited for
    std::int64_t fetches = 0;         // taps that are fetched beforehand
    std::int64_t streams = 0;         // commands whose matrices do not lie in shared memory
    std::int64_t weight_bytes = 0;    // read by a block
    std::int64_t resident_bytes = 0;  // of these, from shared memory

    // Matrices that are not kept, known before their turn and multiplied without a wait between them.
    struct Share {
        std::int64_t tile_bytes;
        std::int64_t tiles;
        std::int64_t parts;   // of a tile
        std::int64_t blocks;  // that have the tiles in turn
        std::int64_t waits;   // meetings of the team and edges, since the share before
    };
    std::vector<Share> shares;
};

struct Assembly {
    struct Where {
        int space;
        std::int64_t base;
        std::int64_t size;
    };
    std::vector<std::byte> bytes;
    std::int64_t size = 0;  // of `bytes`, were they there
    Stretch stretch{};
    std::vector<Where> buffers;  // of the program, in its order
    std::int64_t fast = 0;       // numbers of a row
    std::int64_t slow = 0;
    Tally tally;

    // Throws std::invalid_argument, naming the entry, for what the kernels cannot hold.
    Assembly(cpu::Program program, const AssemblyOptions& options);
};

}  // namespace fastar::cuda
