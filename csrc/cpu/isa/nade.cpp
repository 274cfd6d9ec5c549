#include "cpu/isa/nade.h"

#include "cpu/isa/vector_math.h"

namespace fastar::cpu::FASTAR_ISA {
namespace {

constexpr int kSliceVectors = kNadeSlice / kLanes;

template <NadeActivation kActivation>
Floats activate(Floats a) {
    if constexpr (kActivation == NadeActivation::kSigmoid) return sigmoid(a);
    if constexpr (kActivation == NadeActivation::kTanh) return tanh(a);
    // NaN stays NaN.
    if constexpr (kActivation == NadeActivation::kRelu) return max(splat(0.0f), a);
}

// act'(a) from h = act(a).
template <NadeActivation kActivation>
Floats slope(Floats h) {
    if constexpr (kActivation == NadeActivation::kSigmoid) return fnma(h, h, h);
    if constexpr (kActivation == NadeActivation::kTanh) return fnma(h, h, splat(1.0f));
    if constexpr (kActivation == NadeActivation::kRelu) return h > splat(0.0f) ? splat(1.0f) : splat(0.0f);
}

std::int64_t position(const NadeModel& m, std::int64_t step) {
    return m.order ? m.order[step] : step;
}

// a += x w, h = act(a).
template <NadeActivation kActivation>
void advance(float* a, float* h, const float* w, float x, std::int64_t count) {
    const Floats factor = splat(x);
    for (std::int64_t j = 0; j < count; j += kLanes) {
        const Floats next = fma(factor, load(w + j), load(a + j));
        store(a + j, next);
        store(h + j, activate<kActivation>(next));
    }
}

// sums[r][k] = h_r . v_k for a tile of rows and parameters; both strides in floats. One sum per lane and output from
// the first hidden unit to the last, in every tile: a row's result does not depend on its neighbours.
template <int kRows, int kParams>
void dot_tile(const float* h, std::int64_t h_stride, const float* v, std::int64_t v_stride, std::int64_t hidden,
              float (&sums)[kRows][kParams]) {
    Floats total[kRows][kParams] = {};
    std::int64_t j = 0;
    const auto step = [&](auto load_v) {
        Floats row[kParams];
        for (int k = 0; k < kParams; ++k) row[k] = load_v(v + k * v_stride + j);
        for (int r = 0; r < kRows; ++r) {
            const Floats unit = load(h + r * h_stride + j);
            for (int k = 0; k < kParams; ++k) total[r][k] = fma(unit, row[k], total[r][k]);
        }
    };
    for (; j + kLanes <= hidden; j += kLanes) step([](const float* p) { return load(p); });
    if (j < hidden) step([&](const float* p) { return load_first(p, hidden - j); });
    for (int r = 0; r < kRows; ++r) {
        for (int k = 0; k < kParams; ++k) sums[r][k] = sum(total[r][k]);
    }
}

// out_r[k] = b_k + v_k . h_r for kRows rows and position d.
template <int kRows>
void read_out(const NadeForward& f, std::int64_t d, const float* h, float* out, std::int64_t out_stride) {
    const NadeModel& m = f.model;
    // 8 x 3 sums fill the registers of AVX-512; 16 registers hold no more than 8 x 1.
    constexpr int kWide = kLanes == 16 ? 3 : 1;
    const float* v = m.readout + d * m.params * m.hidden;
    const float* bias = f.bias + d * m.params;
    std::int64_t k = 0;
    for (; k + kWide <= m.params; k += kWide) {
        float sums[kRows][kWide];
        dot_tile<kRows, kWide>(h, m.stride, v + k * m.hidden, m.hidden, m.hidden, sums);
        for (int r = 0; r < kRows; ++r) {
            for (int i = 0; i < kWide; ++i) out[r * out_stride + k + i] = sums[r][i] + bias[k + i];
        }
    }
    for (; k < m.params; ++k) {
        float sums[kRows][1];
        dot_tile<kRows, 1>(h, m.stride, v + k * m.hidden, m.hidden, m.hidden, sums);
        for (int r = 0; r < kRows; ++r) out[r * out_stride + k] = sums[r][0] + bias[k];
    }
}

// Rows [0, rows) of x and out through all positions.
template <NadeActivation kActivation>
void walk(const NadeForward& f, std::int64_t rows, const float* x, float* out, float* scratch) {
    const NadeModel& m = f.model;
    float* const a = scratch;
    float* const h = scratch + rows * m.stride;
    for (std::int64_t j = 0; j < m.stride; j += kLanes) {
        const Floats start = load(m.hidden_bias + j);
        const Floats unit = activate<kActivation>(start);
        for (std::int64_t r = 0; r < rows; ++r) {
            store(a + r * m.stride + j, start);
            store(h + r * m.stride + j, unit);
        }
    }
    const std::int64_t out_stride = m.dim * m.params;
    for (std::int64_t step = 0; step < m.dim; ++step) {
        const std::int64_t d = position(m, step);
        float* const out_d = out + d * m.params;
        std::int64_t r = 0;
        for (; r + kNadeRows <= rows; r += kNadeRows) {
            read_out<kNadeRows>(f, d, h + r * m.stride, out_d + r * out_stride, out_stride);
        }
        for (; r < rows; ++r) read_out<1>(f, d, h + r * m.stride, out_d + r * out_stride, out_stride);
        for (r = 0; r < rows; ++r) {
            const float value = x[r * m.dim + d];
            // Where x is 0 neither a nor h changes, which spares half or more of the activations of binary data.
            if (value != 0.0f)
                advance<kActivation>(a + r * m.stride, h + r * m.stride, m.weight + d * m.stride, value, m.hidden);
        }
    }
}

// sum over d of x l - softplus(l), the log-probability of x under the logits l; false where an x is outside [0, 1].
bool bernoulli_log_prob(const float* logits, const float* x, std::int64_t dim, float& log_prob) {
    const Floats zero = splat(0.0f);
    Floats total = zero;
    Ints valid = zero == zero;
    std::int64_t d = 0;
    const auto term = [&](Floats l, Floats value) {
        valid = valid & (value >= zero) & (value <= splat(1.0f));
        return fma(value, l, zero - softplus(l));
    };
    for (; d + kLanes <= dim; d += kLanes) total = total + term(load(logits + d), load(x + d));
    float last[kLanes] = {};
    if (d < dim) store_first(last, term(load_first(logits + d, dim - d), load_first(x + d, dim - d)), dim - d);
    log_prob = sum(total + load(last));
    // As many ones as lanes, where all hold.
    return sum(valid ? splat(1.0f) : zero) == static_cast<float>(kLanes);
}

template <NadeActivation kActivation>
bool forward(const NadeForward& f, std::int64_t begin, std::int64_t end, float* scratch) {
    const NadeModel& m = f.model;
    // With one parameter, the state of a few rows walks through all positions within the first cache level. With many,
    // it is the readout that is worth being read once for more rows.
    const std::int64_t block = m.params == 1 ? kNadeRows : kNadeGroup;
    float* const logits = scratch + 2 * block * m.stride;
    bool valid = true;
    for (std::int64_t first = begin; first < end; first += block) {
        const std::int64_t rows = first + block < end ? block : end - first;
        const float* x = f.x + first * m.dim;
        float* const out = f.out ? f.out + first * m.dim * m.params : logits;
        walk<kActivation>(f, rows, x, out, scratch);
        if (!f.log_prob) continue;
        for (std::int64_t r = 0; r < rows; ++r) {
            valid &= bernoulli_log_prob(out + r * m.dim, x + r * m.dim, m.dim, f.log_prob[first + r]);
        }
    }
    return valid;
}

// With s_i the gradient of a_{i+1}, that is what all later positions say: dW_i += x_i s_i, then a_i = a_{i+1} - W_i
// x_i, and s_{i-1} = s_i + act'(a_i) sum_k g_ik V_ik. All of it holds per hidden unit, so a slice of them sums over the
// whole batch by itself, in a fixed order, with the state in the first cache level.

struct Slice {
    float* a;
    float* h;
    float* s;
    float* dh;
    std::int64_t count;  // hidden units that exist, of kNadeSlice
};

// Vector v of the slice, at `p` in memory that holds only the hidden units that exist.
Floats load_unit(const Slice& slice, const float* p, int v) {
    const std::int64_t left = slice.count - v * kLanes;
    return left > 0 ? load_upto(p + v * kLanes, left) : splat(0.0f);
}

void add_unit(const Slice& slice, float* p, int v, Floats value, bool first) {
    const std::int64_t left = slice.count - v * kLanes;
    if (left <= 0) return;
    if (!first) value = value + load_upto(p + v * kLanes, left);
    store_upto(p + v * kLanes, value, left);
}

// dW += x s and a -= x w, h = act(a), for the rows whose x is not 0.
template <NadeActivation kActivation>
void step_back(const Slice& slice, const float* w, const float* x, const std::uint8_t* active, int count, float* grad_w,
               bool first) {
    for (int v = 0; v < kSliceVectors; ++v) {
        const Floats weight = load(w + v * kLanes);
        Floats total = splat(0.0f);
        for (int i = 0; i < count; ++i) {
            const std::int64_t at = active[i] * kNadeSlice + v * kLanes;
            const Floats value = splat(x[active[i]]);
            total = fma(value, load(slice.s + at), total);
            const Floats before = fnma(value, weight, load(slice.a + at));
            store(slice.a + at, before);
            store(slice.h + at, activate<kActivation>(before));
        }
        store(grad_w + v * kLanes, first ? total : load(grad_w + v * kLanes) + total);
    }
}

// One parameter: dV += g h, s += g V act'.
template <NadeActivation kActivation>
void gather_one(const Slice& slice, std::int64_t rows, const float* v, const float* g, float* grad_v, bool first) {
    for (int i = 0; i < kSliceVectors; ++i) {
        const Floats readout = load_unit(slice, v, i);
        Floats total = splat(0.0f);
        for (std::int64_t r = 0; r < rows; ++r) {
            const std::int64_t at = r * kNadeSlice + i * kLanes;
            const Floats grad = splat(g[r]);
            const Floats h = load(slice.h + at);
            total = fma(grad, h, total);
            store(slice.s + at, fma(grad * readout, slope<kActivation>(h), load(slice.s + at)));
        }
        add_unit(slice, grad_v, i, total, first);
    }
}

// dh_r = sum over k of g_rk V_k for kRows rows.
template <int kRows>
void spread_tile(const Slice& slice, std::int64_t r, std::int64_t params, std::int64_t hidden, const float* v,
                 const float* g) {
    for (int i = 0; i < kSliceVectors; ++i) {
        Floats total[kRows] = {};
        for (std::int64_t k = 0; k < params; ++k) {
            const Floats readout = load_unit(slice, v + k * hidden, i);
            for (int j = 0; j < kRows; ++j) total[j] = fma(splat(g[(r + j) * params + k]), readout, total[j]);
        }
        for (int j = 0; j < kRows; ++j) store(slice.dh + (r + j) * kNadeSlice + i * kLanes, total[j]);
    }
}

// dV_k += sum over r of g_rk h_r for kParams parameters.
template <int kParams>
void collect_tile(const Slice& slice, std::int64_t rows, std::int64_t k, std::int64_t params, std::int64_t hidden,
                  const float* g, float* grad_v, bool first) {
    for (int i = 0; i < kSliceVectors; ++i) {
        Floats total[kParams] = {};
        for (std::int64_t r = 0; r < rows; ++r) {
            const Floats h = load(slice.h + r * kNadeSlice + i * kLanes);
            for (int j = 0; j < kParams; ++j) total[j] = fma(splat(g[r * params + k + j]), h, total[j]);
        }
        for (int j = 0; j < kParams; ++j) add_unit(slice, grad_v + (k + j) * hidden, i, total[j], first);
    }
}

// Any number of parameters: two small matrix products, then s += dh act'.
template <NadeActivation kActivation>
void gather_many(const Slice& slice, std::int64_t rows, std::int64_t params, std::int64_t hidden, const float* v,
                 const float* g, float* grad_v, bool first) {
    constexpr int kTile = 8;
    std::int64_t r = 0;
    for (; r + kTile <= rows; r += kTile) spread_tile<kTile>(slice, r, params, hidden, v, g);
    for (; r < rows; ++r) spread_tile<1>(slice, r, params, hidden, v, g);
    std::int64_t k = 0;
    for (; k + kTile <= params; k += kTile) collect_tile<kTile>(slice, rows, k, params, hidden, g, grad_v, first);
    for (; k < params; ++k) collect_tile<1>(slice, rows, k, params, hidden, g, grad_v, first);
    for (std::int64_t at = 0; at < rows * kNadeSlice; at += kLanes) {
        store(slice.s + at, fma(load(slice.dh + at), slope<kActivation>(load(slice.h + at)), load(slice.s + at)));
    }
}

template <NadeActivation kActivation>
void backward(const NadeBackward& b, std::int64_t begin, std::int64_t end, float* scratch) {
    const NadeModel& m = b.model;
    constexpr std::int64_t kState = kNadeGroup * kNadeSlice;
    const std::int64_t groups = (b.batch + kNadeGroup - 1) / kNadeGroup;
    for (std::int64_t index = begin; index < end; ++index) {
        const std::int64_t unit = index * kNadeSlice;
        const std::int64_t left = m.hidden - unit;
        const Slice slice{scratch, scratch + kState, scratch + 2 * kState, scratch + 3 * kState,
                          left < kNadeSlice ? left : kNadeSlice};
        for (int v = 0; v < kSliceVectors; ++v) store(b.grad_hidden_bias + unit + v * kLanes, splat(0.0f));
        for (std::int64_t group = 0; group < groups; ++group) {
            const std::int64_t row = group * kNadeGroup;
            const std::int64_t rows = b.batch - row < kNadeGroup ? b.batch - row : kNadeGroup;
            const auto active = [&](std::int64_t d) { return b.active + (group * m.dim + d) * kNadeGroup; };
            const auto active_count = [&](std::int64_t d) {
                return static_cast<int>(b.active_count[group * m.dim + d]);
            };

            // The state behind the last position, by the additions of the forward: the same bits.
            for (std::int64_t at = 0; at < rows * kNadeSlice; at += kLanes) {
                store(slice.a + at, load(m.hidden_bias + unit + at % kNadeSlice));
                store(slice.s + at, splat(0.0f));
            }
            for (std::int64_t step = 0; step < m.dim; ++step) {
                const std::int64_t d = position(m, step);
                for (int v = 0; v < kSliceVectors; ++v) {
                    const Floats weight = load(m.weight + d * m.stride + unit + v * kLanes);
                    const std::uint8_t* list = active(d);
                    for (int i = 0; i < active_count(d); ++i) {
                        float* const a = slice.a + list[i] * kNadeSlice + v * kLanes;
                        store(a, fma(splat(b.x[d * b.batch + row + list[i]]), weight, load(a)));
                    }
                }
            }
            for (std::int64_t at = 0; at < rows * kNadeSlice; at += kLanes) {
                store(slice.h + at, activate<kActivation>(load(slice.a + at)));
            }

            for (std::int64_t step = m.dim - 1; step >= 0; --step) {
                const std::int64_t d = position(m, step);
                const std::int64_t at = d * m.stride + unit;
                if (step > 0) {
                    // The next position's lines lie a row of W and of V away, too far for the prefetcher.
                    const std::int64_t next = position(m, step - 1);
                    __builtin_prefetch(m.weight + next * m.stride + unit);
                    __builtin_prefetch(b.grad_weight + next * m.stride + unit, 1);
                    __builtin_prefetch(m.readout + next * m.params * m.hidden + unit);
                    __builtin_prefetch(b.grad_readout + next * m.params * m.hidden + unit, 1);
                }
                if (b.grad_x) {
                    float* const out = b.grad_x + (index * m.dim + d) * b.batch + row;
                    for (std::int64_t r = 0; r < rows; ++r) {
                        Floats total = splat(0.0f);
                        for (int v = 0; v < kSliceVectors; ++v) {
                            total = fma(load(m.weight + at + v * kLanes), load(slice.s + r * kNadeSlice + v * kLanes),
                                        total);
                        }
                        out[r] = sum(total);
                    }
                }
                const bool first = group == 0;
                step_back<kActivation>(slice, m.weight + at, b.x + d * b.batch + row, active(d), active_count(d),
                                       b.grad_weight + at, first);
                const float* v = m.readout + d * m.params * m.hidden + unit;
                const float* g = b.grad + (d * b.batch + row) * m.params;
                float* const grad_v = b.grad_readout + d * m.params * m.hidden + unit;
                if (m.params == 1) {
                    gather_one<kActivation>(slice, rows, v, g, grad_v, first);
                } else {
                    gather_many<kActivation>(slice, rows, m.params, m.hidden, v, g, grad_v, first);
                }
            }
            for (int v = 0; v < kSliceVectors; ++v) {
                float* const out = b.grad_hidden_bias + unit + v * kLanes;
                Floats total = splat(0.0f);
                for (std::int64_t r = 0; r < rows; ++r) total = total + load(slice.s + r * kNadeSlice + v * kLanes);
                store(out, load(out) + total);
            }
        }
    }
}

}  // namespace

bool nade_forward(const NadeForward& f, std::int64_t begin, std::int64_t end, float* scratch) {
    switch (f.model.activation) {
        case NadeActivation::kSigmoid:
            return forward<NadeActivation::kSigmoid>(f, begin, end, scratch);
        case NadeActivation::kRelu:
            return forward<NadeActivation::kRelu>(f, begin, end, scratch);
        case NadeActivation::kTanh:
            return forward<NadeActivation::kTanh>(f, begin, end, scratch);
    }
    return false;
}

void nade_logit_gradient(const float* logits, const float* x, float scale, float* out, std::int64_t count) {
    for (std::int64_t i = 0; i < count; i += kLanes) {
        const std::int64_t left = count - i;
        const Floats surprise = load_upto(x + i, left) - sigmoid(load_upto(logits + i, left));
        store_upto(out + i, splat(scale) * surprise, left);
    }
}

void nade_backward(const NadeBackward& b, std::int64_t begin, std::int64_t end, float* scratch) {
    switch (b.model.activation) {
        case NadeActivation::kSigmoid:
            return backward<NadeActivation::kSigmoid>(b, begin, end, scratch);
        case NadeActivation::kRelu:
            return backward<NadeActivation::kRelu>(b, begin, end, scratch);
        case NadeActivation::kTanh:
            return backward<NadeActivation::kTanh>(b, begin, end, scratch);
    }
}

}  // namespace fastar::cpu::FASTAR_ISA
