#include "cpu/executor/compile.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <string>

#include "cpu/executor/choice.h"

namespace fastar::cpu {
namespace {

// Channels that are split among threads in blocks, never within a cache line or two.
constexpr std::int64_t kChannelsPerUnit = 64;

template <typename S>
std::unique_ptr<S> make(void (*run)(const Step&, Frame&), const Instruction& i) {
    auto step = std::make_unique<S>();
    step->run = run;
    step->place = i.place;
    return step;
}

// What a product costs, as a part of a float32 one.
double effort(Storage storage) {
    switch (storage) {
        case Storage::kTilesBfloat16:
            return 0.5;
        case Storage::kTilesInt8:
            return 0.3;
        default:
            return 1.0;
    }
}

std::size_t size(std::int64_t n) {
    return static_cast<std::size_t>(n);
}

bool same(const Index& a, const Index& b) {
    return a.constant == b.constant && a.terms == b.terms && a.divisor == b.divisor;
}

bool same(const Ref& a, const Ref& b) {
    return a.buffer == b.buffer && a.width == b.width && same(a.offset, b.offset) &&
           std::equal(a.at.begin(), a.at.end(), b.at.begin(), b.at.end(),
                      [](const Index& x, const Index& y) { return same(x, y); });
}

}  // namespace

namespace {

// About what a plan will ask for. Tables are not packed, and matrices are padded.
std::size_t expected_bytes(const Program& program, Precision precision) {
    double total = 0.0;
    for (const Weight& one : program.weights) {
        const double count = std::accumulate(one.shape.begin(), one.shape.end(), 1.0, std::multiplies<>());
        total += count * (precision == Precision::kFloat32    ? 4.0
                          : precision == Precision::kBfloat16 ? 2.0
                                                              : 1.0) +
                 64.0;
    }
    return static_cast<std::size_t>(total);
}

}  // namespace

WeightStore::WeightStore(const Program& program, Precision precision)
    : program_(program), precision_(precision), arena_(expected_bytes(program, precision)) {}

std::shared_ptr<const Matrix> WeightStore::matrix(int number, std::int64_t banks, std::int64_t outputs,
                                                  std::int64_t inputs, bool by_rows) {
    auto& held = matrices_[{number, by_rows}];
    if (!held) {
        held = std::make_shared<const Matrix>(
            pack(weight(number).floats, banks, outputs, inputs, precision_, by_rows, arena_));
    }
    return held;
}

const float* WeightStore::floats(int number) {
    if (number < 0) return nullptr;
    auto& held = tables_[number];
    if (!held) {
        const auto& shape = weight(number).shape;
        const auto bytes = sizeof(float) * static_cast<std::size_t>(std::accumulate(
                                               shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>()));
        held = std::memcpy(arena_.take(bytes), weight(number).floats, bytes);
    }
    return static_cast<const float*>(held);
}

const float* WeightStore::padded(int number, std::int64_t width, std::int64_t to, float rest,
                                 const std::function<float(float)>& change) {
    const auto& shape = weight(number).shape;
    const std::int64_t rows = std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>()) / width;
    auto* held = reinterpret_cast<float*>(arena_.take(sizeof(float) * static_cast<std::size_t>(rows * to)));
    for (std::int64_t row = 0; row < rows; ++row) {
        float* out = held + row * to;
        std::transform(weight(number).floats + row * width, weight(number).floats + (row + 1) * width, out, change);
        std::fill(out + width, out + to, rest);
    }
    return held;
}

const std::int32_t* WeightStore::integers(int number) {
    if (number < 0) return nullptr;
    auto& held = tables_[number];
    if (!held) {
        const auto bytes = sizeof(std::int32_t) * static_cast<std::size_t>(weight(number).shape[0]);
        held = std::memcpy(arena_.take(bytes), weight(number).integers, bytes);
    }
    return static_cast<const std::int32_t*>(held);
}

std::size_t WeightStore::bytes() const {
    std::size_t total = arena_.used();
    for (const auto& [key, matrix] : matrices_) total += matrix->scales.size() * sizeof(float);
    return total;
}

std::optional<Place> Compiler::place(const std::optional<Ref>& ref) const {
    return ref ? std::optional(place(*ref)) : std::nullopt;
}

Place Compiler::whole(int buffer) const {
    const Buffer& one = program_.buffers[static_cast<std::size_t>(buffer)];
    return place(Ref{.buffer = buffer, .at = {}, .offset = {}, .width = one.shape.back()});
}

std::unique_ptr<Step> Compiler::step(const Instruction& i) {
    switch (i.op) {
        case Op::kLinear:
        case Op::kTappedLinear:
        case Op::kSpanLinear:
        case Op::kReadout:
            return matrix(i);
        case Op::kGather:
            return gather(i);
        case Op::kAccumulate:
            return accumulate(i);
        case Op::kGate:
            return gate(i);
        case Op::kElementwise:
            return elementwise(i);
        case Op::kNorm:
            return norm(i);
        case Op::kAttention:
            return attention(i);
        case Op::kCell:
            return cell(i);
        case Op::kDraw:
            return draw(i);
        case Op::kStore:
            return store(i);
        case Op::kEmit:
            return emit(i);
        default:
            throw std::invalid_argument("program: entry " + std::to_string(i.place) + " is no instruction");
    }
}

std::unique_ptr<Step> Compiler::matrix(const Instruction& i) {
    auto s = make<MatrixStep>(run_matrix, i);
    fill(*s, i);
    return s;
}

void Compiler::fill(MatrixStep& s, const Instruction& i) {
    const auto& shape = program_.weights[size(i.weight)].shape;
    const bool banked = i.op == Op::kReadout || (i.index && i.op != Op::kSpanLinear);
    const bool spans = i.op == Op::kSpanLinear;
    s.out = place(*i.out);
    s.source = place(*i.source);
    s.add = place(i.add);
    s.bias = store_.floats(i.bias);
    s.function = i.op == Op::kReadout ? Function::kNone : i.function;
    s.input_function = i.op == Op::kReadout ? i.function : Function::kNone;
    if (banked) s.bank = cpu::resolve(*i.index);
    for (const auto& tap : i.taps) {
        Tap t{};
        std::copy(tap.begin(), tap.end(), t.begin());
        s.taps.push_back(t);
    }
    s.tap_begin = i.tap_begin;
    s.tap_end = i.last_tap();
    s.partial = place(i.partial);
    if (spans) {
        s.span = cpu::resolve(*i.index);
        s.spans = store_.integers(i.spans);
        s.reach = store_.integers(i.reach);
    }
    const auto taps = std::max<std::int64_t>(1, static_cast<std::int64_t>(s.taps.size()));
    const double part = s.taps.empty() ? 1.0 : static_cast<double>(s.tap_end - s.tap_begin) / static_cast<double>(taps);
    const std::int64_t inputs = taps * s.source.width;
    const std::int64_t outputs = s.out.width;
    s.matrix = store_.matrix(i.weight, banked ? shape[0] : 1, outputs, inputs, spans || prefers_rows(outputs));
    // A span's extent is known at run time only: its shares are counted in sixteenths.
    s.units = spans ? 16 : s.matrix->units;
    const double used =
        spans ? 1.0 / static_cast<double>(std::max<std::int64_t>(1, program_.weights[size(i.spans)].shape[0] - 1))
              : 1.0;
    s.bytes = static_cast<double>(s.matrix->bank_bytes) * used * part;
    s.tiles = std::ceil(static_cast<double>(outputs) / static_cast<double>(kTileOutputs)) * used;
    s.work = static_cast<double>(outputs * inputs) * used * part * effort(s.matrix->storage);
    s.outputs = {s.out};
    s.sizes.segments = size(taps);
    s.sizes.staging = size(kRowBlock * (s.matrix->inputs * 2 + 16));
    if (s.input_function != Function::kNone) {
        s.sizes.floats = size(kRowBlock * s.matrix->inputs);
        s.lanes = static_cast<double>(inputs);
    }
}

std::unique_ptr<Step> Compiler::gather(const Instruction& i) {
    auto s = make<GatherStep>(run_gather, i);
    s->table = store_.floats(i.weight);
    s->width = i.out->width;
    if (i.position) s->position = cpu::resolve(*i.position);
    s->channel = i.channel;
    s->base = cpu::resolve(*i.index);
    s->first = i.first_symbol;
    s->out = place(*i.out);
    s->add = place(i.add);
    s->outputs = {s->out};
    return s;
}

std::unique_ptr<AccumulateStep> Compiler::accumulate(const Instruction& i) {
    auto s = make<AccumulateStep>(run_accumulate, i);
    s->table = store_.floats(i.weight);
    s->row = cpu::resolve(*i.index);
    s->position = cpu::resolve(*i.position);
    s->channel = i.channel;
    s->scale = static_cast<float>(i.scale);
    s->shift = static_cast<float>(i.shift);
    s->out = place(*i.out);
    s->work = static_cast<double>(s->out.width);
    s->bytes = 4.0 * s->work;
    s->outputs = {s->out};
    return s;
}

std::unique_ptr<Step> Compiler::fused(const Instruction& first, const Instruction& second) {
    if (first.op == Op::kAccumulate && second.op == Op::kReadout) return accumulate_readout(first, second);
    const bool linear = first.op == Op::kTappedLinear || (first.op == Op::kLinear && !first.index);
    return linear && second.op == Op::kGate ? gated_matrix(first, second) : nullptr;
}

std::unique_ptr<Step> Compiler::gated_matrix(const Instruction& matrix, const Instruction& gate) {
    const std::int64_t half = gate.out->width;
    const auto is_half = [&](const Ref& ref, std::int64_t from) {
        Ref part = *matrix.out;
        part.offset.constant += from;
        part.width = half;
        return part.offset.divisor == 1 && same(part, ref);
    };
    if (half % kTileOutputs != 0 || matrix.out->width != 2 * half) return nullptr;
    if (!is_half(*gate.source, 0) || !is_half(*gate.other, half)) return nullptr;
    auto s = make<GatedMatrixStep>(run_gated_matrix, gate);
    fill(*s, matrix);
    s->gate = gate.gate;
    s->gated = place(*gate.out);
    s->units = half / kTileOutputs;
    s->lanes += 2.0 * static_cast<double>(half);
    s->outputs = {s->out, s->gated};
    return s;
}

std::unique_ptr<Step> Compiler::accumulate_readout(const Instruction& first, const Instruction& second) {
    if (second.out->width != 1 || !same(*first.out, *second.source)) return nullptr;
    auto s = make<AccumulateReadoutStep>(run_accumulate_readout, second);
    s->accumulate = *accumulate(first);
    s->weights = store_.floats(second.weight);
    s->bias = store_.floats(second.bias);
    s->row = cpu::resolve(*second.index);
    s->function = second.function;
    s->out = place(*second.out);
    s->lanes = static_cast<double>(s->accumulate.out.width);
    s->bytes = 8.0 * s->lanes;
    s->work = s->lanes;
    s->outputs = {s->accumulate.out, s->out};
    return s;
}

std::unique_ptr<Step> Compiler::odds(const OddsLoop& loop) {
    const Instruction& accumulate = program_.code[loop.at];
    const Instruction& readout = program_.code[loop.at + 1];
    auto s = make<OddsStep>(run_odds, accumulate);
    s->variable = loop.variable;
    s->period = loop.period;
    s->odds = whole(loop.odds);
    s->powers = whole(loop.powers);
    s->out = place(*readout.out);
    s->width = s->odds.width;
    s->readout_place = readout.place;
    s->draw = draw(program_.code[loop.at + 2]);
    s->bias = store_.floats(readout.bias);
    s->first_factor = accumulate.index->constant;
    s->first_weight = readout.index->constant;
    const std::int64_t width = accumulate.out->width;
    // Padded with ones and zeros, so that rows start at cache lines and no register is a part of one.
    s->factors = store_.padded(accumulate.weight, width, s->width, 1.0f, [&](float w) {
        return static_cast<float>(std::exp(-accumulate.scale * static_cast<double>(w)));
    });
    s->weights = store_.padded(readout.weight, width, s->width, 0.0f, [](float w) { return w; });
    s->lanes = 0.3 * static_cast<double>(width) + 20.0;
    s->bytes = 8.0 * static_cast<double>(width);
    s->sizes = s->draw->sizes;
    s->outputs = {s->out};
    return s;
}

std::unique_ptr<Step> Compiler::gate(const Instruction& i) {
    auto s = make<GateStep>(run_gate, i);
    s->function = i.gate;
    s->out = place(*i.out);
    s->a = place(*i.source);
    s->b = place(*i.other);
    s->units = std::max<std::int64_t>(1, s->out.width / kChannelsPerUnit);
    s->lanes = 2.0 * static_cast<double>(s->out.width);
    s->outputs = {s->out};
    return s;
}

std::unique_ptr<Step> Compiler::elementwise(const Instruction& i) {
    auto s = make<ElementwiseStep>(run_elementwise, i);
    s->kind = i.elementwise;
    s->function = i.function;
    s->alpha = static_cast<float>(i.scale);
    s->beta = static_cast<float>(i.shift);
    s->out = place(*i.out);
    s->a = place(*i.source);
    s->b = place(i.other);
    if (i.spans >= 0) {
        s->spans = store_.integers(i.spans);
        s->span = cpu::resolve(*i.index);
    }
    s->units = s->kind == Elementwise::kConcatElu ? 1 : std::max<std::int64_t>(1, s->a.width / kChannelsPerUnit);
    s->lanes = static_cast<double>(s->out.width);
    s->outputs = {s->out};
    return s;
}

std::unique_ptr<Step> Compiler::norm(const Instruction& i) {
    auto s = make<NormStep>(run_norm, i);
    s->kind = i.norm;
    s->eps = static_cast<float>(i.eps);
    s->weight = store_.floats(i.weight);
    s->bias = store_.floats(i.bias);
    s->out = place(*i.out);
    s->source = place(*i.source);
    s->lanes = static_cast<double>(s->out.width);
    s->outputs = {s->out};
    return s;
}

std::unique_ptr<Step> Compiler::attention(const Instruction& i) {
    auto s = make<AttentionStep>(run_attention, i);
    s->query = place(*i.source);
    s->out = place(*i.out);
    s->keys = whole(i.keys);
    s->values = whole(i.values);
    s->slots = program_.buffers[size(i.keys)].shape[0];
    if (program_.buffers[size(i.values)].shape[0] != s->slots) {
        throw std::invalid_argument("program: entry " + std::to_string(i.place) +
                                    " attention: the cpu executor wants keys and values of equally many slots");
    }
    s->newest = cpu::resolve(*i.index);
    s->heads = i.heads;
    s->kv_heads = i.kv_heads;
    s->window = i.window.value_or(0);
    s->local = i.local;
    s->scale = static_cast<float>(i.scale);
    s->units = s->heads;
    s->sizes.floats = size(s->slots + 16);
    // Half of the slots on average; of an image what a pixel in its middle sees.
    const std::int64_t middle = i.local.width * i.local.rows + i.local.width / 2;
    const double slots = i.local.width > 0 ? static_cast<double>(seen(middle, std::int64_t{0}, i.local).count)
                                           : 0.5 * static_cast<double>(s->slots);
    s->work = slots * static_cast<double>(s->query.width + s->out.width);
    s->lanes = (slots + 500.0) * static_cast<double>(s->heads);
    s->outputs = {s->out};
    return s;
}

std::unique_ptr<Step> Compiler::cell(const Instruction& i) {
    auto s = make<CellStep>(run_cell, i);
    s->kind = i.cell_kind;
    s->out = place(*i.out);
    s->input_gates = place(*i.source);
    s->hidden_gates = place(i.other);
    s->hidden = place(i.hidden);
    s->cell = place(i.cell);
    s->cell_out = place(i.cell_out);
    s->lanes = static_cast<double>(s->input_gates.width);
    s->outputs = {s->out};
    if (s->cell_out) s->outputs.push_back(*s->cell_out);
    return s;
}

std::unique_ptr<DrawStep> Compiler::draw(const Instruction& i) {
    auto s = make<DrawStep>(run_draw, i);
    s->head = i.head;
    s->position = cpu::resolve(*i.position);
    s->params = place(i.source);
    s->out = place(i.out);
    s->integer = program_.levels > 0 && !i.out;
    s->channels = program_.channels;
    s->levels = program_.levels;
    if (s->head.channels > kMaxChannels || program_.channels > kMaxChannels) {
        throw std::invalid_argument("program: entry " + std::to_string(i.place) +
                                    " draw: the cpu executor takes up to " + std::to_string(kMaxChannels) +
                                    " channels a position");
    }
    const std::int64_t levels = std::max<std::int64_t>(2, s->head.levels);
    s->sizes.floats = size(levels + 16);
    s->sizes.doubles = size(levels + levels / 16 + 2 + 2 * s->head.components);
    s->sizes.order = size(levels);
    // A mixture's terms are in float64, one by one.
    s->lanes = s->head.kind <= HeadKind::kCategorical
                   ? 600.0 + 6.0 * static_cast<double>(levels)
                   : 150.0 * static_cast<double>(s->head.components * (1 + s->head.channels));
    if (s->out) s->outputs = {*s->out};
    return s;
}

std::unique_ptr<Step> Compiler::store(const Instruction& i) {
    auto s = make<StoreStep>(run_store, i);
    s->out = place(*i.out);
    s->position = cpu::resolve(*i.position);
    s->scale = static_cast<float>(i.scale);
    s->shift = static_cast<float>(i.shift);
    s->first = static_cast<float>(i.first);
    s->channels = program_.channels;
    s->outputs = {s->out};
    return s;
}

std::unique_ptr<Step> Compiler::emit(const Instruction& i) {
    auto s = make<EmitStep>(run_emit, i);
    s->source = place(*i.source);
    s->log_prob = place(i.log_prob);
    s->channels = program_.channels;
    if (program_.channels > kMaxChannels) {
        throw std::invalid_argument("program: entry " + std::to_string(i.place) +
                                    " emit: the cpu executor takes up to " + std::to_string(kMaxChannels) +
                                    " channels a position");
    }
    return s;
}

}  // namespace fastar::cpu
