#include "cpu/executor/schedule.h"

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <utility>

namespace fastar::cpu {
namespace {

// A step's part on one thread.
struct Piece {
    std::size_t step;
    int thread;
    int part;
    int parts;
    double finish;
};

struct Draft {
    std::vector<std::vector<Piece>> of_step;
    std::vector<std::vector<Piece>> of_thread;
    double end = 0.0;
};

class Scheduler {
  public:
    Scheduler(const Block& block, const std::vector<std::vector<std::size_t>>& before, int threads, std::int64_t rows,
              const CostModel& model)
        : block_(block), before_(before), threads_(threads), rows_(rows), model_(model) {}

    // List scheduling: steps in the order of the longest way from them to the end; each goes where it ends first, whole
    // on one thread, or in equal parts on all if that saves at least `worth` of its time.
    Draft draft(double worth) const {
        const std::size_t n = block_.steps.size();
        std::vector<double> cost(n);
        for (std::size_t i = 0; i < n; ++i) cost[i] = model_.step(*block_.steps[i], 1.0, static_cast<double>(rows_));
        std::vector<double> remaining = cost;
        for (std::size_t i = n; i-- > 0;) {
            for (std::size_t p : before_[i]) remaining[p] = std::max(remaining[p], cost[p] + remaining[i]);
        }
        std::vector<std::size_t> order(n);
        std::iota(order.begin(), order.end(), std::size_t{0});
        // A step's way is longer than that of any step that waits for it, so this order is one that can be run.
        std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return remaining[a] > remaining[b]; });

        Draft d{.of_step = std::vector<std::vector<Piece>>(n),
                .of_thread = std::vector<std::vector<Piece>>(static_cast<std::size_t>(threads_))};
        std::vector<double> free(static_cast<std::size_t>(threads_), 0.0);
        for (const std::size_t i : order) {
            int best = 0;
            double first = std::numeric_limits<double>::infinity();
            for (int t = 0; t < threads_; ++t) {
                const double end = ready(d, i, t, free) + cost[i];
                if (end < first) {
                    first = end;
                    best = t;
                }
            }
            double together = 0.0;
            const double each = 1.0 / threads_;
            const double part = by_rows(*block_.steps[i])
                                    ? model_.step(*block_.steps[i], 1.0, static_cast<double>(rows_) * each)
                                    : model_.step(*block_.steps[i], each, static_cast<double>(rows_));
            for (int t = 0; t < threads_; ++t) together = std::max(together, ready(d, i, t, free) + part);
            const bool split = divisible(*block_.steps[i]) && together + worth < first;
            for (int t = 0; t < threads_; ++t) {
                if (!split && t != best) continue;
                const double end = ready(d, i, t, free) + (split ? part : cost[i]);
                const Piece piece{i, t, split ? t : 0, split ? threads_ : 1, end};
                d.of_step[i].push_back(piece);
                d.of_thread[static_cast<std::size_t>(t)].push_back(piece);
                free[static_cast<std::size_t>(t)] = end;
                d.end = std::max(d.end, end);
            }
        }
        return d;
    }

  private:
    bool divisible(const Step& step) const { return threads_ > 1 && (step.units >= threads_ || by_rows(step)); }
    bool by_rows(const Step& step) const { return step.units < threads_ && rows_ >= threads_; }

    double ready(const Draft& d, std::size_t step, int thread, const std::vector<double>& free) const {
        double at = free[static_cast<std::size_t>(thread)];
        for (const std::size_t p : before_[step]) {
            for (const Piece& piece : d.of_step[p]) {
                at = std::max(at, piece.finish + (piece.thread == thread ? 0.0 : model_.ns_to_hear));
            }
        }
        return at;
    }

    const Block& block_;
    const std::vector<std::vector<std::size_t>>& before_;
    int threads_;
    std::int64_t rows_;
    const CostModel& model_;
};

// Turns a draft into tasks: who waits for how many of whose signals.
void write(Block& block, const std::vector<std::vector<std::size_t>>& before, const Draft& draft, int threads) {
    const auto count = static_cast<std::size_t>(threads);
    block.tasks.assign(count, {});
    block.signals.assign(count, 0);
    block.waits.clear();
    // Pieces that another thread waits for, and the last of each thread, are signalled.
    std::map<std::pair<std::size_t, int>, std::uint64_t> number;
    for (const auto& pieces : draft.of_thread) {
        for (const Piece& piece : pieces) {
            for (const std::size_t p : before[piece.step]) {
                for (const Piece& other : draft.of_step[p]) {
                    if (other.thread != piece.thread) number[{p, other.thread}] = 0;
                }
            }
        }
        if (!pieces.empty()) number[{pieces.back().step, pieces.back().thread}] = 0;
    }
    for (std::size_t t = 0; t < count; ++t) {
        for (const Piece& piece : draft.of_thread[t]) {
            if (const auto found = number.find({piece.step, piece.thread}); found != number.end()) {
                found->second = ++block.signals[t];
            }
        }
    }
    for (std::size_t t = 0; t < count; ++t) {
        std::vector<std::uint64_t> heard(count, 0);
        for (const Piece& piece : draft.of_thread[t]) {
            const Step& step = *block.steps[piece.step];
            const bool by_units = step.units >= piece.parts;
            Task task{.step = &step,
                      .unit_begin = by_units ? step.units * piece.part / piece.parts : 0,
                      .unit_end = by_units ? step.units * (piece.part + 1) / piece.parts : step.units,
                      .row_part = by_units ? 0 : piece.part,
                      .row_parts = by_units ? 1 : piece.parts,
                      .wait_begin = static_cast<int>(block.waits.size()),
                      .wait_end = 0,
                      .signals = number.contains({piece.step, piece.thread}),
                      .reads = {},
                      .next = {}};
            std::vector<std::uint64_t> wanted(count, 0);
            for (const std::size_t p : before[piece.step]) {
                for (const Piece& other : draft.of_step[p]) {
                    if (other.thread == piece.thread) continue;
                    auto& most = wanted[static_cast<std::size_t>(other.thread)];
                    most = std::max(most, number.at({p, other.thread}));
                }
            }
            for (std::size_t u = 0; u < count; ++u) {
                if (wanted[u] <= heard[u]) continue;
                block.waits.push_back({static_cast<int>(u), wanted[u]});
                heard[u] = wanted[u];
            }
            task.wait_end = static_cast<int>(block.waits.size());
            block.tasks[t].push_back(task);
        }
        note_reads(block.tasks[t]);
    }
}

}  // namespace

CostModel::CostModel(double weight_bytes, int threads, double to_hear) : ns_to_hear(to_hear) {
    // Measured on two cores of an EPYC of 2024: 270, 130 and 42 GB/s for a core of two at work.
    constexpr double kSecondLevel = 0.9e6;
    constexpr double kThirdLevel = 28e6;
    if (weight_bytes / threads <= kSecondLevel) {
        ns_per_byte = 1.0 / 200.0;
    } else {
        ns_per_byte = weight_bytes <= kThirdLevel ? 1.0 / 110.0 : threads / 85.0;
    }
}

double CostModel::step(const Step& step, double share, double rows) const {
    const double read = step.bytes * ns_per_byte;
    const double products = step.work * rows * ns_per_product;
    // Reading and multiplying overlap, but where several blocks of rows pass over the weights not all the time.
    const double both = std::max(read, products) + 0.3 * std::min(read, products);
    return ns_per_step + rows * ns_per_row + share * (both + step.lanes * rows * ns_per_function);
}

double schedule(Block& block, const std::vector<std::vector<std::size_t>>& before, int threads, std::int64_t rows,
                const CostModel& model) {
    const Scheduler scheduler(block, before, threads, rows, model);
    Draft best;
    best.end = std::numeric_limits<double>::infinity();
    // Greedy choices see one step ahead: parts that end early make every follower wait for both threads. So several
    // degrees of reluctance to split are tried, from none to never.
    for (const double worth : {0.0, 100.0, 200.0, 400.0, 1000.0, 1e12}) {
        Draft one = scheduler.draft(worth);
        if (one.end < best.end) best = std::move(one);
    }
    write(block, before, best, threads);
    // All threads meet at the block's end.
    return best.end + (threads > 1 ? model.ns_to_hear : 0.0);
}

}  // namespace fastar::cpu
