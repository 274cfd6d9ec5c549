// Instructions that work element by element, norms and recurrent cells, at one vector level.
#include "cpu/isa/executor.h"
#include "cpu/isa/functions.h"

namespace fastar::cpu::FASTAR_ISA {
namespace {

// body(i, n): channels i .. i + n, n at most sixteen.
template <typename Body>
void by_lanes(std::int64_t n, Body body) {
    std::int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) body(i, kLanes);
    if (i < n) body(i, n - i);
}

}  // namespace

void unary(Function f, const float* a, float alpha, float beta, float* out, std::int64_t n) {
    by_lanes(n, [&](std::int64_t i, std::int64_t count) {
        const Lanes z = fma(splat(alpha), load_first(a + i, count), splat(beta));
        store_first(out + i, apply(f, z), count);
    });
}

void clamp(const float* a, float low, float high, float* out, std::int64_t n) {
    by_lanes(n, [&](std::int64_t i, std::int64_t count) {
        store_first(out + i, at_most(at_least(load_first(a + i, count), splat(low)), splat(high)), count);
    });
}

void add(const float* a, float alpha, const float* b, float* out, std::int64_t n) {
    by_lanes(n, [&](std::int64_t i, std::int64_t count) {
        store_first(out + i, fma(splat(alpha), load_first(a + i, count), load_first(b + i, count)), count);
    });
}

void multiply(const float* a, float alpha, const float* b, float* out, std::int64_t n) {
    by_lanes(n, [&](std::int64_t i, std::int64_t count) {
        store_first(out + i, splat(alpha) * load_first(a + i, count) * load_first(b + i, count), count);
    });
}

void gate(GateFunction f, const float* a, const float* b, float* out, std::int64_t n) {
    by_lanes(n, [&](std::int64_t i, std::int64_t count) {
        Lanes x = load_first(a + i, count);
        const Lanes y = load_first(b + i, count);
        if (f == GateFunction::kTanh) x = tanh(x);
        if (f == GateFunction::kSilu) x = x * y;
        store_first(out + i, x * sigmoid(y), count);
    });
}

void norm(const NormArguments& a) {
    const float size = static_cast<float>(a.width);
    float mean = 0.0f;
    if (a.kind == NormKind::kLayer) {
        Lanes total = splat(0.0f);
        by_lanes(a.width, [&](std::int64_t i, std::int64_t count) { total = total + load_first(a.x + i, count); });
        mean = sum(total) / size;
    }
    Lanes squares = splat(0.0f);
    by_lanes(a.width, [&](std::int64_t i, std::int64_t count) {
        // What lies beyond the width is read as the mean, so it adds nothing.
        const Lanes x = load_first(a.x + i, count, mean) - splat(mean);
        squares = fma(x, x, squares);
    });
    const Lanes factor = splat(1.0f) / square_root(splat(sum(squares) / size + a.eps));
    by_lanes(a.width, [&](std::int64_t i, std::int64_t count) {
        Lanes y = (load_first(a.x + i, count) - splat(mean)) * factor;
        if (a.weight) y = y * load_first(a.weight + i, count);
        if (a.bias) y = y + load_first(a.bias + i, count);
        store_first(a.out + i, y, count);
    });
}

void cell(const CellArguments& a) {
    const std::int64_t H = a.width;
    by_lanes(H, [&](std::int64_t i, std::int64_t count) {
        const auto gates = [&](std::int64_t k) {
            const Lanes g = load_first(a.input_gates + k * H + i, count);
            return a.hidden_gates ? g + load_first(a.hidden_gates + k * H + i, count) : g;
        };
        if (a.kind == CellKind::kTanh) {
            store_first(a.out + i, tanh(gates(0)), count);
        } else if (a.kind == CellKind::kLstm) {
            const Lanes old = load_first(a.cell + i, count);
            const Lanes c = fma(sigmoid(gates(1)), old, sigmoid(gates(0)) * tanh(gates(2)));
            const Lanes h = sigmoid(gates(3)) * tanh(c);
            store_first(a.cell_out + i, c, count);
            store_first(a.out + i, h, count);
        } else {
            const Lanes r = sigmoid(gates(0));
            const Lanes z = sigmoid(gates(1));
            const Lanes candidate = fma(r, load_first(a.hidden_gates + 2 * H + i, count),
                                        load_first(a.input_gates + 2 * H + i, count));
            const Lanes n = tanh(candidate);
            const Lanes old = load_first(a.hidden + i, count);
            store_first(a.out + i, fma(z, old - n, n), count);
        }
    });
}

void accumulate(float* a, float x, const float* table, std::int64_t n) {
    by_lanes(n, [&](std::int64_t i, std::int64_t count) {
        store_first(a + i, fma(splat(x), load_first(table + i, count), load_first(a + i, count)), count);
    });
}

template <Function F, bool kAdds>
float accumulate_dot_of(float* a, float x, const float* table, const float* weights, std::int64_t n) {
    Lanes even = splat(0.0f);
    Lanes odd = splat(0.0f);
    const Lanes scale = splat(x);
    std::int64_t i = 0;
    const auto term = [&](std::int64_t at, Lanes total) {
        Lanes h = load(a + at);
        if constexpr (kAdds) {
            h = fma(scale, load(table + at), h);
            store(a + at, h);
        }
        return fma(apply(F, h), load(weights + at), total);
    };
    for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
        even = term(i, even);
        odd = term(i + kLanes, odd);
    }
    for (; i < n; i += kLanes) {
        const std::int64_t count = n - i < kLanes ? n - i : kLanes;
        Lanes h = load_first(a + i, count);
        if constexpr (kAdds) {
            h = fma(scale, load_first(table + i, count), h);
            store_first(a + i, h, count);
        }
        even = fma(apply(F, h), load_first(weights + i, count), even);
    }
    return sum(even + odd);
}

template <Function F>
float accumulate_dot_with(float* a, float x, const float* table, const float* weights, std::int64_t n) {
    return table ? accumulate_dot_of<F, true>(a, x, table, weights, n)
                 : accumulate_dot_of<F, false>(a, x, table, weights, n);
}

float accumulate_dot(float* a, float x, const float* table, Function f, const float* weights, std::int64_t n) {
    switch (f) {
        case Function::kSigmoid:
            return accumulate_dot_with<Function::kSigmoid>(a, x, table, weights, n);
        case Function::kTanh:
            return accumulate_dot_with<Function::kTanh>(a, x, table, weights, n);
        case Function::kRelu:
            return accumulate_dot_with<Function::kRelu>(a, x, table, weights, n);
        case Function::kElu:
            return accumulate_dot_with<Function::kElu>(a, x, table, weights, n);
        case Function::kGelu:
            return accumulate_dot_with<Function::kGelu>(a, x, table, weights, n);
        case Function::kGeluTanh:
            return accumulate_dot_with<Function::kGeluTanh>(a, x, table, weights, n);
        case Function::kSilu:
            return accumulate_dot_with<Function::kSilu>(a, x, table, weights, n);
        default:
            return accumulate_dot_with<Function::kNone>(a, x, table, weights, n);
    }
}

}  // namespace fastar::cpu::FASTAR_ISA
