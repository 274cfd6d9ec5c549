// What turns a program into the stretch that the kernels read; its parts lie in the files assemble*.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/executor/access.h"
#include "cuda/assemble.h"
#include "cuda/keep_apart.h"
#include "cuda/pack.h"

namespace fastar::cuda {

using cpu::Accesses;
using cpu::Buffer;
using cpu::BufferKind;
using cpu::Index;
using cpu::Instruction;
using cpu::Program;
using cpu::Ref;

// Fewer outputs are summed by a warp each.
constexpr std::int64_t kTileOutputs = 16;

inline std::int64_t product(const std::vector<std::int64_t>& shape) {
    return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
}

inline std::int32_t narrow(std::int64_t n) {
    if (n < std::numeric_limits<std::int32_t>::min() || n > std::numeric_limits<std::int32_t>::max()) {
        throw std::invalid_argument("program: the number " + std::to_string(n) +
                                    " is beyond the 32 bits that the cuda executor has for sizes and places");
    }
    return static_cast<std::int32_t>(n);
}

inline std::size_t at(int i) {
    return static_cast<std::size_t>(i);
}

inline bool sums_by_warps(const Instruction& i) {
    return i.op == cpu::Op::kSpanLinear || i.out->width < kTileOutputs;
}

class Assembler {
  public:
    Assembler(Program program, const AssemblyOptions& options, Assembly& to)
        : program_(std::move(program)), options_(options), to_(to) {}

    void run();

  private:
    struct Held {
        std::int64_t weights = 0;
        std::int64_t scales = -1;
        std::int64_t bank_bytes = 0;
        std::int64_t resident = -1;
        std::int32_t tile_bytes = 0;
        std::int32_t first_block = 0;
    };

    // Room in every block's shared memory, of which matrices of fewer tiles than blocks leave some blocks' free.
    struct Shelf {
        std::int64_t to;
        std::int64_t bytes;
        std::int64_t blocks;  // whose room is taken
    };

    // A command, or what it does in global memory beside, since the last meeting of the team.
    struct Before {
        Accesses accesses;
        bool shared_out = false;
        bool sends = false;  // its results may come by an edge
        int edge = -1;       // of a grid: once somebody has asked for it
        std::size_t command = 0;
        bool waited = false;     // for the edge, by every block
        bool block_met = false;  // since
    };

    // Whether the blocks of a team have copies of a row's numbers: those of a cluster.
    bool shares_copies() const {
        return options_.schedule == Schedule::kCluster && options_.blocks > 1 && options_.fast_numbers > 0;
    }
    // Whether blocks raise flags in global memory for one another: those of a grid.
    bool raises_flags() const { return options_.schedule == Schedule::kGrid && options_.blocks > 1; }

    std::int16_t space_of(const Ref& ref) const { return static_cast<std::int16_t>(to_.buffers[at(ref.buffer)].space); }

    // The program, entry by entry: assemble.cpp.
    void control(const Instruction& i);
    void begin_block(const Instruction& i);
    static Op op_of(cpu::Op op);
    void command(const Instruction& i, const Beside& beside);
    void law(const Instruction& i, Command& c);
    void lay_out();

    // Where buffers lie, and how an instruction finds them: assemble_places.cpp.
    // Scratch and the smallest states are fast; what is left over is slow.
    void place_buffers();
    // Of a grid every block computes small work for itself, into a copy of its own: assemble_copies.cpp.
    void find_copies();
    // Without those that an instruction writes which blocks have to share.
    void narrow_copies();
    // One place for scratch that is not needed at the same time.
    void fold_copies();
    void place_copies();
    // Scratch that is only ever added to by products of the same outputs: a block needs the numbers of its own tiles,
    // and a chain of such sums one place.
    void find_own();
    void follow(Ref& ref) const;
    // What a launch gathers at its end: numbers of which each block holds some.
    void list_parts();
    Slot slot(const Index& index, std::int64_t factor = 1, std::int64_t added = 0) const;
    std::int16_t number(const Address& address);
    std::int16_t index(const std::optional<Index>& i);
    Address address(const Ref& ref, const std::vector<std::int64_t>* tap);
    // offset += stride * index, where that is one sum of products.
    bool join(Slot& offset, const Index& index, std::int64_t stride) const;
    Operand operand(const std::optional<Ref>& ref);
    Operand whole(int buffer);

    // Weights: packed, kept in shared memory where there is room, and read in tiles: assemble_matrices.cpp.
    MatrixShape shape_of(const Instruction& i) const;
    std::int64_t append(const void* from, std::int64_t bytes);
    std::int64_t table(int weight);
    // Taps that are fetched beforehand: outside where the ring's place is, else where they were fetched to.
    void fetch_taps(const Instruction& i, const Beside& beside, Command& c);
    void matrix(const Instruction& i, const Beside& beside, Command& c);
    // Of a block alone: rows that are known before their turn are fetched while the value before is drawn.
    void fetch_row(const Instruction& i, Command& c);
    void end_rows();
    Held keep(const float* weights, const MatrixShape& shape, const Command& c, bool fixed);
    static Storage storage_of(Precision precision);

    // Which weights come through rings, and in which order: assemble_streams.cpp.
    // A matrix that is streamed, or would be if there were rings.
    void count_share(Command& c);
    // Which block of commands comes after another one, where that is easy to know.
    std::int32_t follower(std::int32_t entry) const;
    void thread_streams();

    // Who waits for whom: assemble_meetings.cpp.
    // Every edge of a cluster is waited for before its block of commands ends, so that all stand at the same count.
    void end_block();
    void wait_for(Command& c, int edge);
    void count_items(Command& c) const;
    // Of a grid: the command waits for edges from those of `before_`, opened where nobody has asked for them before.
    void follow_flags(const std::set<std::size_t>& sources, Command& c);
    void open_edge(const std::set<std::size_t>& sources);
    // What every block does on its own copy of a row's fast numbers costs no exchange.
    bool is_shared_out(const Command& c, std::int64_t matrix_bytes) const;
    // Whom the command waits for, and whether an edge tells the others of it.
    void share(const Instruction& i, const Beside& beside, Command& c);
    // `waits` where an edge brings what the later one needs.
    Meeting meets(const Before& earlier, const Before& later, bool& waits) const;

    template <typename T>
    std::int64_t put(const std::vector<T>& all) {
        static_assert(std::is_trivially_copyable_v<T>);
        const std::size_t begin = (to_.bytes.size() + 255) / 256 * 256;
        to_.bytes.resize(begin + all.size() * sizeof(T));
        if (!all.empty()) std::memcpy(to_.bytes.data() + begin, all.data(), all.size() * sizeof(T));
        return static_cast<std::int64_t>(begin);
    }

    Program program_;
    const AssemblyOptions& options_;
    Assembly& to_;
    std::vector<Entry> entries_;
    std::vector<Command> commands_;
    std::vector<Address> addresses_;
    std::vector<Head> laws_;
    std::vector<Resident> residents_;
    std::vector<std::byte> weights_;
    std::int64_t weight_bytes_ = 0;
    std::map<int, std::int64_t> tables_;
    std::map<std::tuple<int, std::int64_t, std::int64_t, bool, bool>, Held> packed_;
    std::vector<Shelf> shelves_;
    std::int64_t waits_ = 0;       // that the tally had at its last share
    std::int64_t next_block_ = 0;  // of a team, that is given the next tile which nobody keeps
    std::vector<Beside> beside_;
    std::set<int> own_;           // buffers of which a block needs the numbers of its own tiles only
    std::map<int, int> instead_;  // buffers whose place is another's
    std::set<int> copies_;        // of a grid: buffers of which every block has a copy
    std::vector<Part> parts_;
    std::vector<Fetch> fetches_;
    std::vector<NextRow> next_rows_;
    std::vector<std::int32_t> open_;  // loops and conditions around the block of commands
    std::vector<Before> before_;
    std::int32_t met_edges_ = 0;  // edges of the block of commands before its last meeting of the team
};

}  // namespace fastar::cuda
