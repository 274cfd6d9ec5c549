#include "cpu/nade.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "common/workers.h"
#include "cpu/dispatch.h"

namespace fastar::cpu {
namespace {

std::int64_t pieces(std::int64_t count, std::int64_t size) {
    return (count + size - 1) / size;
}

// Aligned to cache lines, unlike what new[] gives.
class Scratch {
  public:
    explicit Scratch(std::int64_t floats) : memory_(static_cast<std::size_t>(floats) + kLine) {}
    float* data() {
        void* start = memory_.data();
        std::size_t room = memory_.size() * sizeof(float);
        return static_cast<float*>(std::align(kLine * sizeof(float), 1, start, room));
    }

  private:
    static constexpr std::size_t kLine = 16;
    std::vector<float> memory_;
};

}  // namespace

void nade_forward(const NadeForward& f, std::int64_t batch, int threads) {
    const NadeModel& m = f.model;
    // Where the readout is large it is read once per piece, so pieces are as long as a thread's share allows.
    const std::int64_t blocks = pieces(batch, kNadeRows);
    const std::int64_t share =
        m.params == 1 ? 1 : std::clamp<std::int64_t>(blocks / std::max(threads, 1), 1, kNadeGroup / kNadeRows);
    parallel_for(static_cast<std::size_t>(blocks), static_cast<std::size_t>(share), threads, [&](auto begin, auto end) {
        Scratch scratch(2 * kNadeGroup * m.stride + kNadeRows * m.dim);
        const auto first = static_cast<std::int64_t>(begin) * kNadeRows;
        const auto last = std::min(static_cast<std::int64_t>(end) * kNadeRows, batch);
        kernels().nade_forward(f, first, last, scratch.data());
    });
}

void nade_backward(NadeBackward b, int threads) {
    const NadeModel& m = b.model;
    const std::int64_t groups = pieces(b.batch, kNadeGroup);
    // Which rows have something to add at a position is the same for every hidden unit; lists of them replace a branch
    // per row that a random x would make the processor guess wrong half of the time.
    std::vector<std::uint8_t> active(static_cast<std::size_t>(groups * m.dim * kNadeGroup));
    std::vector<std::uint8_t> active_count(static_cast<std::size_t>(groups * m.dim));
    parallel_for(static_cast<std::size_t>(m.dim), 64, threads, [&](auto begin, auto end) {
        for (auto d = static_cast<std::int64_t>(begin); d < static_cast<std::int64_t>(end); ++d) {
            for (std::int64_t group = 0; group < groups; ++group) {
                std::uint8_t* const list = active.data() + (group * m.dim + d) * kNadeGroup;
                const float* x = b.x + d * b.batch + group * kNadeGroup;
                const std::int64_t rows = std::min(kNadeGroup, b.batch - group * kNadeGroup);
                std::uint8_t count = 0;
                for (std::int64_t r = 0; r < rows; ++r) {
                    list[count] = static_cast<std::uint8_t>(r);
                    count = static_cast<std::uint8_t>(count + (x[r] != 0.0f));
                }
                active_count[static_cast<std::size_t>(group * m.dim + d)] = count;
            }
        }
    });
    b.active = active.data();
    b.active_count = active_count.data();
    parallel_for(static_cast<std::size_t>(m.stride / kNadeSlice), 1, threads, [&](auto begin, auto end) {
        Scratch scratch(4 * kNadeGroup * kNadeSlice);
        kernels().nade_backward(b, static_cast<std::int64_t>(begin), static_cast<std::int64_t>(end), scratch.data());
    });
}

}  // namespace fastar::cpu
