#include "cpu/executor/whole_run.h"

#include <algorithm>
#include <utility>

namespace fastar::cpu {
namespace {

std::size_t size(std::int64_t n) {
    return static_cast<std::size_t>(n);
}

Request plain_request(std::int64_t rows, std::int64_t length, std::int64_t channels, std::uint64_t seed,
                      std::uint64_t first_row, std::vector<double>& values, std::vector<double>& sums,
                      std::vector<std::int64_t>& per_row) {
    Request r{};
    r.rows = rows;
    r.length = length;
    r.channels = channels;
    r.stop = -1;
    r.temperature = 1.0;
    values.resize(size(r.rows * r.length * r.channels));
    sums.resize(size(2 * r.rows));
    per_row.resize(size(3 * r.rows));
    for (std::int64_t row = 0; row < r.rows; ++row) {
        per_row[size(row)] = static_cast<std::int64_t>(first_row + static_cast<std::uint64_t>(row));
    }
    std::fill_n(per_row.begin() + r.rows, r.rows, static_cast<std::int64_t>(seed));
    std::fill_n(per_row.begin() + 2 * r.rows, r.rows, r.length);
    r.row_numbers = per_row.data();
    r.seeds = per_row.data() + r.rows;
    r.lengths = per_row.data() + 2 * r.rows;
    r.values = values.data();
    r.log_prob = sums.data();
    r.log_weight = sums.data() + r.rows;
    return r;
}

}  // namespace

WholeRun::WholeRun(std::shared_ptr<const Plan> plan, std::int64_t rows, std::int64_t length, std::uint64_t seed,
                   std::uint64_t first_row)
    : run_(plan, plain_request(rows, length, plan->program.channels, seed, first_row, values_, sums_, per_row_)) {}

}  // namespace fastar::cpu
