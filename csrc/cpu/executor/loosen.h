// A program with fewer instructions and fewer reasons to wait.
#pragma once

#include "cpu/executor/matrices.h"
#include "cpu/executor/program.h"

namespace fastar::cpu {

// The program as a plan runs it, changed inside each block of instructions:
//  - sums of several linears become fewer (join_sums.h);
//  - a scratch buffer that is written whole several times becomes a buffer per write, so that a thread may fill it
//    again while another still reads what it held;
//  - a tapped linear whose first taps are known before the block begins becomes two instructions: those taps, which can
//    be summed at any time, and the rest, which goes on from their sums.
// The first is the same for any number of threads, since it changes how sums are rounded. The others change no bit. The
// last is for several threads only, and left out where the sums of a part depend on the rest: int8 scales its inputs by
// the largest of all.
Program loosen(Program program, Precision precision, int threads);

// The second of these changes alone.
void rename_scratch(Program& program);

}  // namespace fastar::cpu
