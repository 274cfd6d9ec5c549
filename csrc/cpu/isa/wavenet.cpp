// A window of kWidth times goes through all of a block before the next: z, h and both products' sums stay in the first
// two cache levels, and the weights, which each window reads anew, in the second or the third.
#include "cpu/isa/wavenet.h"

#include <array>
#include <memory>

#include "cpu/isa/delayed_tile.h"
#include "cpu/isa/vector_math.h"

namespace fastar::cpu::FASTAR_ISA {
namespace {

// What one kind of pass multiplies by, in the order in which it is packed: the convolution, then in the forward the
// residual's and the skip's matrix, in the backward their transposes.
template <typename T>
std::array<Matrix<T>, 3> matrices_of(const WavenetGates& a, bool backward) {
    const auto matrix = [](const WavenetWeight& w, std::int64_t rows, std::int64_t inputs, std::int64_t taps) {
        return Matrix<T>{static_cast<const T*>(w.data), w.row, w.input, w.tap, rows, inputs, taps};
    };
    const auto transposed = [](const WavenetWeight& w, std::int64_t rows, std::int64_t inputs) {
        return Matrix<T>{static_cast<const T*>(w.data), w.input, w.row, w.tap, inputs, rows, 1};
    };
    const Matrix<T> conv = matrix(a.weight, 2 * a.gate, a.residual, a.taps);
    if (backward) {
        return {conv, transposed(a.residual_weight, a.residual, a.gate), transposed(a.skip_weight, a.skip, a.gate)};
    }
    return {conv, matrix(a.residual_weight, a.residual, a.gate, 1), matrix(a.skip_weight, a.skip, a.gate, 1)};
}

// Sums of a matrix times the rows that pack(begin, end) gives, a chunk at a time; calls done(first, end) as soon as
// those rows are complete.
template <typename T, typename Pack, typename Done>
void multiply_panels(const Matrix<T>& matrix, const Word<T>* packed, std::int64_t vectors, float* sums, Pack pack,
                     Done done) {
    const std::int64_t depth = matrix.depth();
    for (std::int64_t d = 0; d < depth; d += kChunk) {
        const std::int64_t rows = std::min(kChunk, depth - d);
        multiply<T>(packed + d * kTileRows, depth * kTileRows, pack(d, d + rows), matrix.rows, rows, vectors, d == 0,
                    sums, [&](std::int64_t first, std::int64_t end) {
                        if (d + rows == depth) done(first, end);
                    });
    }
}

constexpr auto kNothing = [](std::int64_t, std::int64_t) {};

// What the gates of one window need.
template <typename T>
class Gates {
  public:
    Gates(const WavenetGates& a, bool backward, const void* packed)
        : a_(a),
          matrices_(matrices_of<T>(a, backward)),
          z_(size(tiles_of(2 * a.gate) * kTileRows * kWidth)),
          windows_(size(a.taps)) {
        packed_[0] = static_cast<const Word<T>*>(packed);
        packed_[1] = packed_[0] + matrices_[0].words();
        packed_[2] = packed_[1] + matrices_[1].words();
    }

    static std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

    // Goes to an item's window and computes its z, without bias and conditioning.
    void start(std::int64_t item) {
        const std::int64_t per_row = (a_.source.length + kWidth - 1) / kWidth;
        b = item / per_row;
        at = item % per_row * kWidth;
        count = std::min<std::int64_t>(kWidth, a_.source.length - at);
        vectors = (count + kLanes - 1) / kLanes;
        for (std::int64_t k = 0; k < a_.taps; ++k) {
            windows_[size(k)] = window_of(a_.source, b, at, (k + 1 - a_.taps) * a_.dilation, count);
        }
        one_frame_ = at / a_.hop == (at + count - 1) / a_.hop;
        for (std::int64_t t = 0; t < kWidth; ++t) frames_[t] = std::min((at + t) / a_.hop, a_.frames - 1);
        const auto pack = [&](std::int64_t begin, std::int64_t end) {
            pack_panel<T>(a_.source, windows_.data(), b, 0, a_.residual, begin, end, panel);
            return panel;
        };
        multiply_panels<T>(matrices_[0], packed_[0], vectors, z_.data(), pack, kNothing);
    }

    // z of one row at the times from t on, of the window.
    Floats z(std::int64_t row, std::int64_t t) const {
        Floats sum = load(z_.data() + row * kWidth + t);
        if (a_.bias) sum = sum + splat(a_.bias[row]);
        if (!a_.conditioning) return sum;
        const T* frames = static_cast<const T*>(a_.conditioning) + (b * 2 * a_.gate + row) * a_.frames;
        if (one_frame_) return sum + splat(widen(frames[frames_[0]]));
        if (a_.hop == 1) return sum + load_elements(frames + at + t, count - t);
        float near[kLanes];
        for (int i = 0; i < kLanes; ++i) near[i] = widen(frames[frames_[t + i]]);
        return sum + load(near);
    }

    // h as the rows of a panel: rounded, in pairs, where words are pairs of bfloat16.
    void open(Word<T>* rows) const {
        const auto h = [this](std::int64_t row, std::int64_t t) {
            return tanh(z(row, t)) * sigmoid(z(a_.gate + row, t));
        };
        for (std::int64_t w = 0; w < words_of<T>(a_.gate); ++w, rows += kWidth) {
            if constexpr (kPairs<T>) {
                const bool paired = 2 * w + 1 < a_.gate;
                Bfloat16 near[2][kWidth];
                for (std::int64_t t = 0; t < count; t += kLanes) {
                    store(near[0] + t, h(2 * w, t));
                    if (paired) store(near[1] + t, h(2 * w + 1, t));
                }
                pack_row<T>(near[0], paired ? near[1] : nullptr, rows);
            } else {
                for (std::int64_t t = 0; t < count; t += kLanes) store(rows + t, h(w, t));
            }
        }
    }

    const Matrix<T>& matrix(int which) const { return matrices_[size(which)]; }
    const Word<T>* packed(int which) const { return packed_[which]; }

    std::int64_t b = 0;
    std::int64_t at = 0;
    std::int64_t count = 0;
    std::int64_t vectors = 0;
    alignas(64) Word<T> panel[kChunk * kWidth];

  private:
    const WavenetGates& a_;
    std::array<Matrix<T>, 3> matrices_;
    const Word<T>* packed_[3];
    std::vector<float> z_;
    std::vector<Window> windows_;
    bool one_frame_ = false;
    std::int64_t frames_[kWidth];
};

template <typename T>
void forward(const WavenetForward& f, const void* packed, std::int64_t begin, std::int64_t end) {
    const WavenetGates& a = f.gates;
    const auto size = Gates<T>::size;
    const auto gates = std::make_unique<Gates<T>>(a, false, packed);
    std::vector<Word<T>> h(size(words_of<T>(a.gate) * kWidth));
    std::vector<float> sums(size(tiles_of(std::max(a.residual, a.skip)) * kTileRows * kWidth));
    for (std::int64_t item = begin; item < end; ++item) {
        gates->start(item);
        gates->open(h.data());
        // out = (sum + bias + before) scale + after
        const auto mix = [&](int which, const float* bias, const T* before, std::int64_t before_stride, float scale,
                             const T* after, std::int64_t after_stride, T* out) {
            // What is added to the next rows comes from memory while they are multiplied, and so do the lines that they
            // are written to.
            const auto fetch = [&](std::int64_t first) {
                const T* rows = after ? after : before;
                const std::int64_t stride = after ? after_stride : before_stride;
                const std::int64_t end = std::min(first + kTileRows, gates->matrix(which).rows);
                for (std::int64_t row = first; row < end; ++row) {
                    for (std::int64_t t = 0; t < gates->count; t += static_cast<std::int64_t>(64 / sizeof(T))) {
                        if (rows) __builtin_prefetch(rows + row * stride + t);
                        __builtin_prefetch(out + row * a.source.length + t, 1);
                    }
                }
            };
            fetch(0);
            const auto done = [&](std::int64_t first, std::int64_t last) {
                fetch(last);
                for (std::int64_t row = first; row < last; ++row) {
                    const Floats shift = splat(bias ? bias[row] : 0.0f);
                    for (std::int64_t t = 0; t < gates->count; t += kLanes) {
                        const std::int64_t left = gates->count - t;
                        Floats y = load(sums.data() + row * kWidth + t) + shift;
                        if (before) y = y + load_elements(before + row * before_stride + t, left);
                        y = y * splat(scale);
                        if (after) y = y + load_elements(after + row * after_stride + t, left);
                        store_elements(out + row * a.source.length + t, y, left);
                    }
                }
            };
            multiply_panels<T>(
                gates->matrix(which), gates->packed(which), gates->vectors, sums.data(),
                [&](std::int64_t first, std::int64_t) { return h.data() + first * kWidth; }, done);
        };
        const std::int64_t length = a.source.length;
        const Source& x = a.source;
        mix(1, f.residual_bias, static_cast<const T*>(x.data) + gates->b * x.batch_stride + gates->at, x.channel_stride,
            a.residual_scale, nullptr, 0, static_cast<T*>(f.residual_out) + gates->b * a.residual * length + gates->at);
        const T* skips = f.skip_sum ? static_cast<const T*>(f.skip_sum) + gates->b * f.skip_batch + gates->at : nullptr;
        mix(2, f.skip_bias, nullptr, 0, a.skip_scale, skips, f.skip_channel,
            static_cast<T*>(f.skip_out) + gates->b * a.skip * length + gates->at);
    }
}

template <typename T>
void backward(const WavenetBackward& f, const void* packed, std::int64_t begin, std::int64_t end) {
    const WavenetGates& a = f.gates;
    const auto size = Gates<T>::size;
    const std::int64_t length = a.source.length;
    const auto gates = std::make_unique<Gates<T>>(a, true, packed);
    std::vector<float> grads[2];
    for (auto& one : grads) one.resize(size(tiles_of(a.gate) * kTileRows * kWidth));
    for (std::int64_t item = begin; item < end; ++item) {
        gates->start(item);
        const auto back = [&](int which, const void* grad, std::int64_t batch, std::int64_t channel) {
            auto& sums = grads[which - 1];
            if (!grad) {
                std::fill(sums.begin(), sums.end(), 0.0f);
                return;
            }
            const Source source{grad, batch, channel, length, nullptr, 0, 0, 0, nullptr};
            const Window window = window_of(source, gates->b, gates->at, 0, gates->count);
            const Matrix<T>& matrix = gates->matrix(which);
            const auto pack = [&](std::int64_t first, std::int64_t last) {
                pack_panel<T>(source, &window, gates->b, 0, matrix.inputs, first, last, gates->panel);
                return gates->panel;
            };
            multiply_panels<T>(matrix, gates->packed(which), gates->vectors, sums.data(), pack, kNothing);
        };
        back(1, f.grad_residual, f.residual_batch, f.residual_channel);
        back(2, f.grad_skip, f.skip_batch, f.skip_channel);
        const Floats one = splat(1.0f);
        T* h = static_cast<T*>(f.h) + gates->b * a.gate * length + gates->at;
        T* grad_z = static_cast<T*>(f.grad_z) + gates->b * 2 * a.gate * length + gates->at;
        for (std::int64_t g = 0; g < a.gate; ++g) {
            for (std::int64_t t = 0; t < gates->count; t += kLanes) {
                const std::int64_t left = gates->count - t;
                const Floats filtered = tanh(gates->z(g, t));
                const Floats open = sigmoid(gates->z(a.gate + g, t));
                const Floats grad = fma(splat(a.residual_scale), load(grads[0].data() + g * kWidth + t),
                                        splat(a.skip_scale) * load(grads[1].data() + g * kWidth + t));
                store_elements(h + g * length + t, filtered * open, left);
                store_elements(grad_z + g * length + t, grad * open * fnma(filtered, filtered, one), left);
                store_elements(grad_z + (a.gate + g) * length + t, grad * filtered * fnma(open, open, open), left);
            }
        }
    }
}

}  // namespace

WavenetExtent wavenet_extent(const WavenetGates& a, bool backward) {
    WavenetExtent extent{};
    by_element(a.element, [&](auto element) {
        for (const auto& matrix : matrices_of<decltype(element)>(a, backward)) {
            extent.tiles += tiles_of(matrix.rows);
            extent.bytes += 4 * matrix.words();
        }
    });
    extent.items = a.batch * ((a.source.length + kWidth - 1) / kWidth);
    return extent;
}

void pack_wavenet(const WavenetGates& a, bool backward, std::int64_t begin, std::int64_t end, void* packed) {
    by_element(a.element, [&](auto element) {
        using T = decltype(element);
        auto* out = static_cast<Word<T>*>(packed);
        for (const Matrix<T>& matrix : matrices_of<T>(a, backward)) {
            const std::int64_t tiles = tiles_of(matrix.rows);
            pack_tiles<T>(matrix, std::max<std::int64_t>(begin, 0), std::min(end, tiles), out);
            begin -= tiles;
            end -= tiles;
            out += matrix.words();
        }
    });
}

void wavenet_forward(const WavenetForward& f, const void* packed, std::int64_t begin, std::int64_t end) {
    by_element(f.gates.element, [&](auto element) { forward<decltype(element)>(f, packed, begin, end); });
}

void wavenet_backward(const WavenetBackward& f, const void* packed, std::int64_t begin, std::int64_t end) {
    by_element(f.gates.element, [&](auto element) { backward<decltype(element)>(f, packed, begin, end); });
}

}  // namespace fastar::cpu::FASTAR_ISA
