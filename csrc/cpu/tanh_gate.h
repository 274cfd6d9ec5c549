// y = tanh(a) * sigmoid(b), where a row of z holds a and b one after the other, and its gradient.
#pragma once

#include <cstdint>

#include "cpu/element.h"

namespace fastar::cpu {

struct TanhGate {
    Element element;
    std::int64_t rows;
    std::int64_t length;  // of a, of b and of a row of the result
    const void* z;
    const void* grad;  // of the result, or null
    void* out;         // the result or, where a gradient is given, the gradient of z
};

void tanh_gate(const TanhGate& gate, int threads);

}  // namespace fastar::cpu
