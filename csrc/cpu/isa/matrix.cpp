// Packed matrix times the vectors of a few rows, at one vector level.
//
// In tiles every output has one accumulator that meets the inputs in their order, so a result hangs neither on the rows
// beside it nor on the share of the tiles that a thread got. A tile keeps 64 outputs of one step side by side: a thread
// reads its share as one stream. One row is bound by reading the weights (four accumulators in flight already ask for
// 64 bytes a cycle, what level 2 gives); several rows reuse each register of weights.
#include <algorithm>
#include <cstring>

#include "cpu/isa/executor.h"
#include "cpu/isa/functions.h"
#include "cpu/isa/narrow.h"

namespace fastar::cpu::FASTAR_ISA {
namespace {

constexpr int kTileRegisters = static_cast<int>(kTileOutputs / kLanes);

// The rest of the result once the products are summed: start + sum + add, through the function.
inline void finish(const MatrixArguments& a, std::int64_t row, std::int64_t output, Lanes total) {
    const std::int64_t count = a.outputs - output;
    if (a.add) total = total + load_first(a.add + row * a.add_stride + output, count);
    store_first(a.out + row * a.out_stride + output, apply(a.function, total), count);
}

inline Lanes start_of(const MatrixArguments& a, std::int64_t row, std::int64_t output) {
    return a.start ? load_first(a.start + row * a.start_stride + output, a.outputs - output) : splat(0.0f);
}

// A part of the next tile: the lines of it that are asked for at each step.
struct Ahead {
    const char* at;
    int lines;
};

inline void ask(Ahead& ahead) {
    for (int line = 0; line < ahead.lines; ++line) {
        __builtin_prefetch(ahead.at);
        ahead.at += 64;
    }
}

// sums[p][r] += the products of `count` steps.
template <typename Format, int P, int R>
[[gnu::always_inline]] inline void add_products(typename Format::Sum (&sums)[P][R], const typename Format::Weight* w,
                                                const typename Format::Weight* w_next, const typename Format::Input* x,
                                                std::int64_t x_stride, std::int64_t count, Ahead ahead) {
    constexpr std::int64_t kStep = (P > kTileRegisters ? kTileRegisters : P) * kLanes;
    typename Format::Sum sum[P][R];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sum[p][r] = sums[p][r];
    }
    for (std::int64_t k = 0; k < count; ++k) {
        typename Format::Spread xs[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) xs[r] = Format::spread(x[r * x_stride + k]);
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) {
            const auto one = Format::load(p < kTileRegisters ? w + p * kLanes : w_next + (p - kTileRegisters) * kLanes);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) sum[p][r] = Format::step(one, xs[r], sum[p][r]);
        }
        w += kStep;
        w_next += kStep;
        if constexpr (R > 1) ask(ahead);
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sums[p][r] = sum[p][r];
    }
}

// For several rows a function of its own with sums of its own: where they shared one with what is done at the end, the
// compiler kept half of them in memory, and every step waited for them. The sums of one row stay in registers, and a
// short product is over sooner without the way through memory.
template <typename Format, int P, int R>
[[gnu::noinline]] void multiply_apart(typename Format::Sum (&sums)[P][R], const typename Format::Weight* w,
                                      const typename Format::Weight* w_next, const typename Format::Input* x,
                                      std::int64_t x_stride, std::int64_t count, Ahead ahead) {
    add_products<Format, P, R>(sums, w, w_next, x, x_stride, count, ahead);
}

template <typename Format, int P, int R>
[[gnu::always_inline]] inline void multiply(typename Format::Sum (&sums)[P][R], const typename Format::Weight* w,
                                            const typename Format::Weight* w_next, const typename Format::Input* x,
                                            std::int64_t x_stride, std::int64_t count, Ahead ahead) {
    if constexpr (R == 1) {
        add_products<Format, P, R>(sums, w, w_next, x, x_stride, count, ahead);
    } else {
        multiply_apart<Format, P, R>(sums, w, w_next, x, x_stride, count, ahead);
    }
}

// P registers of outputs from `output` on, for R rows. The second half of P = 8 belongs to the next tile.
template <int P, int R>
void float_tile(const MatrixArguments& a, std::int64_t output, std::int64_t row, Ahead ahead) {
    constexpr std::int64_t kStep = (P > kTileRegisters ? kTileRegisters : P) * kLanes;
    const float* weights = static_cast<const float*>(a.weights) + output * a.inputs;
    Lanes sum[P][R];
    for (int p = 0; p < P; ++p) {
        for (int r = 0; r < R; ++r) sum[p][r] = start_of(a, row + r, output + p * kLanes);
    }
    for (std::int64_t s = 0; s < a.segment_count; ++s) {
        const Segment& segment = a.segments[s];
        const float* w = weights + segment.first * kStep;
        multiply<Float32Format, P, R>(sum, w, w + kTileOutputs * a.inputs, segment.x + row * a.x_stride, a.x_stride,
                                      segment.count, {ahead.at + segment.first * ahead.lines * 64, ahead.lines});
    }
    for (int p = 0; p < P; ++p) {
        for (int r = 0; r < R; ++r) finish(a, row + r, output + p * kLanes, sum[p][r]);
    }
}

// As above for the formats of two or four inputs a word: x is staged as words, one after another over all inputs.
template <typename Format, int P, int R>
void narrow_tile(const MatrixArguments& a, const StagedInputs& x, std::int64_t output, std::int64_t row, Ahead ahead) {
    constexpr std::int64_t kStep = (P > kTileRegisters ? kTileRegisters : P) * kLanes;
    const std::int64_t words = a.inputs / Format::kPerWord;
    const std::uint32_t* w = static_cast<const std::uint32_t*>(a.weights) + output * words + x.first_word * kStep;
    typename Format::Sum sum[P][R];
    for (int p = 0; p < P; ++p) {
        for (int r = 0; r < R; ++r) sum[p][r] = Format::start(a, row + r, output + p * kLanes);
    }
    multiply<Format, P, R>(sum, w, w + kTileOutputs * words, x.words + row * x.stride + x.first_word, x.stride,
                           x.last_word - x.first_word, {ahead.at + x.first_word * ahead.lines * 64, ahead.lines});
    for (int p = 0; p < P; ++p) {
        for (int r = 0; r < R; ++r) {
            const std::int64_t at = output + p * kLanes;
            finish(a, row + r, at, Format::total(a, x.scales, row + r, at, sum[p][r]));
        }
    }
}

// Rows in blocks of at most kMost, each through body.template operator()<R>(row).
template <int kMost, typename Body>
void by_rows(std::int64_t rows, Body body) {
    std::int64_t row = 0;
    for (; row + kMost <= rows; row += kMost) body.template operator()<kMost>(row);
    if constexpr (kMost > 1) {
        if (row < rows) {
            by_rows<kMost - 1>(rows - row, [&]<int R>(std::int64_t r) { body.template operator()<R>(row + r); });
        }
    }
}

#if defined(__AVX512F__)
constexpr int kRowsOfTile = 6;
constexpr int kRowsOfPair = 3;
constexpr int kStreams = 4;
constexpr int kSlimRegisters = 4;
constexpr int kSlimSums = 24;
#else
constexpr int kRowsOfTile = 1;
constexpr int kRowsOfPair = 0;
constexpr int kStreams = 2;
constexpr int kSlimRegisters = 2;
constexpr int kSlimSums = 1;
#endif

// Where several blocks of rows pass over a tile, memory would have nothing to do but in the first pass: so each asks
// for a part of the next tile. A step of sixteen rows over 494 MB of float32 weights took 17.9 ms without this. The
// lines of a part lie side by side: every fourth line in each of four passes gained nothing, nor did a request for
// level 2 only.
inline Ahead ahead_of(const MatrixArguments& a, std::int64_t tile, std::int64_t row, std::int64_t input_bytes) {
    const std::int64_t passes = (a.rows + kRowsOfTile - 1) / kRowsOfTile;
    if (passes < 2 || tile + 1 >= a.unit_end) return {};
    const std::int64_t bytes = kTileOutputs * a.inputs * input_bytes;
    const std::int64_t lines = (kTileRegisters + passes - 1) / passes;
    const std::int64_t first = row / kRowsOfTile * lines;
    if (first >= kTileRegisters) return {};
    return {static_cast<const char*>(a.weights) + (tile + 1) * bytes + first * (bytes / kTileRegisters),
            static_cast<int>(std::min(lines, kTileRegisters - first))};
}

// run.template operator()<P, R>(output, row, ahead) over the tiles and rows asked for, where an input of an output has
// `input_bytes` of weights.
template <typename Run>
void by_tiles(const MatrixArguments& a, std::int64_t input_bytes, Run run) {
    std::int64_t tile = a.unit_begin;
    while (tile < a.unit_end) {
        const std::int64_t output = tile * kTileOutputs;
        const std::int64_t left = a.outputs - output;
        if constexpr (kRowsOfPair > 0) {
            if (a.rows <= kRowsOfPair && tile + 1 < a.unit_end && left >= 2 * kTileOutputs) {
                by_rows<kRowsOfPair>(a.rows, [&]<int R>(std::int64_t row) {
                    run.template operator()<2 * kTileRegisters, R>(output, row, Ahead{});
                });
                tile += 2;
                continue;
            }
        }
        by_rows<kRowsOfTile>(a.rows, [&]<int R>(std::int64_t row) {
            if (left > 3 * kLanes) {
                run.template operator()<4, R>(output, row, ahead_of(a, tile, row, input_bytes));
            } else if (left > 2 * kLanes) {
                run.template operator()<3, R>(output, row, Ahead{});
            } else if (left > kLanes) {
                run.template operator()<2, R>(output, row, Ahead{});
            } else {
                run.template operator()<1, R>(output, row, Ahead{});
            }
        });
        ++tile;
    }
}

// As `multiply`, for the few outputs of a matrix that fills no tile: step k adds to stream k mod kStreams, since one
// sum an output would leave the multipliers waiting for it. `step` weights lie between an input's and the next one's.
template <typename Format, int P, int R>
[[gnu::noinline]] void multiply_streams(typename Format::Sum (&sums)[kStreams][P][R], const typename Format::Weight* w,
                                        std::int64_t step, const typename Format::Input* x, std::int64_t x_stride,
                                        std::int64_t count) {
    typename Format::Sum sum[kStreams][P][R];
    std::memcpy(&sum, &sums, sizeof sum);
    const auto add = [&](int s, std::int64_t k) {
        typename Format::Spread xs[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) xs[r] = Format::spread(x[r * x_stride + k]);
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) {
            const auto one = Format::load(w + k * step + p * kLanes);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) sum[s][p][r] = Format::step(one, xs[r], sum[s][p][r]);
        }
    };
    std::int64_t k = 0;
    for (; k + kStreams <= count; k += kStreams) {
#pragma GCC unroll 4
        for (int s = 0; s < kStreams; ++s) add(s, k + s);
    }
#pragma GCC unroll 4
    for (int s = 0; s < kStreams; ++s) {
        if (k + s < count) add(s, k + s);
    }
    std::memcpy(&sums, &sum, sizeof sum);
}

// P registers of outputs from `output` on, for R rows; multiply(sums) adds the products.
template <typename Format, int P, int R, typename Multiply>
void slim_tile(const MatrixArguments& a, std::int64_t output, std::int64_t row, Multiply multiply) {
    Lanes sums[kStreams][P][R];
    for (int p = 0; p < P; ++p) {
        for (int r = 0; r < R; ++r) {
            sums[0][p][r] = start_of(a, row + r, output + p * kLanes);
            for (int s = 1; s < kStreams; ++s) sums[s][p][r] = splat(0.0f);
        }
    }
    multiply(sums);
    for (int p = 0; p < P; ++p) {
        for (int r = 0; r < R; ++r) {
            Lanes total = sums[0][p][r];
            for (int s = 1; s < kStreams; ++s) total = total + sums[s][p][r];
            finish(a, row + r, output + p * kLanes, total);
        }
    }
}

// run.template operator()<P, R>(output, row) over the registers of outputs and the rows asked for.
template <int P, typename Run>
void by_registers(const MatrixArguments& a, Run run) {
    constexpr int kRows = kSlimSums / (P * kStreams) > 1 ? kSlimSums / (P * kStreams) : 1;
    std::int64_t unit = a.unit_begin;
    for (; unit + P <= a.unit_end; unit += P) {
        by_rows<kRows>(a.rows, [&]<int R>(std::int64_t row) { run.template operator()<P, R>(unit * kLanes, row); });
    }
    if constexpr (P > 1) {
        if (unit < a.unit_end) {
            MatrixArguments rest = a;
            rest.unit_begin = unit;
            by_registers<P - 1>(rest, run);
        }
    }
}

void slim_floats(const MatrixArguments& a) {
    const std::int64_t step = (a.outputs + kLanes - 1) / kLanes * kLanes;
    by_registers<kSlimRegisters>(a, [&]<int P, int R>(std::int64_t output, std::int64_t row) {
        slim_tile<Float32Format, P, R>(a, output, row, [&](Lanes(&sums)[kStreams][P][R]) {
            for (std::int64_t s = 0; s < a.segment_count; ++s) {
                const Segment& segment = a.segments[s];
                multiply_streams<Float32Format, P, R>(
                    sums, static_cast<const float*>(a.weights) + segment.first * step + output, step,
                    segment.x + row * a.x_stride, a.x_stride, segment.count);
            }
        });
    });
}

void slim_bfloat16(const MatrixArguments& a) {
    const StagedInputs x = Bfloat16Format::stage(a);
    const std::int64_t step = (a.outputs + kLanes - 1) / kLanes * kLanes;
    const auto* weights = static_cast<const std::uint32_t*>(a.weights) + x.first_word * step;
    by_registers<kSlimRegisters>(a, [&]<int P, int R>(std::int64_t output, std::int64_t row) {
        slim_tile<Bfloat16Format, P, R>(a, output, row, [&](Lanes(&sums)[kStreams][P][R]) {
            multiply_streams<Bfloat16Format, P, R>(sums, weights + output, step,
                                                   x.words + row * x.stride + x.first_word, x.stride,
                                                   x.last_word - x.first_word);
        });
    });
}

template <typename Format>
void narrow_tiles(const MatrixArguments& a) {
    const StagedInputs x = Format::stage(a);
    by_tiles(a, 4 / Format::kPerWord, [&]<int P, int R>(std::int64_t output, std::int64_t row, Ahead ahead) {
        narrow_tile<Format, P, R>(a, x, output, row, ahead);
    });
}

// O outputs side by side share each register of x; two accumulators an output hide the latency of the sum.
template <int O>
void dot_products(const MatrixArguments& a, std::int64_t row, std::int64_t output) {
    const float* weights = static_cast<const float*>(a.weights) + output * a.inputs;
    Lanes even[O];
    Lanes odd[O];
    for (int o = 0; o < O; ++o) even[o] = odd[o] = splat(0.0f);
    for (std::int64_t s = 0; s < a.segment_count; ++s) {
        const Segment& segment = a.segments[s];
        const float* x = segment.x + row * a.x_stride;
        const float* w = weights + segment.first;
        std::int64_t k = 0;
        for (; k + 2 * kLanes <= segment.count; k += 2 * kLanes) {
            const Lanes x0 = load(x + k);
            const Lanes x1 = load(x + k + kLanes);
#pragma GCC unroll 4
            for (int o = 0; o < O; ++o) {
                even[o] = fma(load(w + o * a.inputs + k), x0, even[o]);
                odd[o] = fma(load(w + o * a.inputs + k + kLanes), x1, odd[o]);
            }
        }
        for (; k < segment.count; k += kLanes) {
            const std::int64_t count = std::min(kLanes, segment.count - k);
            const Lanes x0 = load_first(x + k, count);
#pragma GCC unroll 4
            for (int o = 0; o < O; ++o) even[o] = fma(load_first(w + o * a.inputs + k, count), x0, even[o]);
        }
    }
    float total[kLanes];
    for (int o = 0; o < O; ++o) {
        total[o] = sum(even[o] + odd[o]);
        if (a.start) total[o] += a.start[row * a.start_stride + output + o];
        if (a.add) total[o] += a.add[row * a.add_stride + output + o];
    }
    store_first(a.out + row * a.out_stride + output, apply(a.function, load_first(total, O)), O);
}

void dot_rows(const MatrixArguments& a) {
    constexpr int kTogether = 4;
    std::int64_t output = a.unit_begin;
    for (; output + kTogether <= a.unit_end; output += kTogether) {
        for (std::int64_t row = 0; row < a.rows; ++row) dot_products<kTogether>(a, row, output);
    }
    for (; output < a.unit_end; ++output) {
        for (std::int64_t row = 0; row < a.rows; ++row) dot_products<1>(a, row, output);
    }
}

}  // namespace

void matrix(Storage storage, const MatrixArguments& a) {
    switch (storage) {
        case Storage::kTiles:
            if (is_slim(a.outputs)) return slim_floats(a);
            by_tiles(a, 4, [&]<int P, int R>(std::int64_t output, std::int64_t row, Ahead ahead) {
                float_tile<P, R>(a, output, row, ahead);
            });
            break;
        case Storage::kTilesBfloat16:
            if (is_slim(a.outputs)) return slim_bfloat16(a);
            narrow_tiles<Bfloat16Format>(a);
            break;
        case Storage::kTilesInt8:
            narrow_tiles<Int8Format>(a);
            break;
        case Storage::kRows:
            dot_rows(a);
            break;
    }
}

}  // namespace fastar::cpu::FASTAR_ISA
