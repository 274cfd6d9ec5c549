#include "cpu/nade.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "common/workers.h"
#include "cpu/dispatch.h"

namespace fastar::cpu {
namespace {

std::int64_t pieces(std::int64_t count, std::int64_t size) {
    return (count + size - 1) / size;
}

// parallel_for with signed indices.
template <typename Body>
void share_out(std::int64_t count, std::int64_t grain, int threads, Body body) {
    parallel_for(static_cast<std::size_t>(count), static_cast<std::size_t>(grain), threads,
                 [&](auto begin, auto end) { body(static_cast<std::int64_t>(begin), static_cast<std::int64_t>(end)); });
}

// Floats that begin on a cache line, unwritten.
class Buffer {
  public:
    explicit Buffer(std::int64_t floats)
        : memory_(std::make_unique_for_overwrite<float[]>(static_cast<std::size_t>(floats) + kLine)) {
        const auto address = reinterpret_cast<std::uintptr_t>(memory_.get());
        data_ = memory_.get() + (kLine - address / sizeof(float) % kLine) % kLine;
    }
    float* data() const { return data_; }

  private:
    static constexpr std::size_t kLine = 16;
    std::unique_ptr<float[]> memory_;
    float* data_;
};

// out[j * out_stride + i] = source[i * stride_i + j * stride_j]. In tiles, so that lines read or written across are
// used up while they are in the first cache level.
void transpose(const float* source, std::int64_t stride_i, std::int64_t stride_j, std::int64_t count_i,
               std::int64_t count_j, float* out, std::int64_t out_stride, int threads) {
    constexpr std::int64_t kTile = 16;
    share_out(pieces(count_j, kTile), 8, threads, [&](std::int64_t begin, std::int64_t end) {
        const std::int64_t last_j = std::min(end * kTile, count_j);
        for (std::int64_t tile_j = begin * kTile; tile_j < last_j; tile_j += kTile) {
            for (std::int64_t tile_i = 0; tile_i < count_i; tile_i += kTile) {
                for (std::int64_t j = tile_j; j < std::min(tile_j + kTile, last_j); ++j) {
                    for (std::int64_t i = tile_i; i < std::min(tile_i + kTile, count_i); ++i) {
                        out[j * out_stride + i] = source[i * stride_i + j * stride_j];
                    }
                }
            }
        }
    });
}

// The model as the kernels read it.
class Packed {
  public:
    Packed(const NadeWeights& w, int threads)
        : stride_(pieces(w.hidden, kNadeSlice) * kNadeSlice), weight_(w.dim * stride_), hidden_bias_(stride_) {
        transpose(w.weight, w.weight_stride_h, w.weight_stride_d, w.hidden, w.dim, weight_.data(), stride_, threads);
        for (std::int64_t d = 0; d < w.dim; ++d) {
            std::fill(weight_.data() + d * stride_ + w.hidden, weight_.data() + (d + 1) * stride_, 0.0f);
        }
        std::fill(std::copy_n(w.hidden_bias, w.hidden, hidden_bias_.data()), hidden_bias_.data() + stride_, 0.0f);
        model = {.dim = w.dim,
                 .hidden = w.hidden,
                 .params = w.params,
                 .stride = stride_,
                 .weight = weight_.data(),
                 .readout = w.readout,
                 .hidden_bias = hidden_bias_.data(),
                 .order = w.order,
                 .activation = w.activation};
    }

    NadeModel model;

  private:
    std::int64_t stride_;
    Buffer weight_;
    Buffer hidden_bias_;
};

// The gradient of out as [D, B, K], from whatever there is.
void gather_gradient(const NadeSource& source, const float* x, std::int64_t batch, std::int64_t dim,
                     std::int64_t params, float* out, int threads) {
    const bool adds = source.grad && source.grad_log_prob;
    if (source.grad) {
        share_out(dim, 8, threads, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t d = begin; d < end; ++d) {
                for (std::int64_t b = 0; b < batch; ++b) {
                    const float* from = source.grad + b * source.stride_b + d * source.stride_d;
                    for (std::int64_t k = 0; k < params; ++k)
                        out[(d * batch + b) * params + k] = from[k * source.stride_k];
                }
            }
        });
    }
    if (!source.grad_log_prob) return;
    const Buffer rows(batch * dim);
    share_out(batch, 8, threads, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t b = begin; b < end; ++b) {
            float* const row = rows.data() + b * dim;
            kernels().nade_logit_gradient(source.logits + b * dim, x + b * dim, source.grad_log_prob[b], row, dim);
            if (!adds) continue;
            for (std::int64_t d = 0; d < dim; ++d) row[d] += out[d * batch + b];
        }
    });
    transpose(rows.data(), dim, 1, batch, dim, out, batch, threads);
}

// bias[k] = sum over b of grad[b, k].
void sum_over_batch(const float* grad, std::int64_t batch, std::int64_t params, float* bias) {
    for (std::int64_t k = 0; k < params; ++k) {
        double total = 0.0;
        for (std::int64_t b = 0; b < batch; ++b) total += grad[b * params + k];
        bias[k] = static_cast<float>(total);
    }
}

}  // namespace

bool nade_forward(const NadeWeights& weights, const float* bias, const float* x, std::int64_t batch, float* out,
                  float* log_prob, int threads) {
    const Packed packed(weights, threads);
    const NadeModel& m = packed.model;
    const NadeForward forward{.model = m, .bias = bias, .x = x, .out = out, .log_prob = log_prob};
    const std::int64_t blocks = pieces(batch, kNadeRows);
    // Where the readout is large it is read once per piece, so pieces are as long as a thread's share allows.
    const std::int64_t share =
        m.params == 1 ? 1 : std::clamp<std::int64_t>(blocks / std::max(threads, 1), 1, kNadeGroup / kNadeRows);
    std::atomic<bool> valid{true};
    share_out(blocks, share, threads, [&](std::int64_t begin, std::int64_t end) {
        const Buffer scratch(2 * kNadeGroup * m.stride + kNadeRows * m.dim);
        const std::int64_t last = std::min(end * kNadeRows, batch);
        if (!kernels().nade_forward(forward, begin * kNadeRows, last, scratch.data())) valid = false;
    });
    return valid;
}

void nade_backward(const NadeWeights& weights, const NadeSource& source, const float* x, std::int64_t batch,
                   const NadeGradients& gradients, int threads) {
    const Packed packed(weights, threads);
    const NadeModel& m = packed.model;
    const Buffer x_by_position(m.dim * batch);
    transpose(x, m.dim, 1, batch, m.dim, x_by_position.data(), batch, threads);
    const Buffer grad(m.dim * batch * m.params);
    gather_gradient(source, x, batch, m.dim, m.params, grad.data(), threads);

    // Which rows have something to add at a position is the same for every hidden unit; lists of them replace a branch
    // per row that a random x would make the processor guess wrong half of the time.
    const std::int64_t groups = pieces(batch, kNadeGroup);
    std::vector<std::uint8_t> active(static_cast<std::size_t>(groups * m.dim * kNadeGroup));
    std::vector<std::uint8_t> active_count(static_cast<std::size_t>(groups * m.dim));
    share_out(m.dim, 64, threads, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t d = begin; d < end; ++d) {
            for (std::int64_t group = 0; group < groups; ++group) {
                std::uint8_t* const list = active.data() + (group * m.dim + d) * kNadeGroup;
                const float* row = x_by_position.data() + d * batch + group * kNadeGroup;
                const std::int64_t rows = std::min(kNadeGroup, batch - group * kNadeGroup);
                std::uint8_t count = 0;
                for (std::int64_t r = 0; r < rows; ++r) {
                    list[count] = static_cast<std::uint8_t>(r);
                    count = static_cast<std::uint8_t>(count + (row[r] != 0.0f));
                }
                active_count[static_cast<std::size_t>(group * m.dim + d)] = count;
            }
            sum_over_batch(grad.data() + d * batch * m.params, batch, m.params, gradients.bias + d * m.params);
        }
    });

    const std::int64_t slices = m.stride / kNadeSlice;
    const Buffer grad_weight(m.dim * m.stride);
    const Buffer grad_hidden_bias(m.stride);
    const Buffer grad_x(gradients.x ? slices * m.dim * batch : 0);
    if (batch == 0) {
        std::fill_n(grad_weight.data(), m.dim * m.stride, 0.0f);
        std::fill_n(gradients.readout, m.dim * m.params * m.hidden, 0.0f);
    }
    const NadeBackward backward{.model = m,
                                .batch = batch,
                                .x = x_by_position.data(),
                                .grad = grad.data(),
                                .active = active.data(),
                                .active_count = active_count.data(),
                                .grad_x = gradients.x ? grad_x.data() : nullptr,
                                .grad_weight = grad_weight.data(),
                                .grad_readout = gradients.readout,
                                .grad_hidden_bias = grad_hidden_bias.data()};
    share_out(slices, 1, threads, [&](std::int64_t begin, std::int64_t end) {
        const Buffer scratch(4 * kNadeGroup * kNadeSlice);
        kernels().nade_backward(backward, begin, end, scratch.data());
    });
    transpose(grad_weight.data(), m.stride, 1, m.dim, m.hidden, gradients.weight, m.dim, threads);
    std::copy_n(grad_hidden_bias.data(), m.hidden, gradients.hidden_bias);
    if (!gradients.x) return;
    share_out(batch, 8, threads, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t b = begin; b < end; ++b) {
            for (std::int64_t d = 0; d < m.dim; ++d) {
                // In log p, x_d also multiplies its own logit.
                float total = source.grad_log_prob ? source.grad_log_prob[b] * source.logits[b * m.dim + d] : 0.0f;
                for (std::int64_t s = 0; s < slices; ++s) total += grad_x.data()[(s * m.dim + d) * batch + b];
                gradients.x[b * m.dim + d] = total;
            }
        }
    });
}

}  // namespace fastar::cpu
