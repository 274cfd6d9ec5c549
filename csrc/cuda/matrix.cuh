// y = f(W x + b + add) in its forms. Every output of a row is summed in an order that follows from the matrix alone.
#pragma once

#include <cstdint>

#include "cuda/context.cuh"

namespace fastar::cuda {

// Inputs that one step of a tile takes.
constexpr int kStep = 16;

struct Outputs {
    int begin;
    int end;
};

struct MatrixOperands {
    const std::byte* weights;
    const float* bias;
    const float* scales;
    Outputs outputs;
    int inputs;  // of a tap, that count
    int taps;
    std::int64_t stride;

    FASTAR_DEVICE MatrixOperands(const Context& x, const Command& c)
        : weights(x.weights<std::byte>(c.weight)),
          bias(c.bias < 0 ? nullptr : x.weights<float>(c.bias)),
          scales(c.scales < 0 ? nullptr : x.weights<float>(c.scales)),
          outputs{0, c.outputs},
          inputs(c.inputs),
          taps(c.taps == 0 ? 1 : c.taps),
          stride(x.stride(c.source)) {
        if (c.spans >= 0) {
            const int i = x.index(c.index);
            const std::int32_t* spans = x.weights<std::int32_t>(c.spans);
            outputs = {spans[i], spans[i + 1]};
            if (c.reach >= 0) inputs = x.weights<std::int32_t>(c.reach)[i];
        } else if (c.index >= 0) {
            const std::int64_t bank = x.index(c.index);
            weights += bank * c.bank_bytes;
            if (bias) bias += bank * c.outputs;
            if (scales) scales += bank * c.outputs;
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
            const float* source = x.tap(c, t);
            if (source == nullptr) continue;
            source += r * m.stride;
            for (int k = crew.lane; k < m.inputs; k += kLanes) {
                sum += weights[t * c.inputs + k] * apply(c.input_function, source[k]);
            }
        }
        sum = warp_sum(sum);
        const float y = finish(x, c, m, output, r, sum);
        // Where `add` lies under `out`, every lane has read it before the first writes.
        warp_barrier();
        for (int i = crew.lane; i < copies; i += kLanes) *x.copy(x.row(c.out, r) + output, copies, i) = y;
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

// Float32: a warp for each 8 outputs, of which four lanes share one, each taking four of a step's inputs.
template <int kRows>
FASTAR_DEVICE void multiply_tiles(const Context& x, const Command& c) {
    const MatrixOperands m(x, c);
    const Crew crew = x.crew(c);
    // Loads under way at once: with several rows their own arithmetic hides the wait, and unrolled it takes ptxas long.
    constexpr int kAhead = kRows == 1 ? 4 : 1;
    const int quarter = crew.lane % 4;
    const int steps = (c.inputs + kStep - 1) / kStep;
    const int tiles = (c.outputs + 7) / 8;
    const int copies = x.copies(c, c.out);
    for (int tile = crew.warp; tile < tiles; tile += crew.warps) {
        const auto* weights = reinterpret_cast<const Float4*>(m.weights) +
                              static_cast<std::int64_t>(tile) * m.taps * steps * kLanes + crew.lane;
        float sums[kRows] = {};
        for (int t = 0; t < m.taps; ++t) {
            const float* source = x.tap(c, t);
            if (source == nullptr) continue;
            const bool aligned = reinterpret_cast<std::uintptr_t>(source) % 16 == 0 && m.stride % 4 == 0;
#pragma unroll kAhead
            for (int s = 0; s < steps; ++s) {
                const Float4 w = weights[(t * steps + s) * kLanes];
                const int k = s * kStep + 4 * quarter;
#pragma unroll
                for (int r = 0; r < kRows; ++r) {
                    // Rows that are not there repeat the last one.
                    const int row = r < x.rows ? r : x.rows - 1;
                    const Float4 v = load_inputs(source + row * m.stride + k, c.inputs - k, aligned);
                    for (int i = 0; i < 4; ++i) sums[r] += w.at[i] * v.at[i];
                }
            }
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            sums[r] += shuffle_xor(sums[r], 1);
            sums[r] += shuffle_xor(sums[r], 2);
        }
        const int output = tile * 8 + crew.lane / 4;
        if (copies == 1) {
            // One lane of the four, so that it alone reads an `add` that lies under `out`.
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
                if (r >= x.rows || quarter != r % 4 || output >= c.outputs) continue;
                x.row(c.out, r)[output] = finish(x, c, m, output, r, sums[r]);
            }
            continue;
        }
        // All four share the writing, after all have read.
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            if (r < x.rows && output < c.outputs) sums[r] = finish(x, c, m, output, r, sums[r]);
        }
        warp_barrier();
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            if (r >= x.rows || output >= c.outputs) continue;
            for (int i = quarter; i < copies; i += 4) *x.copy(x.row(c.out, r) + output, copies, i) = sums[r];
        }
    }
}

template <Storage kStorage>
FASTAR_DEVICE std::uint32_t pack_inputs(float low, float high) {
    return kStorage == Storage::kFloat16 ? pack_float16(low, high) : pack_bfloat16(low, high);
}

// A lane's share of a step's fragment of weights.
template <Storage kStorage>
FASTAR_DEVICE void load_fragment(const std::byte* weights, std::int64_t step, int lane, std::uint32_t (&a)[4]) {
    struct alignas(16) Words {
        std::uint32_t at[4];
    };
    struct alignas(8) Bytes {
        std::int8_t at[8];
    };
    if (kStorage == Storage::kInt8) {
        const Bytes b = reinterpret_cast<const Bytes*>(weights)[step * kLanes + lane];
        // Whole numbers up to 127 are exact in bfloat16.
        for (int i = 0; i < 4; ++i) a[i] = pack_bfloat16(b.at[2 * i], b.at[2 * i + 1]);
    } else {
        const Words w = reinterpret_cast<const Words*>(weights)[step * kLanes + lane];
        for (int i = 0; i < 4; ++i) a[i] = w.at[i];
    }
}

// Sixteen bits or eight: a warp for each 16 outputs, all rows at once in the matrix instruction. A row is a column of
// its right factor, so what the others hold does not touch it.
template <Storage kStorage>
FASTAR_DEVICE void multiply_fragments(const Context& x, const Command& c) {
    const MatrixOperands m(x, c);
    const Crew crew = x.crew(c);
    const int steps = (c.inputs + kStep - 1) / kStep;
    const int tiles = (c.outputs + 15) / 16;
    const int copies = x.copies(c, c.out);
    const int row = crew.lane / 4;
    const int pair = 2 * (crew.lane % 4);
    for (int tile = crew.warp; tile < tiles; tile += crew.warps) {
        float sums[4] = {};
        for (int t = 0; t < m.taps; ++t) {
            const float* source = x.tap(c, t);
            if (source == nullptr) continue;
            const float* own = source + row * m.stride + pair;
            const std::int64_t first = (static_cast<std::int64_t>(tile) * m.taps + t) * steps;
#pragma unroll 4
            for (int s = 0; s < steps; ++s) {
                std::uint32_t a[4];
                load_fragment<kStorage>(m.weights, first + s, crew.lane, a);
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
            }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int output = tile * 16 + crew.lane / 4 + i / 2 * 8;
            const int r = pair + i % 2;
            if (output >= c.outputs || r >= x.rows) continue;
            const float y = finish(x, c, m, output, r, sums[i]);
            for (int n = 0; n < copies; ++n) *x.copy(x.row(c.out, r) + output, copies, n) = y;
        }
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
