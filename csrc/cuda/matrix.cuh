// y = f(W x + b + add) in its forms. Every output of a row is summed in an order that follows from the matrix alone.
#pragma once

#include <cstdint>

#include "cuda/context.cuh"
#include "cuda/ring.cuh"

namespace fastar::cuda {

struct MatrixOperands {
    const std::byte* weights;
    const float* bias;
    const float* scales;
    Outputs outputs;
    int inputs;  // of a tap, that count
    int taps;
    int apart;  // tiles that follow one another in memory are so many apart

    // A tile's weights: of those in shared memory this block has every `apart`-th.
    template <typename T>
    FASTAR_DEVICE const T* tile(const Command& c, int number) const {
        return reinterpret_cast<const T*>(weights + static_cast<std::int64_t>(number / apart) * c.tile_bytes);
    }

    FASTAR_DEVICE MatrixOperands(const Context& x, const Command& c)
        : weights(x.weights<std::byte>(c.weight)),
          bias(c.bias < 0 ? nullptr : x.weights<float>(c.bias)),
          scales(c.scales < 0 ? nullptr : x.weights<float>(c.scales)),
          outputs{0, c.outputs},
          inputs(c.inputs),
          taps(c.taps == 0 ? 1 : c.taps),
          apart(c.resident < 0 ? 1 : x.blocks(c)) {
        std::int64_t bank = 0;
        if (c.spans >= 0) {
            const int i = x.index(c.index);
            const std::int32_t* spans = x.weights<std::int32_t>(c.spans);
            outputs = {spans[i], spans[i + 1]};
            if (c.reach >= 0) inputs = x.weights<std::int32_t>(c.reach)[i];
        } else if (c.index >= 0) {
            bank = x.index(c.index);
            weights = x.table_row<std::byte>(c, x.index(c.index), c.bank_bytes);
            if (bias) bias += bank * c.outputs;
            if (scales) scales += bank * c.outputs;
        }
        if (c.resident >= 0) {
            const int tiles = c.outputs + outputs_of_tile(c.storage) - 1;
            const int own = (tiles / outputs_of_tile(c.storage) + apart - 1) / apart;
            weights = shared_memory() + x.layout.resident + c.resident + bank * own * c.tile_bytes;
        }
    }
};

// What becomes of a sum.
FASTAR_DEVICE float finish(const Context& x, const Command& c, const MatrixOperands& m, int output, int r, float sum) {
    if (m.scales) sum *= m.scales[output];
    if (m.bias) sum += m.bias[output];
    if (c.add.present()) sum += x.row(c.add, r)[output];
    return apply(c.function, sum);
}

// A warp for each output of each row.
FASTAR_DEVICE void multiply_rows(const Context& x, const Command& c) {
    const MatrixOperands m(x, c);
    const Crew crew = x.crew(c);
    const int wide = m.outputs.end - m.outputs.begin;
    const int copies = x.copies(c, c.out);
    for (int item = crew.warp; item < wide * x.rows; item += crew.warps) {
        const int output = m.outputs.begin + item % wide;
        const int r = item / wide;
        const float* weights =
            reinterpret_cast<const float*>(m.weights) + static_cast<std::int64_t>(output) * m.taps * c.inputs;
        float sum = 0.0f;
        for (int t = 0; t < m.taps; ++t) {
            const auto [source, stride] = x.source(c, t);
            if (source == nullptr) continue;
            for (int k = crew.lane; k < m.inputs; k += kLanes) {
                sum += weights[t * c.inputs + k] * apply(c.input_function, source[r * stride + k]);
            }
        }
        sum = warp_sum(sum);
        const float y = finish(x, c, m, output, r, sum);
        // Where `add` lies under `out`, every lane has read it before the first writes.
        warp_barrier();
        for (int i = crew.lane; i < copies; i += kLanes) x.put_copy(c, x.row(c.out, r) + output, copies, i, y);
        if (crew.lane == 0 && x.mirrors(c)) x.row(c.mirror, r)[output] = y;
    }
}

FASTAR_DEVICE Float4 load_inputs(const float* from, int left, bool aligned) {
    if (aligned && left >= 4) return *reinterpret_cast<const Float4*>(from);
    Float4 x{};
    for (int i = 0; i < 4; ++i) {
        if (i < left) x.at[i] = from[i];
    }
    return x;
}

// Gives the tiles of this block to its warps: whole, or in the parts that follow from the matrix, whose sums are added
// in order. A tile of many inputs in one warp's hands would leave the others without anything to load.
template <int kSums, typename Sum, typename Finish>
FASTAR_DEVICE void by_parts(const Context& x, const Command& c, Sum sum, Finish finish) {
    const Crew block = x.block_crew();
    const Tiles tiles(c, x.block(c), x.blocks(c), block.warps);
    float* partials = reinterpret_cast<float*>(shared_memory() + x.layout.partials) + block.lane;
    for (int first = 0; first < tiles.own; first += tiles.at_once) {
        const int count = tiles.in_round(first);
        for (int item = block.warp; item < count * c.parts; item += block.warps) {
            const int tile = tiles.number(first + item / c.parts);
            float sums[kSums] = {};
            sum(tile, item % c.parts, sums);
            if (c.parts == 1) {
                finish(tile, sums);
                continue;
            }
#pragma unroll
            for (int i = 0; i < kSums; ++i) partials[(item * kSums + i) * kLanes] = sums[i];
        }
        if (c.parts == 1) continue;
        barrier();
        for (int i = block.warp; i < count; i += block.warps) {
            float sums[kSums] = {};
            for (int part = 0; part < c.parts; ++part) {
#pragma unroll
                for (int k = 0; k < kSums; ++k) sums[k] += partials[((i * c.parts + part) * kSums + k) * kLanes];
            }
            finish(tiles.number(first + i), sums);
        }
        barrier();
    }
}

// Float32: tiles of 8 outputs, of which four lanes share one, each taking four of a step's inputs.
template <int kRows>
FASTAR_DEVICE void multiply_tiles(const Context& x, const Command& c) {
    // Loads under way at once: with several rows their own arithmetic hides the wait, and unrolled it takes ptxas long.
    constexpr int kAhead = kRows == 1 ? 4 : 1;
    constexpr int kStageBytes = step_bytes(Storage::kFloat32);
    const MatrixOperands m(x, c);
    const int lane = x.block_crew().lane;
    const int quarter = lane % 4;
    const int steps = (c.inputs + kStep - 1) / kStep;
    const int copies = x.copies(c, c.out);
    const auto sum = [&](int tile, int part, float (&sums)[kRows]) {
        const std::byte* weights = m.tile<std::byte>(c, tile);
        const Steps share(m.taps * steps, part, c.parts);
        for (int t = 0; t < m.taps; ++t) {
            const auto source = x.source(c, t);
            const bool aligned = reinterpret_cast<std::uintptr_t>(source.at) % 16 == 0 && source.stride % 4 == 0;
            const auto multiply = [&](const std::byte* step, int s) {
                const Float4 w = reinterpret_cast<const Float4*>(step)[lane];
                const int k = s * kStep + 4 * quarter;
#pragma unroll
                for (int r = 0; r < kRows; ++r) {
                    // Rows that are not there repeat the last one.
                    const int row = r < x.rows ? r : x.rows - 1;
                    const Float4 v = load_inputs(source.at + row * source.stride + k, c.inputs - k, aligned);
                    for (int i = 0; i < 4; ++i) sums[r] += w.at[i] * v.at[i];
                }
            };
            over_steps<kStageBytes, kAhead>(x, c, weights + t * steps * kStageBytes, share.of_tap(t, steps),
                                            source.at != nullptr, multiply);
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            sums[r] += shuffle_xor(sums[r], 1);
            sums[r] += shuffle_xor(sums[r], 2);
        }
    };
    const auto keep = [&](int tile, float (&sums)[kRows]) {
        const int output = tile * 8 + lane / 4;
        const bool inside = output < c.outputs;
        if (copies == 1) {
            // One lane of the four, so that it alone reads an `add` that lies under `out`.
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
                if (r >= x.rows || quarter != r % 4 || !inside) continue;
                x.keep(c, r, output, finish(x, c, m, output, r, sums[r]));
            }
            return;
        }
        // All four share the writing, after all have read.
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            if (r < x.rows && inside) sums[r] = finish(x, c, m, output, r, sums[r]);
        }
        warp_barrier();
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            if (r >= x.rows || !inside) continue;
            for (int i = quarter; i < copies; i += 4) x.put_copy(c, x.row(c.out, r) + output, copies, i, sums[r]);
            if (quarter == 0 && x.mirrors(c)) x.row(c.mirror, r)[output] = sums[r];
        }
    };
    by_parts<kRows>(x, c, sum, keep);
}

template <Storage kStorage>
FASTAR_DEVICE std::uint32_t pack_inputs(float low, float high) {
    return kStorage == Storage::kFloat16 ? pack_float16(low, high) : pack_bfloat16(low, high);
}

// A lane's share of a step's fragment of weights.
template <Storage kStorage>
FASTAR_DEVICE void load_fragment(const std::byte* step, int lane, std::uint32_t (&a)[4]) {
    struct alignas(16) Words {
        std::uint32_t at[4];
    };
    struct alignas(8) Bytes {
        std::int8_t at[8];
    };
    if (kStorage == Storage::kInt8) {
        const Bytes b = reinterpret_cast<const Bytes*>(step)[lane];
        // Whole numbers up to 127 are exact in bfloat16.
        for (int i = 0; i < 4; ++i) a[i] = pack_bfloat16(b.at[2 * i], b.at[2 * i + 1]);
    } else {
        const Words w = reinterpret_cast<const Words*>(step)[lane];
        for (int i = 0; i < 4; ++i) a[i] = w.at[i];
    }
}

// Sixteen bits or eight: tiles of 16 outputs, all rows at once in the matrix instruction. A row is a column of its
// right factor, so what the others hold does not touch it.
template <Storage kStorage>
FASTAR_DEVICE void multiply_fragments(const Context& x, const Command& c) {
    const MatrixOperands m(x, c);
    const int lane = x.block_crew().lane;
    const int steps = (c.inputs + kStep - 1) / kStep;
    const int copies = x.copies(c, c.out);
    const int row = lane / 4;
    const int pair = 2 * (lane % 4);
    constexpr int kStageBytes = step_bytes(kStorage);
    const auto sum = [&](int tile, int part, float (&sums)[4]) {
        const std::byte* weights = m.tile<std::byte>(c, tile);
        const Steps share(m.taps * steps, part, c.parts);
        for (int t = 0; t < m.taps; ++t) {
            const auto [source, stride] = x.source(c, t);
            const auto multiply = [&](const std::byte* step, int s) {
                std::uint32_t a[4];
                load_fragment<kStorage>(step, lane, a);
                const float* own = source + row * stride + pair;
                float v[4];
                for (int i = 0; i < 4; ++i) {
                    const int k = s * kStep + i / 2 * 8 + i % 2;
                    v[i] = row < x.rows && k + pair < c.inputs ? own[k] : 0.0f;
                }
                const std::uint32_t b[2] = {pack_inputs<kStorage>(v[0], v[1]), pack_inputs<kStorage>(v[2], v[3])};
                if (kStorage == Storage::kFloat16) {
                    multiply_float16(sums, a, b);
                } else {
                    multiply_bfloat16(sums, a, b);
                }
            };
            over_steps<kStageBytes, 4>(x, c, weights + t * steps * kStageBytes, share.of_tap(t, steps),
                                       source != nullptr, multiply);
        }
    };
    const auto keep = [&](int tile, float (&sums)[4]) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int output = tile * 16 + lane / 4 + i / 2 * 8;
            const int r = pair + i % 2;
            if (output >= c.outputs || r >= x.rows) continue;
            sums[i] = finish(x, c, m, output, r, sums[i]);
            if (copies == 1) x.keep(c, r, output, sums[i]);
        }
        if (copies == 1) return;
        // Few lanes hold a row; the four of an output share the writing.
#pragma unroll
        for (int i = 0; i < 2 * kMaxRows; ++i) {
            const int r = i / 2;
            if (r >= x.rows) break;
            const int output = tile * 16 + lane / 4 + i % 2 * 8;
            const float y = shuffle(sums[i % 2 * 2 + r % 2], lane / 4 * 4 + r / 2);
            if (output >= c.outputs) continue;
            for (int n = lane % 4; n < copies; n += 4) x.put_copy(c, x.row(c.out, r) + output, copies, n, y);
            if (lane % 4 == 0 && x.mirrors(c)) x.row(c.mirror, r)[output] = y;
        }
    };
    by_parts<4>(x, c, sum, keep);
}

// Asks the second cache level for the beginning of what this warp will read, while it waits for others.
FASTAR_DEVICE void fetch_ahead(const Context& x, const Command& c) {
    constexpr int kLine = 128;
    constexpr int kLinesPerLane = 4;
    if (c.op != Op::kMatrix || c.storage == Storage::kRows || c.resident >= 0 || c.streamed) return;
    const Crew block = x.block_crew();
    const int tile = block.warp / c.parts * x.blocks(c) + x.block(c);
    if (tile * outputs_of_tile(c.storage) >= c.outputs) return;
    const int bytes = c.tile_bytes / c.parts;
    const std::byte* from = x.weights<std::byte>(c.weight) + static_cast<std::int64_t>(tile) * c.tile_bytes +
                            (c.index < 0 ? 0 : x.index(c.index) * c.bank_bytes) + block.warp % c.parts * bytes;
    for (int i = 0; i < kLinesPerLane; ++i) {
        const int at = (i * kLanes + block.lane) * kLine;
        if (at < bytes) prefetch(from + at);
    }
}

FASTAR_DEVICE void run_matrix(const Context& x, const Command& c) {
    switch (c.storage) {
        case Storage::kRows:
            return multiply_rows(x, c);
        case Storage::kFloat32:
            if (x.rows == 1) return multiply_tiles<1>(x, c);
            return x.rows <= 4 ? multiply_tiles<4>(x, c) : multiply_tiles<8>(x, c);
        case Storage::kBfloat16:
            return multiply_fragments<Storage::kBfloat16>(x, c);
        case Storage::kFloat16:
            return multiply_fragments<Storage::kFloat16>(x, c);
        case Storage::kInt8:
            return multiply_fragments<Storage::kInt8>(x, c);
    }
}

}  // namespace fastar::cuda
