// What changes of a whole program have in common.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cpu/executor/program.h"

namespace fastar::cpu {

// Instructions [begin, end) of the code, without control flow among them.
struct Span {
    std::size_t begin;
    std::size_t end;
};

std::vector<Span> blocks_of(const Program& program);

void for_each_read(Instruction& i, const std::function<void(Ref&)>& visit);
void for_each_write(Instruction& i, const std::function<void(Ref&)>& visit);

// The number of a new scratch buffer.
int add_scratch(Program& program, const std::string& name, std::int64_t width);

}  // namespace fastar::cpu
