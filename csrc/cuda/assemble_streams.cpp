// Which weights come through the warps' rings, and in which order.
#include "cuda/assembler.h"

namespace fastar::cuda {

void Assembler::count_share(Command& c) {
    c.streamed = options_.stages > 0;
    to_.stretch.streamed += c.streamed;
    const std::int64_t blocks = c.shared_out ? options_.blocks : 1;
    const std::int64_t tiles = c.bank_bytes / c.tile_bytes;
    const std::int64_t all_waits = to_.tally.team_meetings + to_.tally.edges;
    const std::int64_t waits = all_waits - std::exchange(waits_, all_waits);
    std::vector<Tally::Share>& shares = to_.tally.shares;
    if (waits == 0 && !shares.empty() && shares.back().tile_bytes == c.tile_bytes && shares.back().blocks == blocks) {
        shares.back().tiles += tiles;
    } else {
        shares.push_back({c.tile_bytes, tiles, c.parts, blocks, waits});
    }
}

std::int32_t Assembler::follower(std::int32_t entry) const {
    for (std::size_t looked = 0; looked < entries_.size(); ++looked) {
        if (at(++entry) >= entries_.size()) return -1;
        const Entry& e = entries_[at(entry)];
        if (e.control == Control::kBlock) return entry;
        if (e.control == Control::kWhen) return -1;
        if (e.control == Control::kEnd && entries_[at(e.jump)].control == Control::kLoop) entry = e.jump;
    }
    return -1;
}

void Assembler::thread_streams() {
    const auto first_of = [&](const Entry& e) {
        std::int32_t n = e.command;
        while (n < e.command + e.commands && !commands_[at(n)].streamed) ++n;
        return n < e.command + e.commands ? n : -1;
    };
    const auto from_entry = [&](std::int32_t entry) {
        for (std::size_t looked = 0; entry >= 0 && looked < entries_.size(); ++looked) {
            if (const std::int32_t first = first_of(entries_[at(entry)]); first >= 0) return first;
            entry = entries_[at(entry)].follower;
        }
        return -1;
    };
    for (Entry& e : entries_) {
        if (e.control == Control::kBlock) e.follower = follower(narrow(&e - entries_.data()));
    }
    for (Entry& e : entries_) {
        if (e.control != Control::kBlock) continue;
        e.streamed = from_entry(narrow(&e - entries_.data()));
        std::int32_t next = from_entry(e.follower);
        for (std::int32_t n = e.command + e.commands; n-- > e.command;) {
            if (!commands_[at(n)].streamed) continue;
            commands_[at(n)].next = next;
            next = n;
        }
    }
    if (to_.stretch.streamed == 0) return;
    to_.stretch.stages = narrow(options_.stages);
    to_.stretch.stage_bytes = step_bytes(storage_of(options_.precision));
}

}  // namespace fastar::cuda
