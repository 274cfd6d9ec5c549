#include "cpu/executor/loosen.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "cpu/executor/access.h"
#include "cpu/executor/join_sums.h"
#include "cpu/executor/rewrite.h"

namespace fastar::cpu {
namespace {

// How many of an instruction's taps read nothing that the block writes.
int known_taps(const Program& program, const Span& block, std::size_t at) {
    Instruction probe = program.code[at];
    int known = 0;
    for (; known < static_cast<int>(probe.taps.size()); ++known) {
        probe.tap_begin = known;
        probe.tap_end = known + 1;
        const Access tap = accesses(probe).reads.front();
        const bool written = [&] {
            for (std::size_t other = block.begin; other < block.end; ++other) {
                const Accesses theirs = accesses(program.code[other]);
                if (depends(program, {.reads = {}, .writes = theirs.writes}, {.reads = {tap}, .writes = {}}))
                    return true;
            }
            return false;
        }();
        if (written) break;
    }
    return known;
}

void split_taps(Program& program) {
    std::vector<Instruction> code;
    const std::vector<Span> blocks = blocks_of(program);
    auto block = blocks.begin();
    for (std::size_t at = 0; at < program.code.size(); ++at) {
        while (block != blocks.end() && at >= block->end) ++block;
        Instruction i = program.code[at];
        // Only a tile's sums are one number an output at every step; and pairs or fours of inputs that share a word
        // must not be torn apart.
        const bool apt = i.op == Op::kTappedLinear && !is_slim(i.out->width) && i.source->width % kInputBlock == 0;
        const int known = apt ? known_taps(program, *block, at) : 0;
        if (known > 0 && known < static_cast<int>(i.taps.size())) {
            Instruction early = i;
            Ref sums{
                .buffer = add_scratch(program, "sums", i.out->width), .at = {}, .offset = {}, .width = i.out->width};
            early.out = sums;
            early.add.reset();
            early.function = Function::kNone;
            early.tap_end = known;
            code.push_back(early);
            i.tap_begin = known;
            i.bias = -1;
            i.partial = sums;
        }
        code.push_back(std::move(i));
    }
    program.code = std::move(code);
}

}  // namespace

void rename_scratch(Program& program) {
    const std::vector<Span> blocks = blocks_of(program);
    // Where each buffer occurs: those of one block only are free to move.
    std::map<int, std::set<std::size_t>> where;
    for (std::size_t b = 0; b < blocks.size(); ++b) {
        for (std::size_t at = blocks[b].begin; at < blocks[b].end; ++at) {
            const auto note = [&](Ref& ref) { where[ref.buffer].insert(b); };
            for_each_read(program.code[at], note);
            for_each_write(program.code[at], note);
        }
    }
    for (const Span& block : blocks) {
        std::map<int, int> current;
        for (std::size_t at = block.begin; at < block.end; ++at) {
            Instruction& i = program.code[at];
            const auto follow = [&](Ref& ref) {
                if (const auto found = current.find(ref.buffer); found != current.end()) ref.buffer = found->second;
            };
            for_each_read(i, follow);
            for_each_write(i, [&](Ref& ref) {
                const int original = ref.buffer;
                const Buffer& buffer = program.buffers[static_cast<std::size_t>(original)];
                const bool fresh = buffer.kind == BufferKind::kScratch && where[original].size() == 1 &&
                                   covers(program, ref) && i.op != Op::kAccumulate;
                if (fresh && current.contains(original)) {
                    current[original] = add_scratch(program, buffer.name, ref.width);
                } else if (fresh) {
                    current[original] = original;
                }
                follow(ref);
            });
        }
    }
}

Program loosen(Program program, Precision precision, int threads) {
    Program loose = program;
    rename_scratch(loose);
    const bool joined = join_sums(loose, precision);
    if (threads == 1) return joined ? loose : program;
    if (precision != Precision::kInt8) split_taps(loose);
    return loose;
}

}  // namespace fastar::cpu
