#include "cpu/executor/rewrite.h"

namespace fastar::cpu {

std::vector<Span> blocks_of(const Program& program) {
    std::vector<Span> blocks;
    bool fresh = true;
    for (std::size_t at = 0; at < program.code.size(); ++at) {
        const Instruction& i = program.code[at];
        if (i.is_control()) {
            fresh = true;
            continue;
        }
        if (fresh) blocks.push_back({at, at});
        blocks.back().end = at + 1;
        fresh = i.completes();
    }
    return blocks;
}

void for_each_read(Instruction& i, const std::function<void(Ref&)>& visit) {
    for (auto* ref : {&i.source, &i.add, &i.other, &i.hidden, &i.cell, &i.log_prob, &i.partial}) {
        if (*ref) visit(**ref);
    }
}

void for_each_write(Instruction& i, const std::function<void(Ref&)>& visit) {
    for (auto* ref : {&i.out, &i.cell_out}) {
        if (*ref) visit(**ref);
    }
}

int add_scratch(Program& program, const std::string& name, std::int64_t width) {
    program.buffers.push_back(
        {.name = name, .kind = BufferKind::kScratch, .shape = {width}, .ring = false, .init = -1});
    return static_cast<int>(program.buffers.size()) - 1;
}

}  // namespace fastar::cpu
