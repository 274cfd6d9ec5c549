// What an instruction reads and writes, and whether two of one block may be run in either order.
#pragma once

#include <vector>

#include "cpu/executor/program.h"

namespace fastar::cpu {

struct Access {
    Ref ref;
    bool whole = false;                                // every coordinate and channel
    std::vector<std::vector<std::int64_t>> taps = {};  // added to the coordinates
};

// The values of the run count as one more buffer.
constexpr int kValues = -1;

struct Accesses {
    std::vector<Access> reads;
    std::vector<Access> writes;
};

Accesses accesses(const Instruction& instruction);

// Whether a reference is all of a vector.
bool covers(const Program& program, const Ref& ref);

// Whether the later of two instructions has to wait for the earlier one. Both belong to one block, so a variable has
// the same value for both.
bool depends(const Program& program, const Accesses& earlier, const Accesses& later);

}  // namespace fastar::cpu
