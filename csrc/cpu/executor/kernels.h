// What the executor asks of each vector level: functions over plain pointers. Every sum runs in an order that follows
// from its own sizes, never from how many rows come along or how the outputs are shared out.
#pragma once

#include <cstdint>

#include "common/seen.h"

namespace fastar::cpu {

enum class Function : std::int32_t {
    kNone,
    kRelu,
    kElu,
    kGelu,
    kGeluTanh,
    kTanh,
    kSigmoid,
    kSilu,
    kExp,
    kLog,
    kSoftplus
};
enum class GateFunction : std::int32_t { kTanh, kLinear, kSilu };
enum class NormKind : std::int32_t { kLayer, kRms };
enum class CellKind : std::int32_t { kTanh, kLstm, kGru };

// How a matrix is stored. Tiles: 64 outputs side by side for each input, one accumulator per output. Rows: the inputs
// of an output side by side, for the few outputs that would leave most lanes of a tile empty.
enum class Storage : std::int32_t { kTiles, kTilesBfloat16, kTilesInt8, kRows };

constexpr std::int64_t kTileOutputs = 64;

// Matrices of up to one tile are one of their own width, shared out by registers of it.
constexpr std::int64_t kSlimUnit = 16;
// A full tile on its own is slim too, but for int8, whose sums are short: its sums would be the only ones under way.
constexpr bool is_slim(std::int64_t outputs) {
    return outputs <= kTileOutputs;
}
// Inputs are padded to this in every storage, so that bfloat16 pairs and int8 fours are whole.
constexpr std::int64_t kInputBlock = 16;

// Odds are padded to whole blocks. They stay within these powers of two where they are balanced, and move by at most
// kOddsMove until they are balanced again. Odds beyond are so far from 1 that their sigmoid does not change below
// 2^-(kOddsPower - kOddsMove).
constexpr std::int64_t kOddsBlock = 64;
constexpr std::int32_t kOddsPower = 77;
constexpr std::int32_t kOddsMove = 47;
// Rows that go side by side: the chain from a bit to the next one leaves a core half idle.
constexpr std::int64_t kOddsRows = 8;

// A stretch of inputs: `count` numbers from x, met by the weights' columns from `first` on.
struct Segment {
    const float* x;
    std::int64_t first;
    std::int64_t count;
};

// out[r, o] = f(start[r, o] + sum over segments W[o, first + k] x[r, k] + add[r, o]), for the units (tiles, or
// outputs in row storage) from unit_begin to unit_end.
struct MatrixArguments {
    const void* weights;
    const float* scales;  // int8: one per output
    std::int64_t inputs;
    std::int64_t outputs;
    const Segment* segments;
    std::int64_t segment_count;
    std::int64_t x_stride;
    const float* start;  // null: zeros
    std::int64_t start_stride;
    const float* add;  // null: none
    std::int64_t add_stride;
    float* out;
    std::int64_t out_stride;
    std::int64_t rows;
    std::int64_t unit_begin;
    std::int64_t unit_end;
    Function function;
    void* staging;  // bfloat16, int8: rows x inputs of those, and a scale per row
};

struct AttentionArguments {
    const float* query;
    const float* keys;
    const float* values;
    std::int64_t key_stride;
    std::int64_t value_stride;
    std::int64_t key_width;
    std::int64_t value_width;
    Seen<std::int64_t> seen;
    std::int64_t slots;  // a position lies at its remainder
    float scale;
    float* scores;  // seen.count floats
    float* out;
};

struct NormArguments {
    const float* x;
    const float* weight;
    const float* bias;
    float* out;
    std::int64_t width;
    NormKind kind;
    float eps;
};

struct CellArguments {
    CellKind kind;
    const float* input_gates;
    const float* hidden_gates;
    const float* hidden;
    const float* cell;
    float* cell_out;
    float* out;
    std::int64_t width;
};

// A row whose state is kept as odds.
struct OddsRow {
    float* odds;
    const float* bars;  // of each position
    float* logits;
    bool last;  // the bit before the first position; afterwards that of the last one
};

// Rows of factors and weights, and biases, from the first position on. The factors are looked at even where no bit is
// set.
struct TossArguments {
    const float* factors;
    const float* weights;
    const float* bias;   // null: none
    std::int64_t width;  // a multiple of kOddsBlock
    std::int64_t positions;
};

struct ExecutorKernels {
    void (*matrix)(Storage storage, const MatrixArguments& a);
    // out = f(alpha a + beta)
    void (*unary)(Function f, const float* a, float alpha, float beta, float* out, std::int64_t n);
    void (*clamp)(const float* a, float low, float high, float* out, std::int64_t n);
    void (*add)(const float* a, float alpha, const float* b, float* out, std::int64_t n);
    void (*multiply)(const float* a, float alpha, const float* b, float* out, std::int64_t n);
    void (*gate)(GateFunction f, const float* a, const float* b, float* out, std::int64_t n);
    void (*norm)(const NormArguments& a);
    void (*cell)(const CellArguments& a);
    void (*attention)(const AttentionArguments& a);
    // a += x table
    void (*accumulate)(float* a, float x, const float* table, std::int64_t n);
    // a += x table (table null: a as it is), then f(a) . weights
    float (*accumulate_dot)(float* a, float x, const float* table, Function f, const float* weights, std::int64_t n);
    // Position by position, and of at most kOddsRows rows: odds *= factors where the last bit is set; the logit, which
    // is bias + the sum of weights / (1 + odds); and the next bit, which is set where the logit is above its bar.
    void (*toss)(OddsRow* rows, std::int64_t count, const TossArguments& a);
    // Of odds 2^powers, moves what is beyond 2^+-kOddsPower from odds to powers.
    void (*balance_odds)(float* odds, float* powers, std::int64_t n);
    // temperature log(u / (1 - u)) of the discrete draws 0 at n positions of a row.
    void (*coin_bars)(std::uint64_t seed, std::uint64_t row, std::uint32_t position, double temperature, float* out,
                      std::int64_t n);
    // Bits, set where the logit is above its bar, and their log-probabilities.
    void (*coins)(const float* logits, const float* bars, double* values, float* log_probs, std::int64_t n);
    // The largest of n; not-a-number where any of them is.
    float (*largest)(const float* a, std::int64_t n);
    // out[k] = exp(z[k] - shift); sums[i] = the sum of out[16 i .. 16 i + 16) in float64.
    void (*exponentials)(const float* z, float shift, float* out, double* sums, std::int64_t n);
};

}  // namespace fastar::cpu
