// A step program as plain data, as docs/step-programs.md specifies it. Names of weights, buffers and variables have
// become numbers; everything else is as written there. Programs come validated, so nothing is checked again here.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/head.h"
#include "cpu/executor/kernels.h"

namespace fastar::cpu {

// floor((constant + sum coefficient * variable) / divisor)
struct Index {
    std::int64_t constant = 0;
    std::vector<std::pair<int, std::int64_t>> terms;
    std::int64_t divisor = 1;
};

struct Ref {
    int buffer = 0;
    std::vector<Index> at;
    Index offset;
    std::int64_t width = 0;
};

enum class BufferKind { kState, kScratch, kInput };

struct Buffer {
    std::string name;
    BufferKind kind;
    std::vector<std::int64_t> shape;
    bool ring;
    int init;  // a weight, or -1
};

// Contiguous, and mostly borrowed: the plan copies what it keeps.
struct Weight {
    std::vector<std::int64_t> shape;
    const float* floats;
    const std::int32_t* integers;
    std::shared_ptr<const std::vector<float>> own = {};  // what `floats` points to, where a plan made it
};

enum class Op {
    kLoop,
    kWhen,
    kEnd,
    kLinear,
    kTappedLinear,
    kSpanLinear,
    kGather,
    kAccumulate,
    kReadout,
    kGate,
    kElementwise,
    kNorm,
    kAttention,
    kCell,
    kDraw,
    kStore,
    kEmit
};

enum class Elementwise { kUnary, kClamp, kConcatElu, kAdd, kMultiply };

// One entry of the code: the union of all fields, of which an op uses its own. Weights are numbers, -1 where absent.
struct Instruction {
    Op op = Op::kEnd;
    int place = 0;
    // Loop, when.
    int variable = 0;
    std::optional<std::int64_t> count;
    std::int64_t start = 0;
    std::optional<std::int64_t> stop;
    std::int64_t step = 1;
    // Operands. `source` is also a, query, input_gates and params; `other` is b and hidden_gates.
    std::optional<Ref> out, source, add, other, hidden, cell, cell_out, log_prob;
    int weight = -1;  // also a table
    int bias = -1;
    int spans = -1;
    int reach = -1;
    std::optional<Index> index;  // also bank, row, base, newest
    std::optional<Index> position;
    std::vector<std::vector<std::int64_t>> taps;
    // A plan may take the taps from tap_begin to tap_end only (-1: all), going on from the sums in `partial`.
    int tap_begin = 0;
    int tap_end = -1;
    std::optional<Ref> partial;
    std::int64_t channel = 0;
    std::optional<std::int64_t> first_symbol;
    int keys = -1;
    int values = -1;
    std::int64_t heads = 1;
    std::int64_t kv_heads = 1;
    std::optional<std::int64_t> window;
    Neighbourhood<std::int64_t> local;
    double scale = 1.0;  // also alpha
    double shift = 0.0;  // also beta
    double first = 0.0;
    double eps = 0.0;
    Function function = Function::kNone;
    GateFunction gate = GateFunction::kTanh;
    NormKind norm = NormKind::kLayer;
    CellKind cell_kind = CellKind::kTanh;
    Elementwise elementwise = Elementwise::kUnary;
    Head head{};

    bool is_control() const { return op == Op::kLoop || op == Op::kWhen || op == Op::kEnd; }
    // Whether a position is complete after it.
    bool completes() const { return (op == Op::kDraw && !out) || op == Op::kEmit; }
    int last_tap() const { return tap_end < 0 ? static_cast<int>(taps.size()) : tap_end; }
};

struct Program {
    std::int64_t channels;  // of a value
    std::int64_t levels;    // 0: floats
    std::vector<Buffer> buffers;
    std::vector<Weight> weights;
    std::vector<Instruction> code;
    int variables;
};

}  // namespace fastar::cpu
