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
        if (shares_copies() && one.edge >= 0 && !one.waited) wait_for(commands_.back(), one.edge);
    }
    before_.clear();
    met_edges_ = 0;
    end_rows();
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

void Assembler::count_items(Command& c) const {
    const std::int32_t tile = outputs_of_tile(c.storage);
    switch (c.op) {
        case Op::kMatrix:
            (c.storage == Storage::kRows ? c.items_of_row : c.items) = (c.outputs + tile - 1) / tile;
            break;
        case Op::kAttention:
            c.items_of_row = c.heads;
            break;
        case Op::kNorm:
        case Op::kDraw:
        case Op::kEmit:
            c.items_of_row = 1;
            break;
        default:
            c.items_of_row = (c.out.width + 31) / 32;
    }
}

void Assembler::share(const Instruction& i, const Beside& beside, Command& c) {
    if (c.op != Op::kMatrix) c.shared_out = is_shared_out(c, 0);
    count_items(c);
    std::vector<Before> now{{.accesses = cpu::accesses(i), .shared_out = c.shared_out && !c.own_copy}};
    std::erase_if(now[0].accesses.reads, [](const cpu::Access& one) { return one.ref.buffer == cpu::kValues; });
    if (!beside.fetched.empty()) now[0].accesses.reads.erase(now[0].accesses.reads.begin());
    if (beside.fresh) now[0].accesses.reads.push_back({.ref = *beside.fresh});
    if (beside.mirror) {
        now.push_back({.accesses = {.reads = {}, .writes = {{.ref = *beside.mirror}}}, .shared_out = true});
    }
    std::set<std::size_t> sources;
    for (std::size_t at = 0; at < before_.size(); ++at) {
        for (const Before& own : now) {
            bool waits = false;
            const Meeting needed = meets(before_[at], own, waits);
            if (needed != Meeting::kBlock || !before_[at].block_met) c.meeting = std::max(c.meeting, needed);
            if (waits) sources.insert(at);
        }
    }
    Entry& block = entries_.back();
    if (raises_flags()) {
        // A meeting stands for every edge.
        const bool full = block.edges - met_edges_ == kMaxEdges;
        const auto closed = [&](std::size_t at) { return before_[at].edge < 0; };
        if (full && std::any_of(sources.begin(), sources.end(), closed)) c.meeting = Meeting::kTeam;
        if (c.meeting != Meeting::kTeam) follow_flags(sources, c);
    } else {
        for (const std::size_t at : sources) {
            if (!before_[at].waited) wait_for(c, before_[at].edge);
        }
    }
    if (c.meeting == Meeting::kTeam) {
        met_edges_ = block.edges;
        std::erase_if(before_, [&](const Before& one) { return raises_flags() || one.edge < 0 || one.waited; });
    }
    if (c.meeting != Meeting::kNobody) {
        for (Before& one : before_) one.block_met = true;
    }
    to_.tally.team_meetings += c.meeting == Meeting::kTeam;
    to_.tally.block_meetings += c.meeting == Meeting::kBlock;
    now[0].command = commands_.size();
    if (raises_flags()) now[0].sends = c.shared_out;
    const bool sends = shares_copies() && c.op == Op::kMatrix && c.storage != Storage::kRows && c.shared_out &&
                       !c.own_copy && c.out.space == kFastSpace && c.outputs <= kMostSent;
    if (sends && block.edges < kMaxEdges) {
        now[0].sends = true;
        now[0].edge = c.edge = static_cast<std::int8_t>(block.edges++);
        to_.stretch.edges = kMaxEdges;
    }
    before_.insert(before_.end(), now.begin(), now.end());
}

void Assembler::follow_flags(const std::set<std::size_t>& sources, Command& c) {
    open_edge(sources);
    for (const std::size_t at : sources) c.waits |= std::uint64_t{1} << before_[at].edge;
    to_.tally.edges += c.waits != 0;
    // Blocks that have no share in the command do not wait, so who needs the same later waits again.
    if (c.shared_out && c.items + c.items_of_row < options_.blocks) return;
    for (Before& one : before_) one.waited = one.waited || (one.edge >= 0 && (c.waits >> one.edge & 1) != 0);
}

void Assembler::open_edge(const std::set<std::size_t>& sources) {
    Before* last = nullptr;
    Entry& block = entries_.back();
    for (const std::size_t at : sources) {
        Before& one = before_[at];
        if (one.edge >= 0) continue;
        if (last == nullptr) ++block.edges;
        one.edge = (block.edges - 1) % kMaxEdges;
        Command& c = commands_[one.command];
        c.edge = static_cast<std::int8_t>(one.edge);
        c.arrives = true;
        // Of several commands for whose sake nobody waits in between the last one speaks for all.
        if (last != nullptr) {
            const auto waits = [](const Command& other) { return other.waits != 0 || other.meeting == Meeting::kTeam; };
            const auto from = commands_.begin() + static_cast<std::ptrdiff_t>(last->command);
            commands_[last->command].arrives =
                std::any_of(from + 1, from + 1 + static_cast<std::ptrdiff_t>(one.command - last->command), waits);
        }
        last = &one;
        to_.stretch.edges = kMaxEdges;
    }
}

Meeting Assembler::meets(const Before& earlier, const Before& later, bool& waits) const {
    const Accesses wrote{.reads = {}, .writes = earlier.accesses.writes};
    const Accesses read{.reads = earlier.accesses.reads, .writes = {}};
    const Accesses reads{.reads = later.accesses.reads, .writes = {}};
    const Accesses writes{.reads = {}, .writes = later.accesses.writes};
    bool any = false;
    bool team = false;
    const bool needs = cpu::depends(program_, wrote, reads);
    const bool replaces = cpu::depends(program_, wrote, writes);
    if ((needs || replaces) && earlier.sends && !earlier.waited) waits = true;
    if (needs && !earlier.sends) {
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
