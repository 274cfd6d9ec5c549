// Instructions made ready to run: a function and what it needs, every size and address settled.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "cpu/executor/frame.h"
#include "cpu/executor/places.h"

namespace fastar::cpu {

// Weights that a step, or a part of one, is going to read: `count` pieces of `bytes`, `stride` apart.
struct Reads {
    const std::byte* at = nullptr;
    std::size_t bytes = 0;
    std::size_t stride = 0;
    std::int64_t count = 0;
};

struct Step {
    void (*run)(const Step& step, Frame& frame) = nullptr;
    int place = 0;           // of the instruction in the code
    std::int64_t units = 1;  // into how many parts its channels can be split among threads
    bool splits_rows = true;
    double bytes = 0.0;  // of weights, read once for all rows of a thread
    double tiles = 0.0;  // that these fill
    double work = 0.0;   // multiply-adds per row, in those of float32
    double lanes = 0.0;  // element functions per row
    std::vector<Place> outputs;
    WorkspaceSizes sizes;  // per thread

    virtual ~Step() = default;
    // What an earlier part of the same sums left, if there is one; at a fixed place.
    virtual const Place* begun() const { return nullptr; }
    // Of these units, where it is known when the plan is made.
    virtual Reads reads(std::int64_t, std::int64_t) const { return {}; }
};

using Tap = std::array<std::int64_t, kMaxCoordinates>;

struct MatrixStep : Step {
    std::shared_ptr<const Matrix> matrix;
    Slot bank;
    Place out;
    Place source;
    std::vector<Tap> taps;  // empty: the source itself
    int tap_begin = 0;
    int tap_end = 0;
    std::optional<Place> partial;  // where an earlier part of the taps left its sums
    std::optional<Place> add;
    const float* bias = nullptr;  // [banks, outputs]
    Function input_function = Function::kNone;
    Function function = Function::kNone;
    // Span linear: outputs [spans[i], spans[i + 1]) from the first reach[i] inputs.
    const std::int32_t* spans = nullptr;
    const std::int32_t* reach = nullptr;
    Slot span;

    const Place* begun() const override { return partial ? &*partial : nullptr; }
    Reads reads(std::int64_t unit_begin, std::int64_t unit_end) const override;
};

// A matrix step and the gate of its outputs' two halves, which its units are tiles of.
struct GatedMatrixStep : MatrixStep {
    GateFunction gate;
    Place gated;

    Reads reads(std::int64_t unit_begin, std::int64_t unit_end) const override;
};

struct GatherStep : Step {
    const float* table = nullptr;
    std::int64_t width = 0;
    std::optional<Slot> position;
    std::int64_t channel = 0;
    Slot base;
    std::optional<std::int64_t> first;
    Place out;
    std::optional<Place> add;
};

struct AccumulateStep : Step {
    const float* table = nullptr;
    Slot row;
    Slot position;
    std::int64_t channel = 0;
    float scale = 1.0f;
    float shift = 0.0f;
    Place out;
};

// Accumulate, and the readout of one output that follows it, in one pass over the state.
struct AccumulateReadoutStep : Step {
    AccumulateStep accumulate;
    const float* weights = nullptr;
    const float* bias = nullptr;
    Slot row;
    Function function = Function::kNone;
    Place out;
};

struct GateStep : Step {
    GateFunction function;
    Place out, a, b;
};

struct ElementwiseStep : Step {
    Elementwise kind;
    Function function;
    float alpha = 1.0f;
    float beta = 0.0f;
    Place out, a;
    std::optional<Place> b;
    const std::int32_t* spans = nullptr;
    Slot span;
};

struct NormStep : Step {
    NormKind kind;
    float eps;
    const float* weight = nullptr;
    const float* bias = nullptr;
    Place out, source;
};

struct AttentionStep : Step {
    Place query, keys, values, out;
    Slot newest;
    std::int64_t slots = 0;
    std::int64_t heads = 1;
    std::int64_t kv_heads = 1;
    std::int64_t window = 0;  // 0: all
    Neighbourhood<std::int64_t> local;
    float scale = 1.0f;
};

struct CellStep : Step {
    CellKind kind;
    Place out, input_gates;
    std::optional<Place> hidden_gates, hidden, cell, cell_out;
};

struct DrawStep : Step {
    Head head;
    Slot position;
    std::optional<Place> params;
    std::optional<Place> out;
    bool integer = true;
    std::int64_t channels = 1;
    std::int64_t levels = 0;
};

struct StoreStep : Step {
    Place out;
    Slot position;
    float scale = 1.0f;
    float shift = 0.0f;
    float first = 0.0f;
    std::int64_t channels = 1;
};

struct EmitStep : Step {
    Place source;
    std::optional<Place> log_prob;
    std::int64_t channels = 1;
};

void run_matrix(const Step& step, Frame& frame);
void run_gated_matrix(const Step& step, Frame& frame);
void run_gather(const Step& step, Frame& frame);
void run_accumulate(const Step& step, Frame& frame);
void run_accumulate_readout(const Step& step, Frame& frame);
void run_gate(const Step& step, Frame& frame);
void run_elementwise(const Step& step, Frame& frame);
void run_norm(const Step& step, Frame& frame);
void run_attention(const Step& step, Frame& frame);
void run_cell(const Step& step, Frame& frame);
void run_draw(const Step& step, Frame& frame);
void run_store(const Step& step, Frame& frame);
void run_emit(const Step& step, Frame& frame);

}  // namespace fastar::cpu
