#include "cpu/executor/schedule.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <map>
#include <numeric>
#include <random>
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

// How a block may be scheduled: by what a step goes first, and how much of its time a step has to save by being split.
struct Policy {
    std::vector<double> priority;
    double worth;
};

class Scheduler {
  public:
    Scheduler(const Block& block, const std::vector<std::vector<std::size_t>>& before, int threads, std::int64_t rows,
              const CostModel& model)
        : block_(block), before_(before), threads_(threads), ns_to_hear_(model.ns_to_hear), overflow_(model.overflow) {
        const double all = static_cast<double>(rows);
        const double share = 1.0 / threads;
        for (const auto& step : block.steps) {
            const bool by_rows = step->units < threads && rows >= threads;
            whole_.push_back(model.step(*step, 1.0, all));
            part_.push_back(by_rows ? model.step(*step, 1.0, all * share) : model.step(*step, share, all));
            divisible_.push_back(threads > 1 && (step->units >= threads || by_rows));
        }
    }

    // The longest way from each step to the block's end.
    std::vector<double> ways() const {
        std::vector<double> ways = whole_;
        for (std::size_t i = ways.size(); i-- > 0;) {
            for (std::size_t p : before_[i]) ways[p] = std::max(ways[p], whole_[p] + ways[i]);
        }
        return ways;
    }

    // Puts each step before those that wait for it.
    void make_runnable(std::vector<double>& priority) const {
        for (std::size_t i = priority.size(); i-- > 0;) {
            for (std::size_t p : before_[i]) priority[p] = std::max(priority[p], priority[i] + 1.0);
        }
    }

    // List scheduling: steps in the order of their priorities; each goes where it ends first, whole on one thread, or
    // in equal parts on all.
    Draft draft(const Policy& policy) const {
        const std::size_t n = block_.steps.size();
        std::vector<std::size_t> order(n);
        std::iota(order.begin(), order.end(), std::size_t{0});
        std::stable_sort(order.begin(), order.end(),
                         [&](auto a, auto b) { return policy.priority[a] > policy.priority[b]; });
        Draft d{.of_step = std::vector<std::vector<Piece>>(n),
                .of_thread = std::vector<std::vector<Piece>>(static_cast<std::size_t>(threads_))};
        std::vector<double> free(static_cast<std::size_t>(threads_), 0.0);
        std::vector<double> begin(static_cast<std::size_t>(threads_));
        for (const std::size_t i : order) {
            for (int t = 0; t < threads_; ++t) begin[static_cast<std::size_t>(t)] = ready(d, i, t, free);
            const auto first = std::min_element(begin.begin(), begin.end());
            const double last = *std::max_element(begin.begin(), begin.end());
            const bool split = divisible_[i] && last + part_[i] + policy.worth < *first + whole_[i];
            for (int t = 0; t < threads_; ++t) {
                if (!split && t != first - begin.begin()) continue;
                const auto thread = static_cast<std::size_t>(t);
                const double end = begin[thread] + (split ? part_[i] : whole_[i]);
                const Piece piece{i, t, split ? t : 0, split ? threads_ : 1, end};
                d.of_step[i].push_back(piece);
                d.of_thread[thread].push_back(piece);
                free[thread] = end;
                d.end = std::max(d.end, end);
            }
        }
        for (std::size_t t = 0; t < d.of_thread.size(); ++t) {
            double bytes = 0.0;
            for (const Piece& one : d.of_thread[t]) bytes += block_.steps[one.step]->bytes / one.parts;
            d.end += overflow_.ns_per_byte * std::max(0.0, bytes - overflow_.bytes);
        }
        return d;
    }

  private:
    double ready(const Draft& d, std::size_t step, int thread, const std::vector<double>& free) const {
        double at = free[static_cast<std::size_t>(thread)];
        for (const std::size_t p : before_[step]) {
            for (const Piece& piece : d.of_step[p]) {
                at = std::max(at, piece.finish + (piece.thread == thread ? 0.0 : ns_to_hear_));
            }
        }
        return at;
    }

    const Block& block_;
    const std::vector<std::vector<std::size_t>>& before_;
    int threads_;
    double ns_to_hear_;
    CostModel::Overflow overflow_;
    std::vector<double> whole_;
    std::vector<double> part_;
    std::vector<bool> divisible_;
};

// The best draft that a search finds. Greedy choices see one step ahead: parts that end early make every follower wait
// for both threads, and a step that is urgent by the longest way alone may leave the other thread idle. So several
// degrees of reluctance to split are tried, from none to never; then, from the best, priorities that differ a little
// here and there, each change kept that makes nothing worse: by the cost model 5 to 14% of a WaveNet's step.
Draft search(const Scheduler& scheduler) {
    constexpr double kWorths[] = {0.0, 100.0, 200.0, 400.0, 1000.0, 1e12};
    constexpr int kTries = 600;
    constexpr double kMost = 0.3;
    Policy policy{scheduler.ways(), 0.0};
    Policy best = policy;
    Draft found;
    found.end = std::numeric_limits<double>::infinity();
    const auto attempt = [&](const Policy& one, bool equal) {
        Draft draft = scheduler.draft(one);
        if (equal ? draft.end > found.end : draft.end >= found.end) return;
        found = std::move(draft);
        best = one;
    };
    for (const double worth : kWorths) {
        policy.worth = worth;
        attempt(policy, false);
    }
    const std::size_t n = policy.priority.size();
    std::minstd_rand random(1);
    const auto below = [&](std::size_t end) { return static_cast<std::size_t>(random()) % end; };
    for (int i = 0; i < kTries && n > 1; ++i) {
        policy = best;
        const std::size_t changes = std::min(n, std::size_t{1} << below(4));
        for (std::size_t k = 0; k < changes; ++k) {
            const double shift = static_cast<double>(below(2001)) / 1000.0 - 1.0;
            policy.priority[below(n)] *= 1.0 + kMost * shift;
        }
        if (below(5) == 0) policy.worth = kWorths[below(std::size(kWorths))];
        scheduler.make_runnable(policy.priority);
        attempt(policy, true);
    }
    return found;
}

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
    // Measured on two cores of an EPYC of 2024, for a core of two at work: 270, 130 and 42 GB/s. What overlaps with the
    // products is not counted twice.
    constexpr double kSecondLevel = 1e6;
    constexpr double kThirdLevel = 28e6;
    if (weight_bytes / threads <= kSecondLevel) {
        ns_per_byte = 1.0 / 340.0;
        ns_per_tile = 25.0;
        overflow = {.bytes = 0.97e6, .ns_per_byte = 5.0 / 110.0};
    } else {
        ns_per_tile = 0.0;
        ns_per_byte = weight_bytes <= kThirdLevel ? 1.0 / 110.0 : threads / 85.0;
    }
}

double CostModel::step(const Step& step, double share, double rows) const {
    const double read = step.bytes * ns_per_byte;
    const double products = step.work * rows * ns_per_product;
    // Reading and multiplying overlap, but where several blocks of rows pass over the weights not all the time.
    const double both = std::max(read, products) + 0.3 * std::min(read, products);
    return ns_per_step + rows * ns_per_row +
           share * (both + step.tiles * ns_per_tile + step.lanes * rows * ns_per_function);
}

double schedule(Block& block, const std::vector<std::vector<std::size_t>>& before, int threads, std::int64_t rows,
                const CostModel& model) {
    const Draft best = search(Scheduler(block, before, threads, rows, model));
    write(block, before, best, threads);
    // All threads meet at the block's end.
    return best.end + (threads > 1 ? model.ns_to_hear : 0.0);
}

}  // namespace fastar::cpu
