// What a launch is given, and how it lays out a block's shared memory: plain types, shared by the host and the kernels.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/commands.h"

namespace fastar::cuda {

// Who runs a program for some rows: a block, a cluster of them, or all blocks of the launch.
enum class Schedule : std::int32_t { kRow, kCluster, kGrid };

// All pointers are the device's. Arrays are indexed by row first; docs/step-programs.md, "Draws", says what they mean.
struct Run {
    const std::byte* stretch;
    Stretch where;
    Progress* progress;  // [teams]
    float* arena;        // [rows, arena_stride]: the fast space's numbers, then the slow one's
    std::int64_t arena_stride;
    const float* inputs[kMaxInputs];
    std::int64_t input_strides[kMaxInputs];
    unsigned* flags;  // [teams, kMaxEdges, kFlagStride]: the counters of a grid's edges
    float* scores;    // of attention, where they do not fit beside the rest: [blocks, warps, most_slots]
    std::int64_t rows;
    Schedule schedule;
    std::int32_t turn;  // 0 and 1 alternate from launch to launch
    std::int32_t rows_per_team;
    std::int32_t blocks_per_team;
    std::int32_t threads;  // of a block
    std::int32_t fast;     // numbers of a row in shared memory
    std::int32_t fast_stride;
    std::int32_t length;
    std::int32_t target;    // run until that many positions are complete
    std::int32_t channels;  // of a value
    std::int32_t levels;    // 0: floats
    std::int32_t levels_per_row;
    std::int32_t range_per_row;
    std::int32_t greedy;
    std::int64_t top_k;  // 0: none
    std::int64_t stop;   // -1: none
    std::int64_t position_offset;
    std::int64_t uniform_draws;
    double temperature;
    double top_p;  // 0: none
    const std::int64_t* row_numbers;
    const std::int64_t* seeds;
    std::int64_t* lengths;        // [rows]
    double* values;               // [rows, length, channels]
    double* log_prob;             // [rows]
    double* log_weight;           // [rows]
    const double* given;          // [rows, length, channels] or null
    const std::uint8_t* support;  // [rows or 1, length, levels] or null
    const double* low;            // [rows or 1, length, channels] or null
    const double* high;
    const double* uniforms;  // [rows, length, draws] or null
    // Of the host's memory, for what goes on while the kernel runs. Every so many positions a team says how many are
    // complete, and asks whether the rest is still wanted.
    std::int32_t report_every;
    std::int32_t* reached;       // [teams]; kAllReached when a team has ended
    const std::int32_t* cancel;  // not 0: end after the position under way
    double* handed;              // a copy of the values, or null
};

// Words between the counters of a grid's edges: each has a line of the second cache level for itself.
constexpr std::int32_t kFlagStride = 32;

constexpr std::int32_t kAllReached = 0x7fffffff;

// Of a block. More would leave a thread fewer registers than the kernel has a use for.
constexpr std::int32_t kMostThreads = 384;
// The largest cluster that any card has.
constexpr std::uint32_t kLargestCluster = 16;
// A choice among at most so many levels is made by a warp, among more by a block.
constexpr std::int32_t kWarpLevels = 1024;
// Into how many stretches the levels are cut whose sums are taken apart: by a block, and by a warp.
constexpr std::int32_t kBlockSegments = 1024;
constexpr std::int32_t kWarpSegments = 32;
// Attention's scores stay in shared memory up to this size.
constexpr std::int64_t kMostScoreBytes = 32 * 1024;

struct Spaces {
    float* base[kSpaces];
    std::int64_t stride[kSpaces];
};

// How far a warp is that asks for weights ahead, through its ring.
struct Ahead {
    std::int64_t from;     // of the next step to ask for, in the stretch
    std::int32_t left;     // steps of its item; -1: what comes then is not known
    std::int32_t stage;    // to be read next, and written then
    std::int32_t command;  // whose the item is
    std::int32_t first;    // tile of this block in the round
    std::int32_t item;     // of the round
    std::int32_t ring;     // in the shared memory
};

// A block's shared memory, in bytes from its beginning.
struct SharedLayout {
    // Behind the word of the earliest failure. Of all warps that a block may have, so that it follows from nothing.
    static constexpr std::int64_t kAheads = 16;
    std::int64_t spaces = kAheads + kMostThreads / 32 * static_cast<std::int64_t>(sizeof(Ahead));
    std::int64_t sums;       // doubles [rows, 2]: log-probability, log-weight
    std::int64_t edges;      // [where.edges]: of a cluster, or what a block of a grid knows of them
    std::int64_t addresses;  // two sets: that of a block of commands is found while slow threads still read the last
    std::int64_t choice;     // doubles, of a warp or of the block
    std::int64_t mixture;    // doubles [rows, 2 components]
    std::int64_t partials;   // floats [tiles in parts at once, parts, rows, 32]
    std::int64_t scores;     // -1: in global memory
    std::int64_t next_rows;  // bytes [where.next_row_bytes]
    std::int64_t fast;
    std::int64_t resident;  // tiles of matrices
    std::int64_t ring;      // [warps, where.stages, where.stage_bytes]
    std::int64_t bytes;

    constexpr SharedLayout(const Stretch& where, std::int32_t rows, std::int32_t threads, std::int64_t fast_stride) {
        sums = spaces + static_cast<std::int64_t>(sizeof(Spaces));
        edges = sums + 16 * rows;
        addresses = edges + static_cast<std::int64_t>(sizeof(std::uint64_t)) * where.edges;
        choice = aligned(addresses + 8 * where.most_addresses);
        const std::int64_t warps = threads / 32;
        mixture = choice + 8 * (where.most_levels > kWarpLevels ? kBlockSegments : kWarpSegments * warps);
        partials = aligned(mixture + 16 * rows * where.most_components);
        const std::int64_t items = where.most_parts <= 1 ? 0 : warps > where.most_parts ? warps : where.most_parts;
        const std::int64_t behind = partials + items * kMaxRows * 32 * 4;
        const std::int64_t score_bytes = 4 * warps * where.most_slots;
        scores = score_bytes <= kMostScoreBytes ? behind : -1;
        next_rows = aligned(behind + (scores < 0 ? 0 : score_bytes));
        fast = next_rows + where.next_row_bytes;
        resident = (fast + 4 * rows * fast_stride + 127) / 128 * 128;
        ring = aligned(resident + where.resident_bytes);
        bytes = ring + warps * where.stages * where.stage_bytes;
    }

    static constexpr std::int64_t aligned(std::int64_t n) { return (n + 15) / 16 * 16; }
};

// Numbers between the rows of the fast space: lanes that read eight rows at once then meet all banks.
constexpr std::int64_t stride_of(std::int64_t fast) {
    return (fast + 23) / 32 * 32 + 8;
}

// Uniform numbers [rows, positions, draws] of rows row_offset .. row_offset + rows - 1.
struct Uniforms {
    double* out;
    std::uint64_t seed;
    std::uint64_t row_offset;
    std::int64_t rows;
    std::int64_t positions;
    std::int64_t draws;
    std::int32_t continuous;
};

constexpr std::int32_t kUniformThreads = 256;

// The shape of a launch.
struct Launch {
    std::uint32_t blocks = 0;
    std::uint32_t threads = 0;
    std::uint32_t shared = 0;  // bytes of a block
    std::uint32_t cluster = 1;
    bool together = false;  // all blocks at once, or a refusal
};

constexpr Launch launch_of(const Run& run) {
    const SharedLayout layout(run.where, run.rows_per_team, run.threads, run.fast_stride);
    const auto teams = static_cast<std::uint32_t>((run.rows + run.rows_per_team - 1) / run.rows_per_team);
    const auto blocks = static_cast<std::uint32_t>(run.blocks_per_team);
    return {.blocks = teams * blocks,
            .threads = static_cast<std::uint32_t>(run.threads),
            .shared = static_cast<std::uint32_t>(layout.bytes),
            .cluster = run.schedule == Schedule::kCluster ? blocks : 1,
            .together = run.schedule == Schedule::kGrid};
}

constexpr Launch launch_of(const Uniforms& u) {
    // What is beyond the widest grid goes round the kernel's own loop.
    const std::int64_t blocks = (u.rows * u.positions * u.draws + kUniformThreads - 1) / kUniformThreads;
    constexpr std::int64_t kMost = 1 << 20;
    return {.blocks = static_cast<std::uint32_t>(blocks < kMost ? blocks : kMost), .threads = kUniformThreads};
}

}  // namespace fastar::cuda
