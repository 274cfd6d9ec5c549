#include "cpu/executor/access.h"

#include <algorithm>
#include <optional>

namespace fastar::cpu {
namespace {

// b - a, where that is the same whatever the variables are.
std::optional<std::int64_t> distance(const Index& a, const Index& b) {
    if (a.terms != b.terms || a.divisor != b.divisor || (b.constant - a.constant) % a.divisor != 0) return {};
    return (b.constant - a.constant) / a.divisor;
}

using Tap = std::vector<std::int64_t>;

bool apart_at(const Buffer& buffer, const Access& a, const Access& b, const Tap& tap_a, const Tap& tap_b) {
    for (std::size_t axis = 0; axis < a.ref.at.size(); ++axis) {
        const auto between = distance(a.ref.at[axis], b.ref.at[axis]);
        if (!between) continue;
        const std::int64_t ahead = *between + (tap_b.empty() ? 0 : tap_b[axis]) - (tap_a.empty() ? 0 : tap_a[axis]);
        if (buffer.ring && axis == 0 ? ahead % buffer.shape[0] != 0 : ahead != 0) return true;
    }
    return false;
}

bool overlap(const Program& program, const Access& a, const Access& b) {
    if (a.ref.buffer != b.ref.buffer) return false;
    if (a.ref.buffer == kValues || a.whole || b.whole) return true;
    const auto between = distance(a.ref.offset, b.ref.offset);
    if (between && (*between >= a.ref.width || -*between >= b.ref.width)) return false;
    const Buffer& buffer = program.buffers[static_cast<std::size_t>(a.ref.buffer)];
    const std::vector<Tap> none{{}};
    const auto& taps_a = a.taps.empty() ? none : a.taps;
    const auto& taps_b = b.taps.empty() ? none : b.taps;
    return std::any_of(taps_a.begin(), taps_a.end(), [&](const Tap& one) {
        return std::any_of(taps_b.begin(), taps_b.end(),
                           [&](const Tap& other) { return !apart_at(buffer, a, b, one, other); });
    });
}

bool any_overlap(const Program& program, const std::vector<Access>& a, const std::vector<Access>& b) {
    return std::any_of(a.begin(), a.end(), [&](const Access& one) {
        return std::any_of(b.begin(), b.end(), [&](const Access& other) { return overlap(program, one, other); });
    });
}

Access whole(int buffer) {
    Access access{.ref = {}, .whole = true};
    access.ref.buffer = buffer;
    return access;
}

}  // namespace

Accesses accesses(const Instruction& i) {
    Accesses result;
    const auto read = [&](const std::optional<Ref>& ref) {
        if (ref) result.reads.push_back({.ref = *ref});
    };
    const auto write = [&](const std::optional<Ref>& ref) {
        if (ref) result.writes.push_back({.ref = *ref});
    };
    write(i.out);
    write(i.cell_out);
    read(i.source);
    if (i.op == Op::kTappedLinear) {
        result.reads.back().taps.assign(i.taps.begin() + i.tap_begin, i.taps.begin() + i.last_tap());
    }
    for (const auto* ref : {&i.add, &i.other, &i.hidden, &i.cell, &i.log_prob, &i.partial}) read(*ref);
    if (i.op == Op::kAccumulate) read(i.out);
    if (i.op == Op::kAttention) {
        result.reads.push_back(whole(i.keys));
        result.reads.push_back(whole(i.values));
    }
    if (i.completes()) result.writes.push_back(whole(kValues));
    if (i.position && !i.completes() && i.op != Op::kDraw) result.reads.push_back(whole(kValues));
    // Sums of a row's log-probability keep their order.
    if (i.op == Op::kDraw) result.writes.push_back(whole(kValues));
    return result;
}

bool covers(const Program& program, const Ref& ref) {
    return ref.offset.terms.empty() && ref.offset.constant == 0 &&
           ref.width == program.buffers[static_cast<std::size_t>(ref.buffer)].shape.back();
}

bool depends(const Program& program, const Accesses& earlier, const Accesses& later) {
    return any_overlap(program, earlier.writes, later.reads) || any_overlap(program, earlier.reads, later.writes) ||
           any_overlap(program, earlier.writes, later.writes);
}

}  // namespace fastar::cpu
