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

// What is asked for while other weights are multiplied: so many lines at every step, up to the end.
struct Ahead {
    const char* at = nullptr;
    const char* end = nullptr;
    int lines = 0;
};

inline void ask(Ahead& ahead) {
    if (ahead.at >= ahead.end) return;
    for (int line = 0; line < ahead.lines; ++line) {
        __builtin_prefetch(ahead.at);
        ahead.at += 64;
    }
}

// sums[r][p] += the products of `count` steps.
template <typename Format, int P, int R>
[[gnu::always_inline]] inline void add_products(typename Format::Sum (&sums)[R][P], const typename Format::Weight* w,
                                                const typename Format::Weight* w_next, const typename Format::Input* x,
                                                std::int64_t x_stride, std::int64_t count, Ahead ahead) {
    constexpr std::int64_t kStep = (P > kTileRegisters ? kTileRegisters : P) * kLanes;
    typename Format::Sum sum[R][P];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) sum[r][p] = sums[r][p];
    }
    for (std::int64_t k = 0; k < count; ++k) {
        typename Format::Spread xs[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) xs[r] = Format::spread(x[r * x_stride + k]);
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) {
            const auto one = Format::load(p < kTileRegisters ? w + p * kLanes : w_next + (p - kTileRegisters) * kLanes);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) sum[r][p] = Format::step(one, xs[r], sum[r][p]);
        }
        w += kStep;
        w_next += kStep;
        if constexpr (R > 1) ask(ahead);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) sums[r][p] = sum[r][p];
    }
}

// For several rows a function of its own with sums of its own: where they shared one with what is done at the end, the
// compiler kept half of them in memory, and every step waited for them. The sums of one row stay in registers, and a
// short product is over sooner without the way through memory.
template <typename Format, int P, int R>
[[gnu::noinline]] void multiply_apart(typename Format::Sum (&sums)[R][P], const typename Format::Weight* w,
                                      const typename Format::Weight* w_next, const typename Format::Input* x,
                                      std::int64_t x_stride, std::int64_t count, Ahead ahead) {
    add_products<Format, P, R>(sums, w, w_next, x, x_stride, count, ahead);
}

template <typename Format, int P, int R>
[[gnu::always_inline]] inline void multiply(typename Format::Sum (&sums)[R][P], const typename Format::Weight* w,
                                            const typename Format::Weight* w_next, const typename Format::Input* x,
                                            std::int64_t x_stride, std::int64_t count, Ahead ahead) {
    if constexpr (R == 1) {
        add_products<Format, P, R>(sums, w, w_next, x, x_stride, count, ahead);
    } else {
        multiply_apart<Format, P, R>(sums, w, w_next, x, x_stride, count, ahead);
    }
}

// How sums over float inputs, where these lie, begin and end; visit(first, x, stride, count) sees each run of inputs.
struct Floats {
    using Format = Float32Format;
    const MatrixArguments& a;

    std::int64_t words() const { return a.inputs; }
    Lanes start(std::int64_t row, std::int64_t output) const { return start_of(a, row, output); }
    Lanes total(std::int64_t, std::int64_t, Lanes sum) const { return sum; }

    template <typename Visit>
    void runs(std::int64_t row, Visit visit) const {
        for (std::int64_t s = 0; s < a.segment_count; ++s) {
            const Segment& segment = a.segments[s];
            visit(segment.first, segment.x + row * a.x_stride, a.x_stride, segment.count);
        }
    }
};

// As above for the formats of two or four inputs a word: x is staged as words, one after another over all inputs.
template <typename F>
struct Narrow {
    using Format = F;
    const MatrixArguments& a;
    const StagedInputs x;

    std::int64_t words() const { return a.inputs / Format::kPerWord; }
    auto start(std::int64_t row, std::int64_t output) const { return Format::start(a, row, output); }
    Lanes total(std::int64_t row, std::int64_t output, typename Format::Sum sum) const {
        return Format::total(a, x.scales, row, output, sum);
    }

    template <typename Visit>
    void runs(std::int64_t row, Visit visit) const {
        visit(x.first_word, x.words + row * x.stride + x.first_word, x.stride, x.last_word - x.first_word);
    }
};

template <typename Inputs>
const typename Inputs::Format::Weight* weights_of(const Inputs& in, std::int64_t output) {
    return static_cast<const typename Inputs::Format::Weight*>(in.a.weights) + output * in.words();
}

// P registers of outputs from `output` on, for R rows. The second half of P = 8 belongs to the next tile.
template <int P, int R, typename Inputs>
void one_tile(const Inputs& in, std::int64_t output, std::int64_t row) {
    using Format = typename Inputs::Format;
    constexpr std::int64_t kStep = (P > kTileRegisters ? kTileRegisters : P) * kLanes;
    typename Format::Sum sum[R][P];
    for (int r = 0; r < R; ++r) {
        for (int p = 0; p < P; ++p) sum[r][p] = in.start(row + r, output + p * kLanes);
    }
    in.runs(row, [&](std::int64_t first, const auto* x, std::int64_t stride, std::int64_t count) {
        const auto* w = weights_of(in, output) + first * kStep;
        multiply<Format, P, R>(sum, w, w + kTileOutputs * in.words(), x, stride, count, {});
    });
    for (int p = 0; p < P; ++p) {
        for (int r = 0; r < R; ++r) {
            const std::int64_t at = output + p * kLanes;
            finish(in.a, row + r, at, in.total(row + r, at, sum[r][p]));
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

// Several blocks of rows meet a tile a stretch of steps at a time, of 32 KiB of weights. While memory sends the next
// stretch, each block multiplies by this one, and asks for as much of the next as it is of the rows. Block by block
// over whole tiles, the one of a sum of 3072 inputs, 786 KB, did not stay in level 2 beside the next.
constexpr std::int64_t kStretch = 128;
constexpr std::int64_t kTallRows = 48;

template <typename Inputs>
void tall_tile(const Inputs& in, std::int64_t output, std::int64_t row, std::int64_t rows) {
    using Format = typename Inputs::Format;
    using Sum = typename Format::Sum;
    constexpr std::int64_t kStep = kTileRegisters * kLanes;
    constexpr std::int64_t kLinesOfStep = kStep * static_cast<std::int64_t>(sizeof(typename Format::Weight)) / 64;
    const char* end = reinterpret_cast<const char*>(weights_of(in, in.a.unit_end * kTileOutputs));
    alignas(64) Sum sums[kTallRows][kTileRegisters];
    for (std::int64_t r = 0; r < rows; ++r) {
        for (int p = 0; p < kTileRegisters; ++p) sums[r][p] = in.start(row + r, output + p * kLanes);
    }
    in.runs(row, [&](std::int64_t first, const auto* x, std::int64_t stride, std::int64_t count) {
        const auto* w = weights_of(in, output) + first * kStep;
        for (std::int64_t k = 0; k < count; k += kStretch) {
            const std::int64_t steps = std::min(kStretch, count - k);
            const std::int64_t lines = steps * kLinesOfStep;
            const char* next = reinterpret_cast<const char*>(w + (k + steps) * kStep);
            by_rows<kRowsOfTile>(rows, [&]<int R>(std::int64_t r) {
                const char* from = next + lines * r / rows * 64;
                const char* to = std::min(next + lines * (r + R) / rows * 64, end);
                const Ahead ahead{from, to, static_cast<int>(((to - from) / 64 + steps - 1) / steps)};
                multiply<Format, kTileRegisters, R>(reinterpret_cast<Sum(&)[R][kTileRegisters]>(sums[r]), w + k * kStep,
                                                    nullptr, x + r * stride + k, stride, steps, ahead);
            });
        }
    });
    for (std::int64_t r = 0; r < rows; ++r) {
        for (int p = 0; p < kTileRegisters; ++p) {
            const std::int64_t at = output + p * kLanes;
            finish(in.a, row + r, at, in.total(row + r, at, sums[r][p]));
        }
    }
}

// All tiles and rows asked for.
template <typename Inputs>
void by_tiles(const Inputs& in) {
    const MatrixArguments& a = in.a;
    std::int64_t tile = a.unit_begin;
    while (tile < a.unit_end) {
        const std::int64_t output = tile * kTileOutputs;
        const std::int64_t left = a.outputs - output;
        if constexpr (kRowsOfPair > 0) {
            if (a.rows <= kRowsOfPair && tile + 1 < a.unit_end && left >= 2 * kTileOutputs) {
                by_rows<kRowsOfPair>(
                    a.rows, [&]<int R>(std::int64_t row) { one_tile<2 * kTileRegisters, R>(in, output, row); });
                tile += 2;
                continue;
            }
        }
        ++tile;
        if (kRowsOfTile > 1 && a.rows > kRowsOfTile && left > 3 * kLanes) {
            for (std::int64_t row = 0; row < a.rows; row += kTallRows) {
                tall_tile(in, output, row, std::min(kTallRows, a.rows - row));
            }
            continue;
        }
        by_rows<kRowsOfTile>(a.rows, [&]<int R>(std::int64_t row) {
            if (left > 3 * kLanes) {
                one_tile<4, R>(in, output, row);
            } else if (left > 2 * kLanes) {
                one_tile<3, R>(in, output, row);
            } else if (left > kLanes) {
                one_tile<2, R>(in, output, row);
            } else {
                one_tile<1, R>(in, output, row);
            }
        });
    }
}

// As `multiply`, for the few outputs of a matrix of up to one tile: step k adds to stream k mod kStreams, since one
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
    // Several rows share each register of weights, at the price of half as many registers.
    if constexpr (kRows == 1 && kSlimSums / (P * kStreams / 2) > 1) {
        if (a.rows > 1) return by_registers<P / 2>(a, run);
    }
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
            by_tiles(Floats{a});
            break;
        case Storage::kTilesBfloat16:
            if (is_slim(a.outputs)) return slim_bfloat16(a);
            by_tiles(Narrow<Bfloat16Format>{a, Bfloat16Format::stage(a)});
            break;
        case Storage::kTilesInt8:
            by_tiles(Narrow<Int8Format>{a, Int8Format::stage(a)});
            break;
        case Storage::kRows:
            dot_rows(a);
            break;
    }
}

}  // namespace fastar::cpu::FASTAR_ISA
