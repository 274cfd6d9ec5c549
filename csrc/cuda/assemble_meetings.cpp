// Who waits for whom.
#include <algorithm>

#include "cuda/assembler.h"

namespace fastar::cuda {
namespace {

// An edge counts at most 2^20 bytes: eight rows of so many numbers.
constexpr std::int64_t kMostSent = 16 * 1024;

}  // namespace

void Assembler::end_block() {
    for (const Before& one : before_) {
        if (one.edge >= 0 && !one.waited) wait_for(commands_.back(), one.edge);
    }
    before_.clear();
}

void Assembler::wait_for(Command& c, int edge) {
    c.waits |= std::uint64_t{1} << edge;
    ++to_.tally.edges;
    for (Before& one : before_) one.waited = one.waited || one.edge == edge;
}

bool Assembler::is_shared_out(const Command& c, std::int64_t matrix_bytes) const {
    const bool slow = c.out.space != kFastSpace || (c.cell_out.present() && c.cell_out.space != kFastSpace);
    const bool large = c.op == Op::kMatrix && matrix_bytes > options_.local_bytes;
    return slow || large || c.op == Op::kAttention || c.op == Op::kDraw || c.op == Op::kEmit;
}

void Assembler::share(const Instruction& i, const Beside& beside, Command& c) {
    if (c.op != Op::kMatrix) c.shared_out = is_shared_out(c, 0);
    std::vector<Before> now{{.accesses = cpu::accesses(i), .shared_out = c.shared_out && !c.own_copy}};
    std::erase_if(now[0].accesses.reads, [](const cpu::Access& one) { return one.ref.buffer == cpu::kValues; });
    if (!beside.fetched.empty()) now[0].accesses.reads.erase(now[0].accesses.reads.begin());
    if (beside.fresh) now[0].accesses.reads.push_back({.ref = *beside.fresh});
    if (beside.mirror) {
        now.push_back({.accesses = {.reads = {}, .writes = {{.ref = *beside.mirror}}}, .shared_out = true});
    }
    std::set<int> edges;
    for (const Before& one : before_) {
        for (const Before& own : now) {
            const Meeting needed = meets(one, own, edges);
            if (needed != Meeting::kBlock || !one.block_met) c.meeting = std::max(c.meeting, needed);
        }
    }
    for (const int edge : edges) wait_for(c, edge);
    if (c.meeting == Meeting::kTeam) {
        std::erase_if(before_, [](const Before& one) { return one.edge < 0 || one.waited; });
    }
    if (c.meeting != Meeting::kNobody) {
        for (Before& one : before_) one.block_met = true;
    }
    to_.tally.team_meetings += c.meeting == Meeting::kTeam;
    to_.tally.block_meetings += c.meeting == Meeting::kBlock;
    Entry& block = entries_.back();
    const bool sends = shares_copies() && c.op == Op::kMatrix && c.storage != Storage::kRows && c.shared_out &&
                       !c.own_copy && c.out.space == kFastSpace && c.outputs <= kMostSent;
    if (sends && block.edges < kMaxEdges) {
        now[0].edge = c.edge = static_cast<std::int8_t>(block.edges++);
        to_.stretch.edges = kMaxEdges;
    }
    before_.insert(before_.end(), now.begin(), now.end());
}

Meeting Assembler::meets(const Before& earlier, const Before& later, std::set<int>& edges) const {
    const Accesses wrote{.reads = {}, .writes = earlier.accesses.writes};
    const Accesses read{.reads = earlier.accesses.reads, .writes = {}};
    const Accesses reads{.reads = later.accesses.reads, .writes = {}};
    const Accesses writes{.reads = {}, .writes = later.accesses.writes};
    bool any = false;
    bool team = false;
    const bool needs = cpu::depends(program_, wrote, reads);
    const bool replaces = cpu::depends(program_, wrote, writes);
    if ((needs || replaces) && earlier.edge >= 0 && !earlier.waited) edges.insert(earlier.edge);
    if (needs && earlier.edge < 0) {
        any = true;
        team = team || earlier.shared_out;
    }
    if (cpu::depends(program_, read, writes)) {
        any = true;
        team = team || later.shared_out;
    }
    if (replaces) {
        any = true;
        team = team || earlier.shared_out || later.shared_out;
    }
    return team ? Meeting::kTeam : any ? Meeting::kBlock : Meeting::kNobody;
}
}  // namespace fastar::cuda
