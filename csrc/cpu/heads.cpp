#include "cpu/heads.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "common/workers.h"
#include "cpu/dispatch.h"

namespace fastar::cpu {
namespace {

// Below this many parameters a second thread costs more to wake than it saves.
constexpr std::int64_t kElementsPerPiece = 1 << 14;
// Floats of a vector at the widest level.
constexpr std::int64_t kWidest = 16;

bool is_mixture(const Heads& h) {
    return h.kind != LogProbKind::kBernoulli && h.kind != LogProbKind::kCategorical;
}

struct Units {
    std::int64_t count;
    std::int64_t elements;  // in one of them
};

Units units(const Heads& h) {
    const auto blocks = [](std::int64_t n) { return (n + kHeadPositions - 1) / kHeadPositions; };
    if (is_mixture(h)) return {blocks(h.outer * h.inner), kHeadPositions * h.size};
    if (h.kind == LogProbKind::kBernoulli && h.inner == 1) return {h.outer, h.size};
    if (h.kind == LogProbKind::kBernoulli || h.params.stride_size != 1) {
        return {h.outer * blocks(h.inner), kHeadPositions * h.size};
    }
    return {h.outer * h.inner, h.size};
}

// What mixtures need is the most by far, except for a categorical's row.
std::int64_t scratch_floats(const Heads& h) {
    if (!is_mixture(h)) return std::max<std::int64_t>(h.size + kWidest, 16 * kHeadPositions);
    return (h.size + h.channels + 2) * kHeadPositions + (h.size + h.components + 1) * kWidest;
}

template <typename Body>
void over_units(const Heads& h, int threads, Body body) {
    const Units u = units(h);
    const std::int64_t grain = std::max<std::int64_t>(1, kElementsPerPiece / std::max<std::int64_t>(1, u.elements));
    parallel_for(static_cast<std::size_t>(u.count), static_cast<std::size_t>(grain), threads,
                 [&](auto begin, auto end) {
                     std::vector<float> memory(static_cast<std::size_t>(scratch_floats(h) + kWidest));
                     void* start = memory.data();
                     std::size_t room = memory.size() * sizeof(float);
                     auto* const scratch = static_cast<float*>(std::align(kWidest * sizeof(float), 1, start, room));
                     body(static_cast<std::int64_t>(begin), static_cast<std::int64_t>(end), scratch);
                 });
}

}  // namespace

bool heads_forward(const HeadsForward& f, int threads) {
    std::atomic<bool> valid{true};
    over_units(f.heads, threads, [&](auto begin, auto end, float* scratch) {
        if (!kernels().heads_forward(f, begin, end, scratch)) valid = false;
    });
    return valid;
}

void heads_backward(const HeadsBackward& b, int threads) {
    over_units(b.heads, threads,
               [&](auto begin, auto end, float* scratch) { kernels().heads_backward(b, begin, end, scratch); });
}

}  // namespace fastar::cpu
