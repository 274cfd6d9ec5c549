// Weights that no shared memory keeps, on their way: a warp asks for the steps of the tiles that it will multiply a
// ring of stages ahead, over commands, meetings and positions. A lane reads what it has copied itself, so nobody else
// has to know how far it is.
#pragma once

#include <cstdint>

#include "cuda/context.cuh"

namespace fastar::cuda {

struct Outputs {
    int begin;
    int end;
};

// The steps of a tile that one of its parts takes: of all taps, one after another.
struct Steps {
    int begin;
    int end;

    FASTAR_DEVICE Steps(int all, int part, int parts) : begin(all * part / parts), end(all * (part + 1) / parts) {}
    // Those that fall on a tap of so many steps.
    FASTAR_DEVICE Outputs of_tap(int tap, int steps) const {
        const int from = begin - tap * steps;
        const int to = end - tap * steps;
        return {from > 0 ? from : 0, to < steps ? to : steps};
    }
};

// How a block's tiles of a matrix come to its warps: in rounds of some at once, each in its parts.
struct Tiles {
    int block;
    int blocks;
    int own;
    int at_once;

    FASTAR_DEVICE Tiles(const Command& c, int block, int blocks, int warps)
        : block(block),
          blocks(blocks),
          own(((c.outputs + outputs_of_tile(c.storage) - 1) / outputs_of_tile(c.storage) - block + blocks - 1) /
              blocks),
          at_once(warps > c.parts ? warps / c.parts : 1) {}
    // In the matrix, of the block's n-th.
    FASTAR_DEVICE int number(int n) const { return n * blocks + block; }
    FASTAR_DEVICE int in_round(int first) const { return own - first < at_once ? own - first : at_once; }
};

FASTAR_DEVICE Ahead* ahead_of_warp() {
    return reinterpret_cast<Ahead*>(shared_memory() + SharedLayout::kAheads) + thread_index() / kLanes;
}

// Where a warp's ring is, and its copies come from.
class Ring {
  public:
    FASTAR_DEVICE Ring(const Run& run, int rank, int size)
        : run_(run), own_(ahead_of_warp()), now_(*own_), rank_(rank), size_(size) {}

    // Asks for as many steps more, in place of as many stages that this lane has read. Every stage is a group of
    // copies, be it empty, so that as many groups are under way as there are stages.
    FASTAR_DEVICE void turn(int count) {
        const int bytes = run_.where.stage_bytes / kLanes;
        for (; count > 0; --count) {
            if (now_.left == 0) find_item();
            if (now_.left > 0) {
                std::byte* to = shared_memory() + now_.ring + now_.stage * run_.where.stage_bytes + lane_ * bytes;
                const std::byte* from = run_.stretch + now_.from + lane_ * bytes;
                if (bytes == 16) {
                    copy_async<16>(to, from);
                } else {
                    copy_async<8>(to, from);
                }
                now_.from += run_.where.stage_bytes;
                --now_.left;
            }
            copy_commit();
            if (++now_.stage == run_.where.stages) now_.stage = 0;
        }
        warp_barrier();
        if (lane_ == 0) *own_ = now_;
        warp_barrier();
    }

  private:
    // What the warp multiplies after the item that it has asked for: in the order of by_parts, then by the next matrix.
    FASTAR_DEVICE void find_item() {
        const Command* commands = reinterpret_cast<const Command*>(run_.stretch + run_.where.commands);
        now_.left = -1;
        now_.item += warps_;
        // A warp that has a part of none of them stops looking once it has seen them all.
        for (int seen = 0; now_.command >= 0; ++seen) {
            const Command& c = commands[now_.command];
            const Tiles tiles(c, c.shared_out ? (rank_ - c.first_block + size_) % size_ : 0, c.shared_out ? size_ : 1,
                              warps_);
            while (now_.first < tiles.own && now_.item >= tiles.in_round(now_.first) * c.parts) {
                now_.first += tiles.at_once;
                now_.item = warp_;
            }
            if (now_.first < tiles.own) {
                const std::int64_t tile = tiles.number(now_.first + now_.item / c.parts);
                const Steps share(c.tile_bytes / run_.where.stage_bytes, now_.item % c.parts, c.parts);
                now_.from =
                    c.weight + tile * c.tile_bytes + static_cast<std::int64_t>(share.begin) * run_.where.stage_bytes;
                now_.left = share.end - share.begin;
                return;
            }
            now_.command = seen < run_.where.streamed ? c.next : -1;
            now_.first = 0;
            now_.item = warp_;
        }
    }

    const Run& run_;
    Ahead* own_;
    Ahead now_;
    const int rank_;
    const int size_;
    const int warp_ = static_cast<int>(thread_index()) / kLanes;
    const int warps_ = static_cast<int>(thread_count()) / kLanes;
    const int lane_ = static_cast<int>(thread_index()) % kLanes;
};

// A call, so that none of this takes registers from the products.
FASTAR_DEVICE_CALL void turn_ring(const Run& run, int rank, int size, int count) {
    Ring(run, rank, size).turn(count);
}

// Until the next kRingBatch stages have landed.
FASTAR_DEVICE void wait_for_ring(int stages) {
    switch (stages) {
        case 8:
            return copy_wait<8 - kRingBatch>();
        case 16:
            return copy_wait<16 - kRingBatch>();
        case 24:
            return copy_wait<24 - kRingBatch>();
        default:
            return copy_wait<32 - kRingBatch>();
    }
}

// Begins with a command's matrix, whatever the ring was filled with.
FASTAR_DEVICE void restart_ring(const Run& run, const SharedLayout& layout, const Team& team, int command) {
    copy_wait<0>();
    const auto thread = static_cast<int>(thread_index());
    const int warp = thread / kLanes;
    const int warps = static_cast<int>(thread_count()) / kLanes;
    warp_barrier();
    if (thread % kLanes == 0) {
        const auto ring = static_cast<std::int32_t>(layout.ring) + warp * run.where.stages * run.where.stage_bytes;
        *ahead_of_warp() = {
            .from = 0, .left = 0, .stage = 0, .command = command, .first = 0, .item = warp - warps, .ring = ring};
    }
    warp_barrier();
    turn_ring(run, team.rank, team.size, run.where.stages);
}

// Steps of a tap, whose weights lie one after another, or come next in the ring: multiply(weights, s) does one, kAhead
// of them at once. Without `inputs`, of a tap that is outside, the weights only pass.
template <int kStageBytes, int kAhead, typename Multiply>
FASTAR_DEVICE void over_steps(const Context& x, const Command& c, const std::byte* weights, Outputs range, bool inputs,
                              Multiply multiply) {
    if (!c.streamed && !inputs) return;
    for (int s = range.begin; s < range.end;) {
        int count = range.end - s;
        const std::byte* from = weights + static_cast<std::int64_t>(s) * kStageBytes;
        if (c.streamed) {
            const Ahead& own = *ahead_of_warp();
            wait_for_ring(x.run.where.stages);
            from = shared_memory() + own.ring + own.stage * kStageBytes;
            const int straight = x.run.where.stages - own.stage;
            count = count < kRingBatch ? count : kRingBatch;
            count = count < straight ? count : straight;
        }
        if (inputs) {
#pragma unroll kAhead
            for (int i = 0; i < count; ++i) multiply(from + static_cast<std::int64_t>(i) * kStageBytes, s + i);
        }
        if (c.streamed) turn_ring(x.run, x.team.rank, x.team.size, count);
        s += count;
    }
}

}  // namespace fastar::cuda
