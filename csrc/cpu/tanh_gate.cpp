#include "cpu/tanh_gate.h"

#include "cpu/dispatch.h"
#include "cpu/share_out.h"

namespace fastar::cpu {

void tanh_gate(const TanhGate& gate, int threads) {
    // Two exponentials an element: a quarter of what is merely moved is enough for a second thread.
    share_out(gate.rows * gate.length, kElementsPerPiece / 4, threads,
              [&](auto begin, auto end) { kernels().tanh_gate(gate, begin, end); });
}

}  // namespace fastar::cpu
