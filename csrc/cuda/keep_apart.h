// A program with fewer reasons for the blocks of a cluster to meet.
#pragma once

#include <optional>
#include <set>
#include <vector>

#include "cpu/executor/program.h"

namespace fastar::cuda {

// What an instruction has beside its own fields, in the order of the code.
struct Beside {
    std::optional<cpu::Ref> mirror;  // also written, for later positions
    std::optional<cpu::Ref> fresh;   // the source of the last tap
    std::vector<int> fetched;        // scratch for those of the others, where they may be fetched beforehand
};

// What a position writes into a buffer of `far` and reads again itself becomes a scratch buffer, which lies at hand;
// the instruction mirrors it into the buffer, where later positions find it.
std::vector<Beside> keep_apart(cpu::Program& program, const std::set<int>& far);

}  // namespace fastar::cuda
