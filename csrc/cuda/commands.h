// A program as the kernels read it: plain structs in one stretch of device memory, made on the host by
// cuda/assemble.h. Weights and tables are named by their distance in bytes from the stretch's beginning.
#pragma once

#include <cstdint>

#include "common/head.h"
#include "cpu/executor/kernels.h"

namespace fastar::cuda {

constexpr int kMaxTerms = 4;
constexpr int kMaxCoordinates = 3;
constexpr int kMaxVariables = 8;
constexpr int kMaxInputs = 8;
// Rows that share a pass over the weights: the columns of one matrix instruction.
constexpr int kMaxRows = 8;

// floor((constant + sum coefficient * variable) / divisor)
struct Slot {
    std::int32_t constant = 0;
    std::int32_t divisor = 1;
    std::int32_t terms = 0;
    std::int32_t variable[kMaxTerms] = {};
    std::int32_t coefficient[kMaxTerms] = {};

    constexpr std::int32_t at(const std::int32_t* variables) const {
        std::int32_t value = constant;
        for (int i = 0; i < terms; ++i) value += coefficient[i] * variables[variable[i]];
        if (divisor == 1) return value;
        return value / divisor - (value % divisor < 0 ? 1 : 0);
    }
};

// Where channels of a row's buffer begin, in numbers from the beginning of the row's space; or, with no coordinates and
// base 0, an index of another kind. Coordinates that neither wrap nor may be outside are part of `offset`.
struct Address {
    std::int32_t base = 0;
    Slot offset;
    std::int32_t coordinates = 0;
    std::int32_t wraps = 0;  // the first coordinate is a ring's
    Slot at[kMaxCoordinates];
    std::int32_t size[kMaxCoordinates] = {};
    std::int32_t stride[kMaxCoordinates] = {};

    // -1 where a coordinate is outside.
    constexpr std::int32_t find(const std::int32_t* variables) const {
        std::int32_t where = base + offset.at(variables);
        for (int c = 0; c < coordinates; ++c) {
            std::int32_t i = at[c].at(variables);
            const bool ring = c == 0 && wraps != 0;
            if (i < 0 || (i >= size[c] && !ring)) return -1;
            if (ring) i %= size[0];
            where += i * stride[c];
        }
        return where;
    }
};

// Of a row: 0 is the shared memory of the block, 1 the rest of its arena in global memory, and each input has its own.
constexpr int kFastSpace = 0;
constexpr int kSlowSpace = 1;
constexpr int kFirstInputSpace = 2;
constexpr int kSpaces = kFirstInputSpace + kMaxInputs;

// Channels of a buffer: the address by its number within the block of commands.
struct Operand {
    std::int16_t address = -1;  // -1: absent
    std::int16_t space = 0;
    std::int32_t width = 0;

    constexpr bool present() const { return address >= 0; }
};

enum class Op : std::uint8_t {
    kMatrix,
    kGather,
    kAccumulate,
    kGate,
    kElementwise,
    kNorm,
    kAttention,
    kCell,
    kDraw,
    kStore,
    kEmit
};

// How a matrix is kept. Rows: float32, an output's inputs side by side, summed by a warp. Float32: tiles of 8 outputs,
// of which 4 lanes share each. The others: fragments of 16 outputs x 16 inputs for the matrix instruction.
enum class Storage : std::uint8_t { kRows, kFloat32, kBfloat16, kFloat16, kInt8 };

// Inputs that one step of a tile takes, and the steps that are worth a warp of their own.
constexpr int kStep = 16;
constexpr int kStepsPerPart = 8;
constexpr int kMaxParts = 12;

// A warp's ring has a multiple of eight stages up to so many, and is read by up to four at a time.
constexpr int kMostStages = 32;
constexpr int kRingBatch = 4;

constexpr int outputs_of_tile(Storage storage) {
    return storage == Storage::kRows ? 1 : storage == Storage::kFloat32 ? 8 : 16;
}

// Of a tile.
constexpr int step_bytes(Storage storage) {
    return kStep * outputs_of_tile(storage) * (storage == Storage::kFloat32 ? 4 : storage == Storage::kInt8 ? 1 : 2);
}

// Of a block of commands: a bit each of Command::waits. A grid's block of commands may have more, of which as many come
// between two meetings.
constexpr int kMaxEdges = 64;

// Who has to have come to this point before a command may begin.
enum class Meeting : std::uint8_t { kNobody, kBlock, kTeam };

enum class Elementwise : std::uint8_t { kUnary, kClamp, kConcatElu, kAdd, kMultiply };

using cpu::CellKind;
using cpu::Function;
using cpu::GateFunction;
using cpu::NormKind;

struct Command {
    Op op = Op::kMatrix;
    Meeting meeting = Meeting::kNobody;
    // Whether the blocks of a team share the work, rather than each doing all of it on its own copy.
    bool shared_out = false;
    Storage storage = Storage::kRows;
    Function function = Function::kNone;
    Function input_function = Function::kNone;
    GateFunction gate = GateFunction::kTanh;
    NormKind norm = NormKind::kLayer;
    CellKind cell_kind = CellKind::kTanh;
    Elementwise elementwise = Elementwise::kUnary;
    std::int32_t place = 0;  // of the instruction in the program
    // Shared out, and yet each block writes its own copy alone: whoever reads it reads the numbers of its own tiles.
    bool own_copy = false;
    // Edges of the block of commands: that by which the results reach the others, and those to wait for.
    std::int8_t edge = -1;
    bool arrives = false;  // of a grid: the last of those that write along the edge, side by side
    std::uint64_t waits = 0;
    // What is shared out: pieces that one warp takes, of all rows together and of each row.
    std::int32_t items = 0;
    std::int32_t items_of_row = 0;

    // `source` is also a, query, input_gates and params; `other` is b and hidden_gates.
    Operand out, source, add, other, hidden, cell, cell_out, log_prob, keys, values;
    Operand mirror;              // in global memory, where later positions read what `out` keeps at hand for this one
    Operand fresh;               // the source of the last tap, where that is such a copy at hand
    std::int16_t index = -1;     // also bank, row, base, newest, and of spans
    std::int16_t position = -1;  // addresses that hold indices
    std::int16_t tap = -1;       // the first of `taps` addresses, where the source is read through taps
    std::int16_t taps = 0;

    std::int64_t weight = -1;  // also a table
    std::int64_t bias = -1;
    std::int64_t scales = -1;  // int8: of each output
    std::int64_t spans = -1;
    std::int64_t reach = -1;
    std::int64_t bank_bytes = 0;
    std::int32_t fetched_row = -1;  // where the row of its table lies that was fetched beforehand, if it is that one
    bool fetches_rows = false;      // those of the next pass, as nobody reads this one's any more
    std::int32_t first_block = 0;   // that which has the first tile
    std::int64_t resident = -1;     // where its tiles lie in the block's shared memory, behind the fast space
    std::int32_t tile_bytes = 0;
    bool streamed = false;   // its tiles come through the warps' rings
    std::int32_t next = -1;  // the command that is streamed after this one, as far as is known
    std::int32_t parts = 1;  // of a tile's inputs, each summed by a warp
    std::int32_t outputs = 0;
    std::int32_t inputs = 0;  // of one tap
    std::int32_t channel = 0;
    std::int32_t first_symbol = -1;
    std::int32_t heads = 1;
    std::int32_t kv_heads = 1;
    std::int32_t window = 0;  // 0: all
    Neighbourhood<std::int32_t> local;
    std::int32_t slots = 0;
    std::int32_t law = -1;
    float scale = 1.0f;  // also alpha
    float shift = 0.0f;  // also beta
    float first = 0.0f;
    float eps = 0.0f;
};

enum class Control : std::int32_t { kLoop, kWhen, kEnd, kBlock };

// Control flow, and between it blocks of commands whose addresses are found side by side before the first begins.
struct Entry {
    Control control = Control::kEnd;
    std::int32_t place = 0;
    std::int32_t variable = 0;
    std::int32_t count = -1;  // of a loop; -1: the length of the run
    Slot index;
    std::int32_t start = 0;
    std::int32_t stop = 0x7fffffff;
    std::int32_t step = 1;
    std::int32_t jump = 0;  // from a loop or when to its end, from an end to its beginning
    std::int32_t command = 0;
    std::int32_t commands = 0;
    std::int32_t address = 0;
    std::int32_t addresses = 0;
    std::int32_t edges = 0;
    std::int32_t fetch = 0;  // the first of `fetches`
    std::int32_t fetches = 0;
    std::int32_t next_row = 0;  // the first of `next_rows`
    std::int32_t next_rows = 0;
    std::int32_t completes = 0;  // a position
    std::int32_t follower = -1;  // the block of commands that comes next, if loops go on; -1: who knows
    std::int32_t streamed = -1;  // the first streamed command from here on
};

// A matrix whose tiles are in shared memory throughout a launch: all of them, or in the block that comes r after
// `first_block` in the team those whose number is r more than a multiple of `apart`.
struct Resident {
    std::int64_t from;  // in the stretch
    std::int64_t to;    // in the shared memory behind the fast space
    std::int32_t tile_bytes;
    std::int32_t tiles;  // of a bank
    std::int32_t banks;
    std::int32_t apart;
    std::int32_t first_block;
};

// What each block fetches from global memory before the meeting that begins a block of commands.
struct Fetch {
    std::int32_t address;  // within the block of commands; in the slow space
    std::int32_t to;       // in the fast space
    std::int32_t width;    // a multiple of 4
};

// A row of a table that the next pass through a block of commands reads, if the innermost loop goes on: it is fetched
// during this one, behind its number.
struct NextRow {
    std::int64_t table;    // in the stretch
    std::int32_t address;  // within the block of commands: the index of this pass's row
    std::int32_t step;     // from one pass to the next
    std::int32_t rows;     // of the table
    std::int32_t bytes;    // a multiple of 16
    std::int32_t to;       // in the shared memory of such rows
};
// So many bytes of shared memory lie before such a row, with its number.
constexpr std::int32_t kRowHeader = 16;

// Numbers of the fast space of which each block holds those of its own tiles only.
struct Part {
    std::int32_t base;
    std::int32_t width;
    std::int32_t tile_outputs;
};

// The stretch: where each kind of struct begins, in bytes.
struct Stretch {
    std::int64_t entries;
    std::int64_t commands;
    std::int64_t addresses;
    std::int64_t laws;
    std::int64_t residents;
    std::int64_t parts;
    std::int64_t fetches;
    std::int64_t next_rows;
    std::int64_t next_row_bytes;
    std::int64_t resident_bytes;
    std::int32_t resident_count;
    std::int32_t part_count;
    std::int32_t edges;        // 0 or kMaxEdges
    std::int32_t streamed;     // commands
    std::int32_t stages;       // of a warp's ring, 0 where there is none
    std::int32_t stage_bytes;  // a step of a tile
    std::int32_t entry_count;
    std::int32_t most_addresses;  // of a block
    std::int32_t most_slots;      // of an attention
    std::int32_t most_levels;     // of a draw
    std::int32_t most_components;
    std::int32_t most_parts;  // of a matrix's tile
};

// Whoever cancels a run fails its position behind everything else that may fail there.
enum class FailureKind : std::int32_t { kNone, kNotANumber, kNoSupport, kNotGiven, kNotFinite, kStuck, kCancelled };
constexpr std::int32_t kLastPlace = 0xffffff;

// Of a team of blocks, between launches.
struct Progress {
    std::int32_t entry;
    std::int32_t done;  // positions complete
    std::int32_t variables[kMaxVariables];
    FailureKind failure;
    std::int32_t failed_place;
    std::int32_t failed_position;
    std::int32_t failed_row;
    std::uint32_t arrivals[2];            // at the meetings of a grid, in this launch and in the next
    unsigned long long earliest_failure;  // of a grid, whose blocks share no other memory
};

}  // namespace fastar::cuda
