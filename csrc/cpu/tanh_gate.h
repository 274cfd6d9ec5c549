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
    // Null, or like z, images of `line` pixels a line and `plane` in all: each pixel adds the one over it. Rows are
    // then pixels, or images whose channels are planes.
    const void* above = nullptr;
    void* grad_above = nullptr;  // where a gradient is given as well
    bool rows_are_pixels = false;
    std::int64_t line = 0;
    std::int64_t plane = 0;
};

void tanh_gate(const TanhGate& gate, int threads);

}  // namespace fastar::cpu
