#include "twin/memory.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace fastar::twin {

namespace {
// What is compared at a time to find changes, and the grain in which they are published.
constexpr std::size_t kStretch = 256;
constexpr std::size_t kWord = 4;
}  // namespace

void join(Stamp& into, const Stamp& other) {
    into.resize(std::max(into.size(), other.size()));
    for (std::size_t b = 0; b < other.size(); ++b) into[b] = std::max(into[b], other[b]);
}

Memory::Memory(std::vector<Region> regions, unsigned blocks) : regions_(std::move(regions)), blocks_(blocks) {}

void Memory::begin(unsigned block) {
    Block& own = blocks_[block];
    for (const Region& r : regions_) {
        std::vector<std::byte> now(r.begin, r.begin + r.bytes);
        own.views.push_back({now, std::move(now)});
    }
    for (const Block& one : blocks_) own.seen.push_back(one.releases.size());
}

std::byte* Memory::view(unsigned block, std::byte* address) {
    for (std::size_t i = 0; i < regions_.size(); ++i) {
        const Region& r = regions_[i];
        if (address >= r.begin && address < r.begin + r.bytes) {
            return blocks_[block].views[i].now.data() + (address - r.begin);
        }
    }
    return address;
}

void Memory::store(unsigned writer, unsigned reader, std::byte* to, const void* value, std::size_t bytes) {
    blocks_[writer].stores.push_back(write(to, static_cast<int>(reader), value, bytes));
}

Memory::Write Memory::write(std::byte* to, int reader, const void* value, std::size_t bytes) {
    Write one{to, reader, bytes, 0};
    std::memcpy(&one.value, value, bytes);
    return one;
}

void Memory::find_changes(const View& view, const Region& region, std::vector<Write>& changes) {
    const std::byte* now = view.now.data();
    const std::byte* known = view.known.data();
    for (std::size_t s = 0; s < region.bytes; s += kStretch) {
        const std::size_t stretch = std::min(kStretch, region.bytes - s);
        if (std::memcmp(now + s, known + s, stretch) == 0) continue;
        for (std::size_t at = s; at < s + stretch; at += kWord) {
            const std::size_t word = std::min(kWord, region.bytes - at);
            if (std::memcmp(now + at, known + at, word) != 0) {
                changes.push_back(write(region.begin + at, -1, now + at, word));
            }
        }
    }
}

const Stamp& Memory::release(unsigned block) {
    Block& own = blocks_[block];
    std::vector<Write> writes = std::exchange(own.stores, {});
    const std::size_t stores = writes.size();
    for (std::size_t i = 0; i < regions_.size(); ++i) find_changes(own.views[i], regions_[i], writes);
    for (std::size_t i = stores; i < writes.size(); ++i) {
        std::memcpy(writes[i].to, &writes[i].value, writes[i].bytes);
        take(own, block, writes[i]);
    }
    if (!writes.empty()) own.releases.push_back({published_++, std::move(writes)});
    own.seen[block] = own.releases.size();
    return own.seen;
}

void Memory::acquire(unsigned block, const Stamp& stamp) {
    Block& own = blocks_[block];
    std::vector<const Published*> fresh;
    for (std::size_t b = 0; b < stamp.size(); ++b) {
        for (std::size_t i = own.seen[b]; i < stamp[b]; ++i) fresh.push_back(&blocks_[b].releases[i]);
    }
    join(own.seen, stamp);
    // In the order in which they were published, which is that of what was released after an acquire.
    std::sort(fresh.begin(), fresh.end(), [](const auto* a, const auto* b) { return a->number < b->number; });
    for (const Published* one : fresh) {
        for (const Write& write : one->writes) take(own, block, write);
    }
}

void Memory::take(Block& block, unsigned number, const Write& write) {
    if (write.reader >= 0) {
        if (write.reader == static_cast<int>(number)) std::memcpy(write.to, &write.value, write.bytes);
        return;
    }
    for (std::size_t i = 0; i < regions_.size(); ++i) {
        const Region& r = regions_[i];
        if (write.to < r.begin || write.to >= r.begin + r.bytes) continue;
        const std::ptrdiff_t at = write.to - r.begin;
        std::memcpy(block.views[i].now.data() + at, &write.value, write.bytes);
        std::memcpy(block.views[i].known.data() + at, &write.value, write.bytes);
    }
}

}  // namespace fastar::twin
