// Convolutions whose groups have one input: bound by memory, so one pass over what is read and written, with a row's
// delayed copies taken from a window of it in the first cache levels.
#include <algorithm>
#include <vector>

#include "cpu/isa/delayed.h"
#include "cpu/isa/gates.h"
#include "cpu/isa/vector_elements.h"

namespace fastar::cpu::FASTAR_ISA {
namespace {

// Vectors of times that are summed side by side, to have more than one chain of additions under way.
constexpr int kUnroll = 4;
constexpr std::int64_t kStep = kUnroll * kLanes;

template <typename T>
void widen_row(const T* data, std::int64_t count, float* out) {
    for (std::int64_t t = 0; t < count; t += kLanes) store_upto(out + t, load_elements(data + t, count - t), count - t);
}

// A channel from its history to its end as floats, with `reach` zeros or history in front and kStep zeros behind.
template <typename T>
void load_channel(const Source& s, std::int64_t b, std::int64_t channel, std::int64_t reach, float* out) {
    if (s.history) {
        const T* history =
            static_cast<const T*>(s.history) + b * s.history_batch_stride + channel * s.history_channel_stride;
        widen_row(history, reach, out);
    } else {
        std::fill_n(out, reach, 0.0f);
    }
    widen_row(static_cast<const T*>(s.data) + b * s.batch_stride + channel * s.channel_stride, s.length, out + reach);
    std::fill_n(out + reach + s.length, kStep, 0.0f);
}

// Where a tap sees across the border of two sequences nothing arrives.
inline Floats seen(Floats x, const std::int32_t* index, const std::int32_t* other) {
    Ints a, b;
    __builtin_memcpy(&a, index, sizeof a);
    __builtin_memcpy(&b, other, sizeof b);
    return a == b ? x : splat(0.0f);
}

// sums[v] += w[k] x[t + v + offset k step], over the taps.
template <bool kIndexed>
void add_taps(const float* x, const std::int32_t* index, const float* w, std::int64_t taps, std::int64_t begin,
              std::int64_t step, Floats (&sums)[kUnroll]) {
    for (std::int64_t k = 0; k < taps; ++k) {
        const Floats factor = splat(w[k]);
        const std::int64_t at = begin + k * step;
        for (int v = 0; v < kUnroll; ++v) {
            Floats value = load(x + at + v * kLanes);
            if constexpr (kIndexed) value = seen(value, index + v * kLanes, index + at + v * kLanes);
            sums[v] = fma(factor, value, sums[v]);
        }
    }
}

// The numbers of a row's sequences, with `reach` and kStep more on either side that are never compared with effect.
struct IndexRow {
    std::vector<std::int32_t> values;
    const std::int32_t* start = nullptr;

    IndexRow(const Source& s, std::int64_t reach) {
        if (s.index) values.resize(static_cast<std::size_t>(2 * reach + s.length + kStep));
    }
    void load(const Source& s, std::int64_t b, std::int64_t reach) {
        if (!s.index) return;
        std::copy_n(s.index + b * s.length, s.length, values.data() + reach);
        start = values.data() + reach;
    }
};

template <typename T, bool kIndexed, Gate kGate>
void sum_row(const DepthwiseSum& a, const float* x, const std::int32_t* index, std::int64_t row, std::int64_t output) {
    const std::int64_t length = a.source.length;
    const float* w = a.weight + output * a.taps;
    const Floats shift = splat(a.bias ? a.bias[output] : 0.0f);
    T* out = static_cast<T*>(a.out) + row * length;
    T* kept = a.kept ? static_cast<T*>(a.kept) + row * length : nullptr;
    for (std::int64_t t = 0; t < length; t += kStep) {
        Floats z[kUnroll];
        for (auto& one : z) one = shift;
        add_taps<kIndexed>(x + t, index + (kIndexed ? t : 0), w, a.taps, -(a.taps - 1) * a.dilation, a.dilation, z);
        for (int v = 0; v < kUnroll && t + v * kLanes < length; ++v) {
            const std::int64_t at = t + v * kLanes;
            if (kept) store_elements(kept + at, z[v], length - at);
            store_elements(out + at, activate<kGate>(z[v]), length - at);
        }
    }
}

template <typename T, bool kIndexed, Gate kGate>
void sum_items(const DepthwiseSum& a, std::int64_t begin, std::int64_t end) {
    const std::int64_t reach = (a.taps - 1) * a.dilation;
    std::vector<float> x(static_cast<std::size_t>(reach + a.source.length + kStep));
    IndexRow index(a.source, reach);
    for (std::int64_t item = begin; item < end; ++item) {
        const std::int64_t b = item / a.channels;
        const std::int64_t channel = item % a.channels;
        load_channel<T>(a.source, b, channel, reach, x.data());
        index.load(a.source, b, reach);
        for (std::int64_t j = 0; j < a.multiplier; ++j) {
            sum_row<T, kIndexed, kGate>(a, x.data() + reach, index.start, item * a.multiplier + j,
                                        channel * a.multiplier + j);
        }
    }
}

// g = grad act'(z) of one output into a row of floats, its sum, and its products with the delayed channel.
template <typename T, bool kIndexed, Gate kGate>
void gradient_row(const DepthwiseSum& a, const float* x, const std::int32_t* index, const T* grad, std::int64_t output,
                  float* g, float* weight, float* bias) {
    const std::int64_t length = a.source.length;
    const std::int64_t reach = (a.taps - 1) * a.dilation;
    Floats total = splat(0.0f);
    for (std::int64_t t = 0; t < length; t += kStep) {
        Floats z[kUnroll];
        if constexpr (kGate != Gate::kNone) {
            for (auto& one : z) one = splat(a.bias ? a.bias[output] : 0.0f);
            add_taps<kIndexed>(x + t, index + (kIndexed ? t : 0), a.weight + output * a.taps, a.taps, -reach,
                               a.dilation, z);
        }
        for (int v = 0; v < kUnroll; ++v) {
            const std::int64_t at = t + v * kLanes;
            if (at >= length) break;
            Floats value = load_elements(grad + at, length - at);
            if constexpr (kGate != Gate::kNone) value = value * slope<kGate>(z[v]);
            store_upto(g + at, value, length - at);
            total = total + load_elements(g + at, length - at);
        }
    }
    if (bias) bias[output] += sum(total);
    if (!weight) return;
    for (std::int64_t k = 0; k < a.taps; ++k) {
        const std::int64_t offset = k * a.dilation - reach;
        Floats products[kUnroll] = {};
        for (std::int64_t t = 0; t < length; t += kStep) {
            for (int v = 0; v < kUnroll; ++v) {
                const std::int64_t at = t + v * kLanes;
                // Beyond the row g is zero.
                Floats value = load(x + at + offset);
                if constexpr (kIndexed) value = seen(value, index + at, index + at + offset);
                products[v] = fma(load(g + at), value, products[v]);
            }
        }
        weight[output * a.taps + k] += sum((products[0] + products[1]) + (products[2] + products[3]));
    }
}

template <typename T, bool kIndexed, Gate kGate>
void gradient_items(const DepthwiseGradients& gradients, std::int64_t begin, std::int64_t end) {
    const DepthwiseSum& a = gradients.forward;
    const std::int64_t length = a.source.length;
    const std::int64_t reach = (a.taps - 1) * a.dilation;
    const std::int64_t row = reach + length + reach + kStep;
    std::vector<float> x(static_cast<std::size_t>(reach + length + kStep));
    // Of each output that shares the channel: zeros, g, zeros.
    std::vector<float> g(static_cast<std::size_t>(a.multiplier * row), 0.0f);
    std::vector<float> flipped(static_cast<std::size_t>(a.multiplier * a.taps));
    IndexRow index(a.source, reach);
    for (std::int64_t channel = begin; channel < end; ++channel) {
        const std::int64_t first = channel * a.multiplier;
        if (gradients.weight) std::fill_n(gradients.weight + first * a.taps, a.multiplier * a.taps, 0.0f);
        if (gradients.bias) std::fill_n(gradients.bias + first, a.multiplier, 0.0f);
        for (std::int64_t j = 0; j < a.multiplier; ++j) {
            std::reverse_copy(a.weight + (first + j) * a.taps, a.weight + (first + j + 1) * a.taps,
                              flipped.begin() + j * a.taps);
        }
        for (std::int64_t b = 0; b < a.batch; ++b) {
            load_channel<T>(a.source, b, channel, reach, x.data());
            index.load(a.source, b, reach);
            for (std::int64_t j = 0; j < a.multiplier; ++j) {
                const T* grad = static_cast<const T*>(gradients.grad) + b * gradients.grad_batch +
                                (first + j) * gradients.grad_channel;
                gradient_row<T, kIndexed, kGate>(a, x.data() + reach, index.start, grad, first + j,
                                                 g.data() + j * row + reach, gradients.weight, gradients.bias);
            }
            // The gradient at time t is the sum over taps of g at t and later.
            const auto back = [&](std::int64_t from, std::int64_t count, T* out) {
                for (std::int64_t t = from; t < from + count; t += kStep) {
                    Floats sums[kUnroll] = {};
                    for (std::int64_t j = 0; j < a.multiplier; ++j) {
                        add_taps<kIndexed>(g.data() + j * row + reach + t, index.start + (kIndexed ? t : 0),
                                           flipped.data() + j * a.taps, a.taps, 0, a.dilation, sums);
                    }
                    for (int v = 0; v < kUnroll && t + v * kLanes < from + count; ++v) {
                        const std::int64_t at = t + v * kLanes;
                        store_elements(out + at - from, sums[v], from + count - at);
                    }
                }
            };
            const std::int64_t place = b * a.channels + channel;
            if (gradients.source) back(0, length, static_cast<T*>(gradients.source) + place * length);
            if (gradients.history) back(-reach, reach, static_cast<T*>(gradients.history) + place * reach);
        }
    }
}

// body.operator()<T, kIndexed, kGate>() for what the arguments say.
template <typename Body>
void specialised(const DepthwiseSum& a, Body body) {
    by_gate(a.activation, [&](auto gate) {
        constexpr Gate kGate = decltype(gate)::value;
        const auto indexed = [&]<typename T>() {
            if (a.source.index) {
                body.template operator()<T, true, kGate>();
            } else {
                body.template operator()<T, false, kGate>();
            }
        };
        switch (a.element) {
            case Element::float32:
                return indexed.template operator()<float>();
            case Element::bfloat16:
                return indexed.template operator()<Bfloat16>();
            case Element::float16:
                return indexed.template operator()<Float16>();
        }
    });
}

}  // namespace

void depthwise_sum(const DepthwiseSum& a, std::int64_t begin, std::int64_t end) {
    specialised(a, [&]<typename T, bool kIndexed, Gate kGate>() { sum_items<T, kIndexed, kGate>(a, begin, end); });
}

void depthwise_gradients(const DepthwiseGradients& a, std::int64_t begin, std::int64_t end) {
    specialised(a.forward,
                [&]<typename T, bool kIndexed, Gate kGate>() { gradient_items<T, kIndexed, kGate>(a, begin, end); });
}

}  // namespace fastar::cpu::FASTAR_ISA
