// What a command sees while it runs: its operands' addresses, the rows of the team, and who does what.
#pragma once

#include <cstdint>

#include "cuda/elements.cuh"
#include "cuda/run.h"
#include "cuda/team.cuh"
#include "cuda/vocabulary.cuh"

namespace fastar::cuda {

// The threads that share a command: those of the block, or of the team.
struct Crew {
    int warp;
    int warps;
    int lane;

    FASTAR_DEVICE int thread() const { return warp * kLanes + lane; }
    FASTAR_DEVICE int threads() const { return warps * kLanes; }
};

struct Context {
    const Run& run;
    const SharedLayout& layout;
    const Team& team;
    Spaces* spaces;
    const std::int32_t* addresses;  // of the block of commands that runs
    unsigned edges_before;          // edges that the blocks of commands before it had, in this launch
    int rows;
    std::int64_t first_row;
    int done;

    FASTAR_DEVICE Crew block_crew() const {
        const auto thread = static_cast<int>(thread_index());
        return {thread / kLanes, static_cast<int>(thread_count()) / kLanes, thread % kLanes};
    }
    FASTAR_DEVICE Crew crew(const Command& c) const {
        Crew all = block_crew();
        if (c.shared_out) {
            // Neighbouring numbers in different blocks, so that few tiles keep many of them busy.
            all.warp = all.warp * team.size + block(c);
            all.warps *= team.size;
        }
        return all;
    }

    // Blocks that share a command, and the number of this one among them.
    FASTAR_DEVICE int blocks(const Command& c) const { return c.shared_out ? team.size : 1; }
    FASTAR_DEVICE int block(const Command& c) const {
        if (!c.shared_out) return 0;
        const int after = team.rank - c.first_block;
        return after < 0 ? after + team.size : after;
    }

    // Pieces that are shared out, and whether this block gets one: the first goes to block 0.
    FASTAR_DEVICE int items(const Command& c) const { return c.items + rows * c.items_of_row; }
    FASTAR_DEVICE bool has_share(const Command& c) const { return block(c) < items(c); }

    FASTAR_DEVICE int index(std::int16_t address) const { return addresses[address]; }
    FASTAR_DEVICE float* row(const Operand& o, int r) const {
        return spaces->base[o.space] + r * spaces->stride[o.space] + addresses[o.address];
    }
    struct Source {
        const float* at;  // of row 0; null where the tap is outside
        std::int64_t stride;
    };
    FASTAR_DEVICE Source source(const Command& c, int tap) const {
        if (c.fresh.present() && tap == c.taps - 1) return {row(c.fresh, 0), stride(c.fresh)};
        const std::int32_t at = addresses[c.taps == 0 ? c.source.address : c.tap + tap];
        return {at < 0 ? nullptr : spaces->base[c.source.space] + at, stride(c.source)};
    }
    FASTAR_DEVICE std::int64_t stride(const Operand& o) const { return spaces->stride[o.space]; }

    template <typename T>
    FASTAR_DEVICE const T* weights(std::int64_t offset) const {
        return reinterpret_cast<const T*>(run.stretch + offset);
    }

    // A row of the command's table: that which was fetched beforehand, where it is the one.
    template <typename T>
    FASTAR_DEVICE const T* table_row(const Command& c, std::int32_t number, std::int64_t bytes) const {
        const std::byte* held = shared_memory() + layout.next_rows + c.fetched_row;
        const bool there = c.fetched_row >= 0 && *reinterpret_cast<const std::int32_t*>(held) == number;
        return reinterpret_cast<const T*>(there ? held + kRowHeader : run.stretch + c.weight + number * bytes);
    }

    // The place that counts what is sent along an edge, and how often it was done before.
    FASTAR_DEVICE Edge* edge(int number) const {
        return reinterpret_cast<Edge*>(shared_memory() + layout.edges) + (edges_before + number) % kMaxEdges;
    }
    FASTAR_DEVICE unsigned times(int number) const { return (edges_before + number) / kMaxEdges; }

    // How many copies of an operand a command writes, and a number into one of them.
    FASTAR_DEVICE int copies(const Command& c, const Operand& o) const {
        return c.shared_out && !c.own_copy && o.space == kFastSpace ? team.size : 1;
    }
    FASTAR_DEVICE void put_copy(const Command& c, float* own, int copies, int number, float value) const {
        if (copies == 1) {
            *own = value;
        } else if (c.edge >= 0) {
            send(own, static_cast<unsigned>(number), value, edge(c.edge));
        } else {
            put_in_block(own, static_cast<unsigned>(number), value);
        }
    }
    FASTAR_DEVICE void put(const Command& c, const Operand& o, float* at, float value) const {
        const int all = copies(c, o);
        for (int i = 0; i < all; ++i) put_copy(c, at, all, i, value);
    }
    // What every block computes for itself one of them mirrors.
    FASTAR_DEVICE bool mirrors(const Command& c) const {
        return c.mirror.present() && (c.shared_out || team.rank == 0);
    }
    // Number `o` of the result of row r.
    FASTAR_DEVICE void keep(const Command& c, int r, int o, float value) const {
        put(c, c.out, row(c.out, r) + o, value);
        if (mirrors(c)) row(c.mirror, r)[o] = value;
    }

    FASTAR_DEVICE double* values(int r, int position) const {
        return exchanged(run.values) + ((first_row + r) * run.length + position) * run.channels;
    }
    FASTAR_DEVICE std::int64_t& length(int r) const { return exchanged(run.lengths)[first_row + r]; }

    // The earliest failure is kept: by position, then place, then row.
    FASTAR_DEVICE void fail(FailureKind kind, int place, int r) const {
        const unsigned long long word = static_cast<unsigned long long>(done) << 32 |
                                        static_cast<unsigned long long>(place) << 8 |
                                        static_cast<unsigned long long>(r) << 4 | static_cast<unsigned long long>(kind);
        if (team.schedule == Schedule::kGrid) return atomic_min(team.failure, word);
        for (int i = 0; i < team.size; ++i) {
            atomic_min(team.size > 1 ? in_block(team.failure, static_cast<unsigned>(i)) : team.failure, word);
        }
    }
};

}  // namespace fastar::cuda
