// Weights in the layout that the kernels read, packed once per plan.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "cpu/executor/program.h"

namespace fastar::cpu {

enum class Precision { kFloat32, kBfloat16, kInt8 };

// Whether the system is asked for large pages. It clears a page when it is first touched: what is only touched here and
// there, as a cache whose run ends early, is better off with small ones.
enum class Pages { kLarge, kSmall };

// Zeroed memory at cache-line boundaries; of large pages at the boundary of one, where it fills one.
class AlignedBytes {
  public:
    AlignedBytes() = default;
    explicit AlignedBytes(std::size_t bytes, Pages pages = Pages::kLarge);

    std::byte* data() const { return data_; }
    std::size_t size() const { return size_; }

    template <typename T>
    T* as() const {
        return reinterpret_cast<T*>(data_);
    }

  private:
    struct Free {
        void operator()(void* p) const { std::free(p); }
    };
    std::unique_ptr<void, Free> held_;
    std::byte* data_ = nullptr;
    std::size_t size_ = 0;
};

// Memory for all weights of a plan, side by side in the order in which they are asked for, which is that of their use.
// Large pages make it one piece to the second cache level too: 0.9 MB in small pages, wherever the system finds them,
// meet often enough in a level of 1 MB to be read at 180 instead of 266 GB/s.
class WeightArena {
  public:
    explicit WeightArena(std::size_t expected) : chunk_(expected) {}

    // Zeroed, at a cache line's boundary.
    std::byte* take(std::size_t bytes);

    std::size_t used() const { return used_; }

  private:
    std::size_t chunk_;
    std::size_t used_ = 0;
    std::size_t used_of_last_ = 0;
    std::vector<AlignedBytes> chunks_;
};

// `banks` matrices of outputs x inputs, each stored as `storage` says.
struct Matrix {
    Storage storage;
    std::int64_t outputs;
    std::int64_t inputs;  // padded to a whole block
    std::int64_t units;   // what a share of the outputs is counted in: tiles, registers of a slim one, or outputs
    std::size_t bank_bytes;
    std::byte* weights;
    std::vector<float> scales;  // int8: per bank, a scale per output and then 128 times the sum of its weights

    const void* bank(std::int64_t i) const { return weights + static_cast<std::size_t>(i) * bank_bytes; }
    const float* bank_scales(std::int64_t i) const {
        return scales.empty() ? nullptr : scales.data() + i * 2 * outputs;
    }
};

// Weights [banks, outputs, inputs]. Outputs that fill no register go into row storage whatever the precision, and in
// float32; those that fill no tile are bfloat16 where others are int8: what they would save is less than what rounding
// them costs.
Matrix pack(const float* weights, std::int64_t banks, std::int64_t outputs, std::int64_t inputs, Precision precision,
            bool by_rows, WeightArena& arena);

// Whether that many outputs are stored by rows.
bool prefers_rows(std::int64_t outputs);

}  // namespace fastar::cpu
