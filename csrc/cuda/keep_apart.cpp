#include "cuda/keep_apart.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "cpu/executor/access.h"

namespace fastar::cuda {
namespace {

using cpu::Index;
using cpu::Instruction;
using cpu::Program;
using cpu::Ref;

bool same(const Index& a, const Index& b) {
    return a.constant == b.constant && a.terms == b.terms && a.divisor == b.divisor;
}

bool same_place(const Ref& a, const Ref& b) {
    return a.buffer == b.buffer && std::equal(a.at.begin(), a.at.end(), b.at.begin(), b.at.end(), same);
}

bool is_zero(const std::vector<std::int64_t>& tap) {
    return std::all_of(tap.begin(), tap.end(), [](std::int64_t n) { return n == 0; });
}

std::array<std::optional<Ref>*, 6> reads(Instruction& i) {
    return {&i.source, &i.add, &i.other, &i.hidden, &i.cell, &i.log_prob};
}

// Those whose kernels write a mirror.
bool can_mirror(const Instruction& i) {
    switch (i.op) {
        case cpu::Op::kLinear:
        case cpu::Op::kTappedLinear:
        case cpu::Op::kGather:
        case cpu::Op::kGate:
        case cpu::Op::kNorm:
        case cpu::Op::kCell:
        case cpu::Op::kStore:
            return true;
        case cpu::Op::kElementwise:
            return i.spans < 0;
        default:
            return false;
    }
}

// Whether a tapped read of the place can be had from another buffer: its last tap, and no other, is there.
bool reads_freshly(const Instruction& i) {
    return is_zero(i.taps.back()) && std::none_of(i.taps.begin(), i.taps.end() - 1, is_zero);
}

int add_scratch(Program& program, const std::string& name, std::int64_t width) {
    program.buffers.push_back(
        {.name = name, .kind = cpu::BufferKind::kScratch, .shape = {width}, .ring = false, .init = -1});
    return static_cast<int>(program.buffers.size()) - 1;
}

// Whether all taps but the last look two passes back or more: copies of sixteen bytes, whole.
bool may_fetch(const Instruction& i, const Ref& place) {
    constexpr std::int64_t kPiece = 4;
    const bool aligned = i.source->width == place.width && place.width % kPiece == 0;
    return aligned && place.at.size() == 1 && place.at[0].divisor == 1 && place.at[0].terms.size() == 1 &&
           place.at[0].terms[0].second == 1 &&
           std::all_of(i.taps.begin(), i.taps.end() - 1, [](const auto& tap) { return tap[0] <= -2; });
}

}  // namespace

std::vector<Beside> keep_apart(Program& program, const std::set<int>& far) {
    std::vector<Beside> beside(program.code.size());
    for (std::size_t at = 0; at < program.code.size(); ++at) {
        Instruction& writer = program.code[at];
        if (!can_mirror(writer) || !writer.out || !far.contains(writer.out->buffer)) continue;
        const Ref place = *writer.out;
        const auto reading = reads(writer);
        const bool in_place = std::any_of(reading.begin(), reading.end(),
                                          [&](const auto* ref) { return *ref && (*ref)->buffer == place.buffer; });
        if (place.at.empty() || !cpu::covers(program, place) || in_place) continue;
        const std::string name = program.buffers[static_cast<std::size_t>(place.buffer)].name;
        const int scratch = add_scratch(program, name + " now", place.width);
        const bool alone =
            std::count_if(program.code.begin(), program.code.end(), [&](const Instruction& i) {
                return (i.out && i.out->buffer == place.buffer) || (i.cell_out && i.cell_out->buffer == place.buffer);
            }) == 1;
        bool used = false;
        for (std::size_t later = at + 1; later < program.code.size(); ++later) {
            Instruction& reader = program.code[later];
            if (reader.is_control() || (reader.out && same_place(*reader.out, place))) break;
            for (std::optional<Ref>* ref : reads(reader)) {
                if (!*ref || !same_place(**ref, place)) continue;
                const bool tapped = ref == &reader.source && !reader.taps.empty();
                if (tapped && !reads_freshly(reader)) continue;
                Ref fresh{.buffer = scratch, .at = {}, .offset = (*ref)->offset, .width = (*ref)->width};
                used = true;
                if (tapped) {
                    beside[later].fresh = fresh;
                    reader.tap_end = static_cast<int>(reader.taps.size()) - 1;
                    for (int tap = 0; tap < reader.tap_end && alone && may_fetch(reader, place); ++tap) {
                        beside[later].fetched.push_back(add_scratch(program, name + " then", place.width));
                    }
                } else {
                    *ref = fresh;
                }
            }
            if (reader.completes()) break;
        }
        if (!used) {
            program.buffers.pop_back();
            continue;
        }
        beside[at].mirror = place;
        writer.out = Ref{.buffer = scratch, .at = {}, .offset = {}, .width = place.width};
    }
    return beside;
}

}  // namespace fastar::cuda
