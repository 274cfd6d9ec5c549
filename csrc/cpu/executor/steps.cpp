// The steps that compute, between the resolved places and the kernels of the vector level.
#include "cpu/executor/steps.h"

#include <algorithm>

#include "cpu/dispatch.h"

namespace fastar::cpu {
namespace {

const ExecutorKernels& kernel() {
    return kernels().executor;
}

// A place evaluated once, then read row by row.
class Rows {
  public:
    Rows(const Place& place, const Frame& frame) : Rows(place, frame, place.find(frame.variables)) {}
    Rows(const Place& place, const Frame& frame, std::int64_t offset)
        : data_(frame.spaces[place.space].data + offset), stride_(frame.spaces[place.space].row_stride) {}

    float* operator[](std::int64_t row) const { return data_ + row * stride_; }
    std::int64_t stride() const { return stride_; }

  private:
    float* data_;
    std::int64_t stride_;
};

struct Range {
    std::int64_t begin;
    std::int64_t end;
};

// A thread's part of a range that is only known at run time, from its share of the step's units.
Range share_of(Range all, const Step& step, const Frame& frame) {
    const std::int64_t size = all.end - all.begin;
    return {all.begin + size * frame.unit_begin / step.units, all.begin + size * frame.unit_end / step.units};
}

const double& value(const Frame& frame, std::int64_t row, std::int64_t position, std::int64_t channels,
                    std::int64_t channel) {
    return frame.request.values[(row * frame.request.length + position) * channels + channel];
}

}  // namespace

Reads MatrixStep::reads(std::int64_t unit_begin, std::int64_t unit_end) const {
    const Matrix& m = *matrix;
    if (bank.terms > 0 || spans || m.storage == Storage::kRows || unit_begin == unit_end) return {};
    const auto size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
    const auto* weights = static_cast<const std::byte*>(m.bank(bank.constant));
    if (is_slim(m.outputs)) return {.at = weights, .bytes = m.bank_bytes, .stride = 0, .count = 1};
    // A step of the inputs takes the registers of a tile; the last tile may have fewer.
    const std::size_t outputs = size(std::min(kTileOutputs, (m.outputs + 15) / 16 * 16 - unit_begin * kTileOutputs));
    const std::size_t element = m.storage == Storage::kTiles ? 4 : m.storage == Storage::kTilesBfloat16 ? 2 : 1;
    const std::size_t first = taps.empty() ? 0 : size(tap_begin * source.width);
    const std::size_t last = taps.empty() ? size(m.inputs) : size(tap_end * source.width);
    const std::size_t tile = size(kTileOutputs * m.inputs) * element;
    return {.at = weights + size(unit_begin) * tile + first * outputs * element,
            .bytes = (last - first) * outputs * element,
            .stride = tile,
            .count = unit_end - unit_begin};
}

void run_matrix(const Step& step, Frame& frame) {
    const auto& s = static_cast<const MatrixStep&>(step);
    const Matrix& matrix = *s.matrix;
    const std::int64_t bank = s.bank.at(frame.variables);
    const Space& space = frame.spaces[s.source.space];
    Segment* segments = frame.workspace.segments.data();
    std::int64_t count = 0;
    if (s.taps.empty()) {
        segments[count++] = {space.data + s.source.find(frame.variables), 0, s.source.width};
        if (s.reach) segments[0].count = s.reach[s.span.at(frame.variables)];
    } else {
        for (int k = s.tap_begin; k < s.tap_end; ++k) {
            const std::int64_t at = s.source.find_tap(frame.variables, s.taps[static_cast<std::size_t>(k)].data());
            if (at >= 0) segments[count++] = {space.data + at, k * s.source.width, s.source.width};
        }
    }
    Range units{frame.unit_begin, frame.unit_end};
    if (s.spans) {
        const std::int64_t i = s.span.at(frame.variables);
        units = share_of({s.spans[i], s.spans[i + 1]}, step, frame);
    }
    MatrixArguments a{.weights = matrix.bank(bank),
                      .scales = matrix.bank_scales(bank),
                      .inputs = matrix.inputs,
                      .outputs = matrix.outputs,
                      .segments = segments,
                      .segment_count = count,
                      .x_stride = space.row_stride,
                      .start = s.bias ? s.bias + bank * matrix.outputs : nullptr,
                      .start_stride = 0,
                      .add = nullptr,
                      .add_stride = 0,
                      .out = nullptr,
                      .out_stride = 0,
                      .rows = 0,
                      .unit_begin = units.begin,
                      .unit_end = units.end,
                      .function = s.function,
                      .staging = frame.workspace.staging.data()};
    const Rows out(s.out, frame);
    a.out_stride = out.stride();
    if (s.partial) {
        const Rows partial(*s.partial, frame);
        a.start = partial[frame.row_begin];
        a.start_stride = partial.stride();
    }
    if (s.add) {
        const Rows add(*s.add, frame);
        a.add = add[frame.row_begin];
        a.add_stride = add.stride();
    }
    for (std::int64_t k = 0; k < count; ++k) segments[k].x += frame.row_begin * a.x_stride;
    for (std::int64_t row = frame.row_begin; row < frame.row_end; row += kRowBlock) {
        a.rows = std::min(kRowBlock, frame.row_end - row);
        a.out = out[row];
        if (s.input_function != Function::kNone) {
            float* activated = frame.workspace.floats.data();
            const Rows source(s.source, frame);
            for (std::int64_t r = 0; r < a.rows; ++r) {
                kernel().unary(s.input_function, source[row + r], 1.0f, 0.0f, activated + r * matrix.inputs,
                               s.source.width);
            }
            segments[0].x = activated;
            a.x_stride = matrix.inputs;
        }
        kernel().matrix(matrix.storage, a);
        for (std::int64_t k = 0; k < count; ++k) segments[k].x += a.rows * a.x_stride;
        if (s.partial) a.start += a.rows * a.start_stride;
        if (s.add) a.add += a.rows * a.add_stride;
    }
}

Reads GatedMatrixStep::reads(std::int64_t unit_begin, std::int64_t unit_end) const {
    if (unit_end - unit_begin == units) return MatrixStep::reads(0, 2 * units);
    Reads one = MatrixStep::reads(unit_begin, unit_begin + 1);
    // Of the tiles of a half, the first and its partner.
    one.stride *= static_cast<std::size_t>(units);
    one.count *= 2;
    return one;
}

void run_gated_matrix(const Step& step, Frame& frame) {
    const auto& s = static_cast<const GatedMatrixStep&>(step);
    const Range part{frame.unit_begin, frame.unit_end};
    if (part.end - part.begin == s.units) {
        frame.unit_end = 2 * s.units;
        run_matrix(step, frame);
    } else {
        run_matrix(step, frame);
        frame.unit_begin += s.units;
        frame.unit_end += s.units;
        run_matrix(step, frame);
    }
    const Rows gates(s.out, frame);
    const Rows out(s.gated, frame);
    const std::int64_t begin = part.begin * kTileOutputs;
    const std::int64_t count = (part.end - part.begin) * kTileOutputs;
    for (std::int64_t row = frame.row_begin; row < frame.row_end; ++row) {
        const float* a = gates[row] + begin;
        kernel().gate(s.gate, a, a + s.gated.width, out[row] + begin, count);
    }
}

void run_gather(const Step& step, Frame& frame) {
    const auto& s = static_cast<const GatherStep&>(step);
    const Rows out(s.out, frame);
    const Rows add(s.add ? *s.add : s.out, frame);
    const std::int64_t base = s.base.at(frame.variables);
    const std::int64_t position = s.position ? s.position->at(frame.variables) : 0;
    const std::int64_t channels = frame.request.channels;
    for (std::int64_t row = frame.row_begin; row < frame.row_end; ++row) {
        std::int64_t symbol = s.first.value_or(s.position ? -1 : 0);
        if (s.position && position >= 0) {
            symbol = static_cast<std::int64_t>(value(frame, row, position, channels, s.channel));
        }
        if (symbol < 0) {
            if (!s.add) {
                std::fill_n(out[row], s.width, 0.0f);
            } else if (add[row] != out[row]) {
                std::copy_n(add[row], s.width, out[row]);
            }
        } else if (s.add) {
            kernel().add(s.table + (base + symbol) * s.width, 1.0f, add[row], out[row], s.width);
        } else {
            std::copy_n(s.table + (base + symbol) * s.width, s.width, out[row]);
        }
    }
}

namespace {

// The factor of the table's row. Zero is added like any other: skipping it was tried for binary data and lost more to
// wrongly guessed branches than it saved.
struct Addition {
    const float* table;  // null: nothing to add
    std::int64_t position;

    Addition(const AccumulateStep& s, const Frame& frame) : table(nullptr), position(s.position.at(frame.variables)) {
        if (position >= 0) table = s.table + s.row.at(frame.variables) * s.out.width;
    }

    float factor(const AccumulateStep& s, const Frame& frame, std::int64_t row) const {
        if (!table) return 0.0f;
        return static_cast<float>(s.scale * value(frame, row, position, frame.request.channels, s.channel) + s.shift);
    }
};

}  // namespace

void run_accumulate(const Step& step, Frame& frame) {
    const auto& s = static_cast<const AccumulateStep&>(step);
    const Addition addition(s, frame);
    if (!addition.table) return;
    const Rows out(s.out, frame);
    for (std::int64_t row = frame.row_begin; row < frame.row_end; ++row) {
        const float x = addition.factor(s, frame, row);
        kernel().accumulate(out[row], x, addition.table, s.out.width);
    }
}

void run_accumulate_readout(const Step& step, Frame& frame) {
    const auto& s = static_cast<const AccumulateReadoutStep&>(step);
    const Addition addition(s.accumulate, frame);
    const Rows state(s.accumulate.out, frame);
    const Rows out(s.out, frame);
    const std::int64_t width = s.accumulate.out.width;
    const std::int64_t i = s.row.at(frame.variables);
    const float* weights = s.weights + i * width;
    const float bias = s.bias ? s.bias[i] : 0.0f;
    const auto run = kernel().accumulate_dot;
    for (std::int64_t row = frame.row_begin; row < frame.row_end; ++row) {
        const float x = addition.factor(s.accumulate, frame, row);
        *out[row] = run(state[row], x, addition.table, s.function, weights, width) + bias;
    }
}

void run_gate(const Step& step, Frame& frame) {
    const auto& s = static_cast<const GateStep&>(step);
    const Rows out(s.out, frame);
    const Rows a(s.a, frame);
    const Rows b(s.b, frame);
    const Range part = share_of({0, s.out.width}, step, frame);
    for (std::int64_t row = frame.row_begin; row < frame.row_end; ++row) {
        kernel().gate(s.function, a[row] + part.begin, b[row] + part.begin, out[row] + part.begin,
                      part.end - part.begin);
    }
}

void run_elementwise(const Step& step, Frame& frame) {
    const auto& s = static_cast<const ElementwiseStep&>(step);
    const Rows out(s.out, frame);
    const Rows a(s.a, frame);
    const Rows b(s.b ? *s.b : s.a, frame);
    Range all{0, s.a.width};
    if (s.spans) {
        const std::int64_t i = s.span.at(frame.variables);
        all = {s.spans[i], s.spans[i + 1]};
    }
    const Range part = share_of(all, step, frame);
    const std::int64_t n = part.end - part.begin;
    for (std::int64_t row = frame.row_begin; row < frame.row_end; ++row) {
        const float* x = a[row] + part.begin;
        float* y = out[row] + part.begin;
        switch (s.kind) {
            case Elementwise::kUnary:
                kernel().unary(s.function, x, s.alpha, s.beta, y, n);
                break;
            case Elementwise::kClamp:
                kernel().clamp(x, s.alpha, s.beta, y, n);
                break;
            case Elementwise::kConcatElu:
                kernel().unary(Function::kElu, x, s.alpha, s.beta, y, n);
                kernel().unary(Function::kElu, x, -s.alpha, -s.beta, y + s.a.width, n);
                break;
            case Elementwise::kAdd:
                kernel().add(x, s.alpha, b[row] + part.begin, y, n);
                break;
            case Elementwise::kMultiply:
                kernel().multiply(x, s.alpha, b[row] + part.begin, y, n);
                break;
        }
    }
}

void run_norm(const Step& step, Frame& frame) {
    const auto& s = static_cast<const NormStep&>(step);
    const Rows out(s.out, frame);
    const Rows source(s.source, frame);
    for (std::int64_t row = frame.row_begin; row < frame.row_end; ++row) {
        kernel().norm({source[row], s.weight, s.bias, out[row], s.out.width, s.kind, s.eps});
    }
}

void run_attention(const Step& step, Frame& frame) {
    const auto& s = static_cast<const AttentionStep&>(step);
    const Rows query(s.query, frame);
    const Rows keys(s.keys, frame);
    const Rows values(s.values, frame);
    const Rows out(s.out, frame);
    const std::int64_t newest = s.newest.at(frame.variables);
    const Seen<std::int64_t> slots = seen(newest, s.window, s.local);
    const std::int64_t key_width = s.query.width / s.heads;
    const std::int64_t value_width = s.out.width / s.heads;
    for (std::int64_t row = frame.row_begin; row < frame.row_end; ++row) {
        for (std::int64_t head = frame.unit_begin; head < frame.unit_end; ++head) {
            const std::int64_t kv = head / (s.heads / s.kv_heads);
            kernel().attention({.query = query[row] + head * key_width,
                                .keys = keys[row] + kv * key_width,
                                .values = values[row] + kv * value_width,
                                .key_stride = s.keys.width,
                                .value_stride = s.values.width,
                                .key_width = key_width,
                                .value_width = value_width,
                                .seen = slots,
                                .slots = s.slots,
                                .scale = s.scale,
                                .scores = frame.workspace.floats.data(),
                                .out = out[row] + head * value_width});
        }
    }
}

void run_cell(const Step& step, Frame& frame) {
    const auto& s = static_cast<const CellStep&>(step);
    const auto at = [&](const std::optional<Place>& place, std::int64_t row) {
        return place ? Rows(*place, frame)[row] : nullptr;
    };
    for (std::int64_t row = frame.row_begin; row < frame.row_end; ++row) {
        kernel().cell({.kind = s.kind,
                       .input_gates = Rows(s.input_gates, frame)[row],
                       .hidden_gates = at(s.hidden_gates, row),
                       .hidden = at(s.hidden, row),
                       .cell = at(s.cell, row),
                       .cell_out = at(s.cell_out, row),
                       .out = Rows(s.out, frame)[row],
                       .width = s.out.width});
    }
}

void run_store(const Step& step, Frame& frame) {
    const auto& s = static_cast<const StoreStep&>(step);
    const Rows out(s.out, frame);
    const std::int64_t position = s.position.at(frame.variables);
    for (std::int64_t row = frame.row_begin; row < frame.row_end; ++row) {
        for (std::int64_t v = 0; v < s.channels; ++v) {
            out[row][v] = position < 0
                              ? s.first
                              : static_cast<float>(s.scale * value(frame, row, position, s.channels, v) + s.shift);
        }
    }
}

}  // namespace fastar::cpu
