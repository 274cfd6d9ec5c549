// Commands that take one number at a time, and the norms.
#pragma once

#include <cstdint>

#include "cuda/context.cuh"

namespace fastar::cuda {

FASTAR_DEVICE void run_gather(const Context& x, const Command& c) {
    const Crew crew = x.crew(c);
    const float* table = x.weights<float>(c.weight);
    const std::int64_t base = x.index(c.index);
    const int position = c.position < 0 ? 0 : x.index(c.position);
    const int width = c.out.width;
    for (int i = crew.thread(); i < x.rows * width; i += crew.threads()) {
        const int r = i / width;
        const int o = i % width;
        std::int64_t symbol = c.first_symbol;
        if (c.position < 0) symbol = c.first_symbol < 0 ? 0 : c.first_symbol;
        if (c.position >= 0 && position >= 0) symbol = static_cast<std::int64_t>(x.values(r, position)[c.channel]);
        float y = symbol < 0 ? 0.0f : table[(base + symbol) * width + o];
        if (c.add.present()) y += x.row(c.add, r)[o];
        x.keep(c, r, o, y);
    }
}

FASTAR_DEVICE void run_accumulate(const Context& x, const Command& c) {
    const int position = x.index(c.position);
    if (position < 0) return;
    const Crew crew = x.crew(c);
    const int width = c.out.width;
    const float* table = x.table_row<float>(c, x.index(c.index), 4 * width);
    for (int i = crew.thread(); i < x.rows * width; i += crew.threads()) {
        const int r = i / width;
        const int o = i % width;
        const auto factor = static_cast<float>(c.scale * x.values(r, position)[c.channel] + c.shift);
        x.keep(c, r, o, x.row(c.out, r)[o] + factor * table[o]);
    }
}

FASTAR_DEVICE void run_gate(const Context& x, const Command& c) {
    const Crew crew = x.crew(c);
    const int width = c.out.width;
    for (int i = crew.thread(); i < x.rows * width; i += crew.threads()) {
        const int r = i / width;
        const int o = i % width;
        const float a = x.row(c.source, r)[o];
        const float b = x.row(c.other, r)[o];
        const float open = c.gate == GateFunction::kSilu ? b * sigmoid(b) : sigmoid(b);
        x.keep(c, r, o, (c.gate == GateFunction::kTanh ? tanhf(a) : a) * open);
    }
}

FASTAR_DEVICE void run_elementwise(const Context& x, const Command& c) {
    const Crew crew = x.crew(c);
    int begin = 0;
    int width = c.source.width;
    if (c.spans >= 0) {
        const std::int32_t* span = x.weights<std::int32_t>(c.spans) + x.index(c.index);
        begin = span[0];
        width = span[1] - span[0];
    }
    for (int i = crew.thread(); i < x.rows * width; i += crew.threads()) {
        const int r = i / width;
        const int o = begin + i % width;
        const float a = x.row(c.source, r)[o];
        float y = 0.0f;
        switch (c.elementwise) {
            case Elementwise::kUnary:
                y = apply(c.function, c.scale * a + c.shift);
                break;
            case Elementwise::kClamp:
                // A NaN stays one.
                y = a < c.scale ? c.scale : a > c.shift ? c.shift : a;
                break;
            case Elementwise::kConcatElu:
                y = apply(Function::kElu, c.scale * a + c.shift);
                x.keep(c, r, c.source.width + o, apply(Function::kElu, -c.scale * a - c.shift));
                break;
            case Elementwise::kAdd:
                y = c.scale * a + x.row(c.other, r)[o];
                break;
            case Elementwise::kMultiply:
                y = c.scale * a * x.row(c.other, r)[o];
                break;
        }
        x.keep(c, r, o, y);
    }
}

FASTAR_DEVICE void run_norm(const Context& x, const Command& c) {
    const Crew crew = x.crew(c);
    const float* weight = c.weight < 0 ? nullptr : x.weights<float>(c.weight);
    const float* bias = c.bias < 0 ? nullptr : x.weights<float>(c.bias);
    const int width = c.out.width;
    for (int r = crew.warp; r < x.rows; r += crew.warps) {
        const float* source = x.row(c.source, r);
        float mean = 0.0f;
        if (c.norm == NormKind::kLayer) {
            for (int i = crew.lane; i < width; i += kLanes) mean += source[i];
            mean = warp_sum(mean) / static_cast<float>(width);
        }
        float squares = 0.0f;
        for (int i = crew.lane; i < width; i += kLanes) squares += (source[i] - mean) * (source[i] - mean);
        const float scale = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(width) + c.eps);
        for (int i = crew.lane; i < width; i += kLanes) {
            float y = (source[i] - mean) * scale;
            if (weight) y *= weight[i];
            if (bias) y += bias[i];
            x.keep(c, r, i, y);
        }
    }
}

FASTAR_DEVICE void run_cell(const Context& x, const Command& c) {
    const Crew crew = x.crew(c);
    const int width = c.out.width;
    for (int i = crew.thread(); i < x.rows * width; i += crew.threads()) {
        const int r = i / width;
        const int o = i % width;
        const float* gates = x.row(c.source, r) + o;
        const float* others = c.other.present() ? x.row(c.other, r) + o : nullptr;
        const auto gate = [&](int k) { return others ? gates[k * width] + others[k * width] : gates[k * width]; };
        float h = 0.0f;
        if (c.cell_kind == CellKind::kTanh) {
            h = tanhf(gate(0));
        } else if (c.cell_kind == CellKind::kGru) {
            const float reset = sigmoid(gate(0));
            const float keep = sigmoid(gate(1));
            const float fresh = tanhf(gates[2 * width] + reset * others[2 * width]);
            h = (1.0f - keep) * fresh + keep * x.row(c.hidden, r)[o];
        } else {
            const float cell = sigmoid(gate(1)) * x.row(c.cell, r)[o] + sigmoid(gate(0)) * tanhf(gate(2));
            h = sigmoid(gate(3)) * tanhf(cell);
            x.put(c, c.cell_out, x.row(c.cell_out, r) + o, cell);
        }
        x.keep(c, r, o, h);
    }
}

FASTAR_DEVICE void run_store(const Context& x, const Command& c) {
    const Crew crew = x.crew(c);
    const int position = x.index(c.position);
    const int width = c.out.width;
    for (int i = crew.thread(); i < x.rows * width; i += crew.threads()) {
        const int r = i / width;
        const int v = i % width;
        const float y = position < 0 ? c.first : static_cast<float>(c.scale * x.values(r, position)[v] + c.shift);
        x.keep(c, r, v, y);
    }
}

}  // namespace fastar::cuda
