// Of a grid: the buffers of which every block has a copy in its shared memory, since small work costs less than an
// exchange.
#include <algorithm>
#include <array>

#include "cuda/assembler.h"

namespace fastar::cuda {
namespace {

// Numbers of a row that every block computes for itself: at eight rows their sources take about as long to read as
// others' results to arrive.
constexpr std::int64_t kMostCopied = 4096;

bool is_small(const Instruction& i) {
    switch (i.op) {
        case cpu::Op::kGather:
        case cpu::Op::kAccumulate:
        case cpu::Op::kGate:
        case cpu::Op::kElementwise:
        case cpu::Op::kNorm:
        case cpu::Op::kCell:
        case cpu::Op::kStore:
            return true;
        default:
            return false;
    }
}

std::array<std::optional<Ref>*, 8> operands(Instruction& i) {
    return {&i.out, &i.cell_out, &i.source, &i.add, &i.other, &i.hidden, &i.cell, &i.log_prob};
}

// Where scratch of one block of commands is written first and read last.
struct Life {
    std::size_t block;
    std::size_t begin;
    std::size_t end;
    bool alone;  // written whole before it is read, and used in no other block
};

}  // namespace

void Assembler::find_copies() {
    for (std::size_t b = 0; b < program_.buffers.size(); ++b) {
        const Buffer& one = program_.buffers[b];
        const bool vector = one.kind != BufferKind::kInput && one.shape.size() == 1;
        if (vector && one.shape[0] <= kMostCopied) copies_.insert(static_cast<int>(b));
    }
    narrow_copies();
}

void Assembler::narrow_copies() {
    for (bool changed = true; changed;) {
        changed = false;
        for (const Instruction& i : program_.code) {
            const auto elsewhere = [&](const std::optional<Ref>& ref) { return ref && !copies_.contains(ref->buffer); };
            if (is_small(i) && !elsewhere(i.out) && !elsewhere(i.cell_out)) continue;
            for (const auto* ref : {&i.out, &i.cell_out}) {
                if (*ref && copies_.erase((*ref)->buffer) > 0) changed = true;
            }
        }
    }
}

void Assembler::fold_copies() {
    std::map<int, Life> lives;
    std::vector<int> order;
    std::size_t block = 0;
    for (std::size_t number = 0; number < program_.code.size(); ++number) {
        Instruction& i = program_.code[number];
        for (const std::optional<Ref>* ref : operands(i)) {
            if (!*ref || !copies_.contains((*ref)->buffer)) continue;
            const int buffer = (*ref)->buffer;
            const auto [found, fresh] = lives.try_emplace(buffer, Life{block, number, number, false});
            if (fresh) {
                order.push_back(buffer);
                const cpu::Accesses uses = cpu::accesses(i);
                found->second.alone = program_.buffers[at(buffer)].kind == BufferKind::kScratch &&
                                      covers(program_, **ref) &&
                                      std::none_of(uses.reads.begin(), uses.reads.end(),
                                                   [&](const cpu::Access& one) { return one.ref.buffer == buffer; });
            }
            found->second.end = number;
            found->second.alone = found->second.alone && found->second.block == block;
        }
        block += i.is_control() || i.completes();
    }
    std::vector<int> places;
    for (const int buffer : order) {
        const Life& life = lives.at(buffer);
        if (!life.alone) continue;
        const auto place = std::find_if(places.begin(), places.end(), [&](int one) {
            return lives.at(one).end < life.begin &&
                   program_.buffers[at(one)].shape == program_.buffers[at(buffer)].shape;
        });
        if (place == places.end()) {
            places.push_back(buffer);
        } else {
            lives.at(*place).end = life.end;
            instead_[buffer] = *place;
        }
    }
    for (Instruction& i : program_.code) {
        for (std::optional<Ref>* ref : operands(i)) {
            if (*ref) follow(**ref);
        }
    }
}

void Assembler::place_copies() {
    place_buffers();
    const auto outside = [&](int buffer) { return to_.buffers[at(buffer)].space != kFastSpace; };
    while (std::any_of(copies_.begin(), copies_.end(), outside)) {
        std::erase_if(copies_, outside);
        narrow_copies();
        place_buffers();
    }
}
}  // namespace fastar::cuda
