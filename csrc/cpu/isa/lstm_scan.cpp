#include "cpu/isa/lstm_scan.h"

#include "cpu/isa/vector_math.h"

namespace fastar::cpu::FASTAR_ISA {

void lstm_gates(const LstmGates& a) {
    const std::int64_t H = a.hidden;
    for (std::int64_t n = 0; n < a.count; ++n) {
        const float* const x = a.x + n * a.stride * 4 * H;
        const float* const z = a.z ? a.z + n * 4 * H : nullptr;
        float* const gates = a.gates ? a.gates + n * a.stride * 4 * H : nullptr;
        for (std::int64_t j = 0; j < H; j += kLanes) {
            const std::int64_t left = H - j;
            const auto sum = [&](std::int64_t gate) {
                const Floats from_input = load_upto(x + gate * H + j, left);
                return z ? from_input + load_upto(z + gate * H + j, left) : from_input;
            };
            const Floats o = sigmoid(sum(0));
            const Floats f = sigmoid(sum(1));
            const Floats i = sigmoid(sum(2));
            const Floats g = tanh(sum(3));
            const Floats c = fma(f, load_upto(a.cell + n * H + j, left), i * g);
            const Floats h = o * tanh(c);
            store_upto(a.cell + n * H + j, c, left);
            store_upto(a.state + n * H + j, h, left);
            store_upto(a.h + n * a.stride * H + j, h, left);
            if (!gates) continue;
            store_upto(gates + j, o, left);
            store_upto(gates + H + j, f, left);
            store_upto(gates + 2 * H + j, i, left);
            store_upto(gates + 3 * H + j, g, left);
            store_upto(a.cells + n * a.stride * H + j, c, left);
        }
    }
}

void lstm_gates_backward(const LstmGatesBackward& a) {
    const std::int64_t H = a.hidden;
    const Floats zero = splat(0.0f);
    const Floats one = splat(1.0f);
    for (std::int64_t n = 0; n < a.count; ++n) {
        const float* const gates = a.gates + n * a.stride * 4 * H;
        float* const x_gradient = a.x_gradient + n * a.stride * 4 * H;
        float* const state_gradient = a.state_gradient + n * 4 * H;
        for (std::int64_t j = 0; j < H; j += kLanes) {
            const std::int64_t left = H - j;
            const auto upto = [&](const float* row) { return row ? load_upto(row + j, left) : zero; };
            const Floats o = load_upto(gates + j, left);
            const Floats f = load_upto(gates + H + j, left);
            const Floats i = load_upto(gates + 2 * H + j, left);
            const Floats g = load_upto(gates + 3 * H + j, left);
            const Floats t = tanh(load_upto(a.cells + n * a.stride * H + j, left));
            const Floats dh =
                upto(a.grad ? a.grad + n * a.stride * H : nullptr) + upto(a.handed ? a.handed + n * H : nullptr);
            const Floats before = upto(a.before ? a.before + n * a.before_stride : nullptr);
            const Floats dc = fma(dh * o, fnma(t, t, one), load_upto(a.cell_gradient + n * H + j, left));
            store_upto(a.cell_gradient + n * H + j, dc * f, left);
            const auto give = [&](std::int64_t gate, Floats dz) {
                store_upto(x_gradient + gate * H + j, dz, left);
                store_upto(state_gradient + gate * H + j, dz, left);
            };
            give(0, dh * t * fnma(o, o, o));
            give(1, dc * before * fnma(f, f, f));
            give(2, dc * g * fnma(i, i, i));
            give(3, dc * i * fnma(g, g, one));
        }
    }
}

}  // namespace fastar::cpu::FASTAR_ISA
