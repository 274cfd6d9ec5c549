// A run with one seed and no options from its start to its end, for callers to whom microseconds matter.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/executor/run.h"

namespace fastar::cpu {

class WholeRun {
  public:
    // Rows first_row, first_row + 1, .. modulo 2^64.
    WholeRun(std::shared_ptr<const Plan> plan, std::int64_t rows, std::int64_t length, std::uint64_t seed,
             std::uint64_t first_row);

    Run& run() { return run_; }

    // The values so far; value i of a row goes to layout[i] of the row in `out`, or to i where there is no layout.
    template <typename T>
    void copy(const std::int32_t* layout, T* out) const {
        const Request& r = run_.request();
        const std::int64_t size = r.length * r.channels;
        for (std::int64_t row = 0; row < r.rows; ++row) {
            const double* from = values_.data() + row * size;
            T* to = out + row * size;
            for (std::int64_t i = 0; i < size; ++i) to[layout ? layout[i] : i] = static_cast<T>(from[i]);
        }
    }

  private:
    std::vector<double> values_;
    std::vector<double> sums_;           // log-probabilities and log-weights
    std::vector<std::int64_t> per_row_;  // numbers, seeds, lengths
    Run run_;
};

}  // namespace fastar::cpu
