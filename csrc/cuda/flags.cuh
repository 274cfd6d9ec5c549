// Edges of a grid: each has a counter in global memory, at which the blocks arrive that had a share in what was
// written. Who reads that waits for their number; who has no share, of the writing or of the reading, goes on.
#pragma once

#include <cstdint>

#include "cuda/context.cuh"

namespace fastar::cuda {

// What a block knows of an edge: kept by the lane of its first warp that looks after it, and by no other thread.
struct Flag {
    unsigned promised;  // what the counter will be once the commands so far are done
    unsigned owed;      // this block's own arrivals, for commands of which a later one speaks for all
};
static_assert(sizeof(Flag) == sizeof(Edge));

FASTAR_DEVICE Flag* flag_of(const SharedLayout& layout, int edge) {
    return reinterpret_cast<Flag*>(shared_memory() + layout.edges) + edge;
}
FASTAR_DEVICE unsigned* counter_of(const Run& run, int team, int edge) {
    return run.flags + (static_cast<std::int64_t>(team) * kMaxEdges + edge) * kFlagStride;
}

// Counters rise throughout a run. Nobody arrives before all blocks have met, so all begin with the same number.
FASTAR_DEVICE void begin_flag(const Run& run, const SharedLayout& layout, int team, int edge) {
    *flag_of(layout, edge) = {*counter_of(run, team, edge), 0};
}

// After a command that writes along an edge.
FASTAR_DEVICE void arrive(const Context& x, const Command& c) {
    // The block's results, of which one lane's release speaks.
    if (c.arrives) barrier();
    if (static_cast<int>(thread_index()) != c.edge % kLanes) return;
    Flag* const own = flag_of(x.layout, c.edge);
    const int items = x.items(c);
    own->promised += static_cast<unsigned>(items < x.team.size ? items : x.team.size);
    if (x.has_share(c)) ++own->owed;
    if (!c.arrives || own->owed == 0) return;
    add_release(counter_of(x.run, x.team.number, c.edge), own->owed);
    own->owed = 0;
}

// Every thread of the block; what was written along the edges is seen after. False where some never came.
FASTAR_DEVICE bool await_flags(const Context& x, std::uint64_t edges) {
    // One warp asks for the block: more would be in the way of those who arrive.
    for (int edge = static_cast<int>(thread_index()); edge < kMaxEdges && thread_index() < kLanes; edge += kLanes) {
        if ((edges >> edge & 1) == 0) continue;
        if (!await(counter_of(x.run, x.team.number, edge), flag_of(x.layout, edge)->promised)) x.team.give_up();
    }
    barrier();
    return !x.team.has_given_up();
}

}  // namespace fastar::cuda
