#include "cpu/isa/tanh_gate.h"

#include <algorithm>

#include "cpu/isa/delayed_tile.h"
#include "cpu/isa/vector_math.h"

namespace fastar::cpu::FASTAR_ISA {
namespace {

// Where elements lie in their image.
struct Place {
    bool first_line;
    bool last_line;
    std::int64_t back;  // elements of z to the pixel above
};

// Elements [from, to) of one row, all in one place.
template <typename T>
void run(const TanhGate& gate, const Place& place, std::int64_t row, std::int64_t from, std::int64_t to) {
    const std::int64_t length = gate.length;
    const T* a = static_cast<const T*>(gate.z) + 2 * row * length;
    const T* b = a + length;
    const T* grad = gate.grad ? static_cast<const T*>(gate.grad) + row * length : nullptr;
    T* out = static_cast<T*>(gate.out) + (grad ? 2 * row * length : row * length);
    const bool adds = gate.above && !place.first_line;
    const T* above = adds ? static_cast<const T*>(gate.above) + 2 * row * length - place.back : nullptr;
    T* grad_above = grad && gate.above ? static_cast<T*>(gate.grad_above) + 2 * row * length : nullptr;
    for (std::int64_t i = from; i < to; i += kLanes) {
        const std::int64_t left = to - i;
        Floats z = load_elements(a + i, left);
        Floats open = load_elements(b + i, left);
        if (adds) {
            z = z + load_elements(above + i, left);
            open = open + load_elements(above + length + i, left);
        }
        const Floats t = tanh(z);
        const Floats s = sigmoid(open);
        if (!grad) {
            store_elements(out + i, t * s, left);
            continue;
        }
        const Floats g = load_elements(grad + i, left);
        const Floats grad_a = g * s * fnma(t, t, splat(1.0f));
        const Floats grad_b = g * t * fnma(s, s, s);
        store_elements(out + i, grad_a, left);
        store_elements(out + length + i, grad_b, left);
        if (adds) {
            store_elements(grad_above - place.back + i, grad_a, left);
            store_elements(grad_above - place.back + length + i, grad_b, left);
        }
    }
    if (grad_above && place.last_line) {
        // Nobody is below.
        std::fill(grad_above + from, grad_above + to, T{});
        std::fill(grad_above + length + from, grad_above + length + to, T{});
    }
}

// Elements [from, to) of one row, by the places that they have.
template <typename T>
void run_row(const TanhGate& gate, std::int64_t row, std::int64_t from, std::int64_t to) {
    const auto place_of = [&](std::int64_t pixel, std::int64_t back) {
        return Place{pixel < gate.line, pixel >= gate.plane - gate.line, back};
    };
    if (!gate.above) return run<T>(gate, {}, row, from, to);
    if (gate.rows_are_pixels) {
        return run<T>(gate, place_of(row % gate.plane, 2 * gate.line * gate.length), row, from, to);
    }
    while (from < to) {
        const std::int64_t pixel = from % gate.plane;
        std::int64_t edge = gate.plane;
        for (const std::int64_t line : {gate.plane - gate.line, gate.line})
            edge = pixel < line ? std::min(edge, line) : edge;
        const std::int64_t end = std::min(to, from + edge - pixel);
        run<T>(gate, place_of(pixel, gate.line), row, from, end);
        from = end;
    }
}

}  // namespace

// Elements of the result, [begin, end), in whatever rows.
void tanh_gate(const TanhGate& gate, std::int64_t begin, std::int64_t end) {
    by_element(gate.element, [&](auto element) {
        for (std::int64_t at = begin; at < end;) {
            const std::int64_t row = at / gate.length;
            const std::int64_t to = std::min((row + 1) * gate.length, end);
            run_row<decltype(element)>(gate, row, at - row * gate.length, to - row * gate.length);
            at = to;
        }
    });
}

}  // namespace fastar::cpu::FASTAR_ISA
