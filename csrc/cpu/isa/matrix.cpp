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

// P registers of outputs from `output` on, for R rows. The second half of P = 8 belongs to the next tile.
template <int P, int R>
void float_tile(const MatrixArguments& a, std::int64_t output, std::int64_t row) {
    constexpr int kWide = P > kTileRegisters ? kTileRegisters : P;
    const std::int64_t step = kWide * kLanes;
    const float* weights = static_cast<const float*>(a.weights) + output * a.inputs;
    Lanes sum[P][R];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sum[p][r] = start_of(a, row + r, output + p * kLanes);
    }
    for (std::int64_t s = 0; s < a.segment_count; ++s) {
        const Segment& segment = a.segments[s];
        const float* x = segment.x + row * a.x_stride;
        const float* w = weights + segment.first * step;
        const float* w_next = w + kTileOutputs * a.inputs;
        for (std::int64_t k = 0; k < segment.count; ++k) {
            Lanes xs[R];
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) xs[r] = splat(x[r * a.x_stride + k]);
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) {
                const Lanes one = load(p < kTileRegisters ? w + p * kLanes : w_next + (p - kTileRegisters) * kLanes);
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) sum[p][r] = fma(one, xs[r], sum[p][r]);
            }
            w += step;
            w_next += step;
        }
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) finish(a, row + r, output + p * kLanes, sum[p][r]);
    }
}

// As above for the formats of two or four inputs a word: x is staged as words, one after another over all inputs.
template <typename Format, int P, int R>
void narrow_tile(const MatrixArguments& a, const StagedInputs& x, std::int64_t output, std::int64_t row) {
    constexpr int kWide = P > kTileRegisters ? kTileRegisters : P;
    const std::int64_t step = kWide * kLanes;
    const std::int64_t words = a.inputs / Format::kPerWord;
    const std::uint32_t* w = static_cast<const std::uint32_t*>(a.weights) + output * words + x.first_word * step;
    const std::uint32_t* w_next = w + kTileOutputs * words;
    const std::uint32_t* from = x.words + row * x.stride;
    typename Format::Sum sum[P][R];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sum[p][r] = Format::start(a, row + r, output + p * kLanes);
    }
    for (std::int64_t k = x.first_word; k < x.last_word; ++k) {
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) {
            const std::uint32_t* one = p < kTileRegisters ? w + p * kLanes : w_next + (p - kTileRegisters) * kLanes;
            const auto weights = Format::load(one);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) sum[p][r] = Format::step(weights, from[r * x.stride + k], sum[p][r]);
        }
        w += step;
        w_next += step;
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
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
#else
constexpr int kRowsOfTile = 1;
constexpr int kRowsOfPair = 0;
#endif

// run.template operator()<P, R>(output, row) over the tiles and rows asked for.
template <typename Run>
void by_tiles(const MatrixArguments& a, Run run) {
    std::int64_t tile = a.unit_begin;
    while (tile < a.unit_end) {
        const std::int64_t output = tile * kTileOutputs;
        const std::int64_t left = a.outputs - output;
        if constexpr (kRowsOfPair > 0) {
            if (a.rows <= kRowsOfPair && tile + 1 < a.unit_end && left >= 2 * kTileOutputs) {
                by_rows<kRowsOfPair>(a.rows, [&]<int R>(std::int64_t row) {
                    run.template operator()<2 * kTileRegisters, R>(output, row);
                });
                tile += 2;
                continue;
            }
        }
        by_rows<kRowsOfTile>(a.rows, [&]<int R>(std::int64_t row) {
            if (left > 3 * kLanes) {
                run.template operator()<4, R>(output, row);
            } else if (left > 2 * kLanes) {
                run.template operator()<3, R>(output, row);
            } else if (left > kLanes) {
                run.template operator()<2, R>(output, row);
            } else {
                run.template operator()<1, R>(output, row);
            }
        });
        ++tile;
    }
}

template <typename Format>
void narrow_tiles(const MatrixArguments& a) {
    const StagedInputs x = Format::stage(a);
    by_tiles(
        a, [&]<int P, int R>(std::int64_t output, std::int64_t row) { narrow_tile<Format, P, R>(a, x, output, row); });
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
            by_tiles(a, [&]<int P, int R>(std::int64_t output, std::int64_t row) { float_tile<P, R>(a, output, row); });
            break;
        case Storage::kTilesBfloat16:
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
