// The activations that kernels apply by themselves, and their derivatives.
#pragma once

#include "cpu/delayed.h"
#include "cpu/isa/vector_math.h"

namespace fastar::cpu::FASTAR_ISA {

template <Gate kGate>
Floats activate(Floats z) {
    // NaN stays NaN.
    if constexpr (kGate == Gate::kRelu) return max(splat(0.0f), z);
    if constexpr (kGate == Gate::kTanh) return tanh(z);
    if constexpr (kGate == Gate::kSigmoid) return sigmoid(z);
    if constexpr (kGate == Gate::kSilu) return z * sigmoid(z);
    if constexpr (kGate == Gate::kNone) return z;
}

// act'(z).
template <Gate kGate>
Floats slope(Floats z) {
    const Floats one = splat(1.0f);
    if constexpr (kGate == Gate::kRelu) return z > splat(0.0f) ? one : splat(0.0f);
    if constexpr (kGate == Gate::kTanh) {
        const Floats y = tanh(z);
        return fnma(y, y, one);
    }
    if constexpr (kGate == Gate::kSigmoid) {
        const Floats y = sigmoid(z);
        return fnma(y, y, y);
    }
    if constexpr (kGate == Gate::kSilu) {
        const Floats s = sigmoid(z);
        return fma(z * s, one - s, s);
    }
    if constexpr (kGate == Gate::kNone) return one;
}

template <Gate kGate>
struct Chosen {
    static constexpr Gate value = kGate;
};

// body(Chosen<gate>{}).
template <typename Body>
void by_gate(Gate gate, Body body) {
    switch (gate) {
        case Gate::kNone:
            return body(Chosen<Gate::kNone>{});
        case Gate::kRelu:
            return body(Chosen<Gate::kRelu>{});
        case Gate::kTanh:
            return body(Chosen<Gate::kTanh>{});
        case Gate::kSigmoid:
            return body(Chosen<Gate::kSigmoid>{});
        case Gate::kSilu:
            return body(Chosen<Gate::kSilu>{});
    }
}

}  // namespace fastar::cpu::FASTAR_ISA
