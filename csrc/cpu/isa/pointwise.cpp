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
        const Lanes x = load_first(a + i, count);
        const Lanes y = load_first(b + i, count);
        const Lanes gated = f == GateFunction::kSilu   ? x * times_sigmoid(y, y)
                            : f == GateFunction::kTanh ? tanh(x) * sigmoid(y)
                                                       : x * sigmoid(y);
        store_first(out + i, gated, count);
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
            const Lanes candidate =
                fma(r, load_first(a.hidden_gates + 2 * H + i, count), load_first(a.input_gates + 2 * H + i, count));
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

template <Function F, int N>
void apply_to(Lanes (&x)[N]) {
    if constexpr (F == Function::kSigmoid) {
        sigmoid_of(x);
    } else {
#pragma GCC unroll 4
        for (int k = 0; k < N; ++k) x[k] = apply(F, x[k]);
    }
}

template <Function F, bool kAdds>
float accumulate_dot_of(float* a, float x, const float* table, const float* weights, std::int64_t n) {
    constexpr int kTogether = 4;
    Lanes total[kTogether] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
    const Lanes scale = splat(x);
    std::int64_t i = 0;
    for (; i + kTogether * kLanes <= n; i += kTogether * kLanes) {
        Lanes h[kTogether];
#pragma GCC unroll 4
        for (int k = 0; k < kTogether; ++k) {
            h[k] = load(a + i + k * kLanes);
            if constexpr (kAdds) {
                h[k] = fma(scale, load(table + i + k * kLanes), h[k]);
                store(a + i + k * kLanes, h[k]);
            }
        }
        apply_to<F>(h);
#pragma GCC unroll 4
        for (int k = 0; k < kTogether; ++k) total[k] = fma(h[k], load(weights + i + k * kLanes), total[k]);
    }
    for (int k = 0; i < n; i += kLanes, ++k) {
        const std::int64_t count = n - i < kLanes ? n - i : kLanes;
        Lanes h[1] = {load_first(a + i, count)};
        if constexpr (kAdds) {
            h[0] = fma(scale, load_first(table + i, count), h[0]);
            store_first(a + i, h[0], count);
        }
        apply_to<F>(h);
        total[k] = fma(h[0], load_first(weights + i, count), total[k]);
    }
    return sum((total[0] + total[1]) + (total[2] + total[3]));
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
