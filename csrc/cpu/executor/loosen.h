// A program with fewer reasons to wait, for threads that share one row's instructions.
#pragma once

#include "cpu/executor/matrices.h"
#include "cpu/executor/program.h"

namespace fastar::cpu {

// The same results, bit for bit, with two changes inside each block of instructions:
//  - a scratch buffer that is written whole several times becomes a buffer per write, so that a thread may fill it
//  again
//    while another still reads what it held;
//  - a tapped linear whose first taps are known before the block begins becomes two instructions: those taps, which can
//    be summed at any time, and the rest, which goes on from their sums.
// The second is left out where the sums of a part depend on the rest: int8 scales its inputs by the largest of all.
Program loosen(Program program, Precision precision);

// The first of these changes alone.
void rename_scratch(Program& program);

}  // namespace fastar::cpu
