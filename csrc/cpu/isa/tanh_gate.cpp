#include "cpu/isa/tanh_gate.h"

#include <algorithm>

#include "cpu/isa/delayed_tile.h"
#include "cpu/isa/vector_math.h"

namespace fastar::cpu::FASTAR_ISA {
namespace {

// Elements [from, to) of one row.
template <typename T>
void run(const TanhGate& gate, std::int64_t row, std::int64_t from, std::int64_t to) {
    const std::int64_t length = gate.length;
    const T* a = static_cast<const T*>(gate.z) + 2 * row * length;
    const T* b = a + length;
    const T* grad = gate.grad ? static_cast<const T*>(gate.grad) + row * length : nullptr;
    T* out = static_cast<T*>(gate.out) + (grad ? 2 * row * length : row * length);
    for (std::int64_t i = from; i < to; i += kLanes) {
        const std::int64_t left = to - i;
        const Floats t = tanh(load_elements(a + i, left));
        const Floats s = sigmoid(load_elements(b + i, left));
        if (!grad) {
            store_elements(out + i, t * s, left);
            continue;
        }
        const Floats g = load_elements(grad + i, left);
        store_elements(out + i, g * s * fnma(t, t, splat(1.0f)), left);
        store_elements(out + length + i, g * t * fnma(s, s, s), left);
    }
}

}  // namespace

// Elements of the result, [begin, end), in whatever rows.
void tanh_gate(const TanhGate& gate, std::int64_t begin, std::int64_t end) {
    by_element(gate.element, [&](auto element) {
        for (std::int64_t at = begin; at < end;) {
            const std::int64_t row = at / gate.length;
            const std::int64_t to = std::min((row + 1) * gate.length, end);
            run<decltype(element)>(gate, row, at - row * gate.length, to - row * gate.length);
            at = to;
        }
    });
}

}  // namespace fastar::cpu::FASTAR_ISA
