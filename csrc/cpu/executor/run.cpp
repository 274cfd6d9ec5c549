#include "cpu/executor/run.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <stdexcept>
#include <utility>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace fastar::cpu {
namespace {

// Numbers too small to be normal cost a hundred cycles each and change no result that anyone could see: they count as
// zero while a run is under way, on its threads alone.
class FlushToZero {
  public:
#if defined(__x86_64__)
    FlushToZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
    ~FlushToZero() { _mm_setcsr(before_); }

  private:
    unsigned before_;
#endif
};

const OddsLoop* kept_as_odds(const Plan& plan, std::size_t buffer) {
    for (const OddsLoop& loop : plan.odds) {
        if (static_cast<std::size_t>(loop.state) == buffer) return &loop;
    }
    return nullptr;
}

// Asks for weights that are going to be read, a few lines at a time and up to 128 KiB, so that waiting is not time
// lost.
class Fetch {
  public:
    explicit Fetch(const Reads& reads) : left_(reads) {}

    // False where nothing is left.
    bool operator()() {
        constexpr std::size_t kLine = 64;
        constexpr std::size_t kBurst = 8 * kLine;
        if (left_.count == 0 || bursts_ == 0) return false;
        --bursts_;
        const std::size_t end = std::min(left_.bytes, done_ + kBurst);
        for (; done_ < end; done_ += kLine) __builtin_prefetch(left_.at + done_);
        if (done_ >= left_.bytes) {
            done_ = 0;
            left_.at += left_.stride;
            --left_.count;
        }
        return true;
    }

  private:
    Reads left_;
    std::size_t done_ = 0;
    int bursts_ = 256;
};

std::size_t workspace_size(std::size_t n) {
    return n + 16;
}

}  // namespace

Run::Run(std::shared_ptr<const Plan> plan, Request request)
    : plan_(std::move(plan)),
      request_(std::move(request)),
      arena_(sizeof(float) * static_cast<std::size_t>(request_.rows * plan_->layout.row_stride), Pages::kSmall),
      threads_(static_cast<std::size_t>(plan_->threads)),
      progress_(static_cast<std::size_t>(plan_->threads)) {
    spaces_.push_back({arena_.as<float>(), plan_->layout.row_stride});
    std::size_t input = 0;
    for (std::size_t b = 0; b < plan_->program.buffers.size(); ++b) {
        const Buffer& buffer = plan_->program.buffers[b];
        const auto& where = plan_->layout.buffers[b];
        if (buffer.kind == BufferKind::kInput) {
            // An input along an open loop has as many entries as the caller brings.
            std::int64_t size = request_.input_entries[input];
            for (std::size_t d = 1; d < buffer.shape.size(); ++d) size *= buffer.shape[d];
            spaces_.push_back({const_cast<float*>(request_.inputs[input++]), size});
        } else if (!plan_->initial[b].empty()) {
            for (std::int64_t row = 0; row < request_.rows; ++row) {
                std::copy(plan_->initial[b].begin(), plan_->initial[b].end(),
                          spaces_[0].data + row * spaces_[0].row_stride + where.base);
            }
        }
    }
    const WorkspaceSizes& sizes = plan_->sizes;
    for (Thread& one : threads_) {
        one.workspace.segments.resize(sizes.segments);
        one.workspace.staging = AlignedBytes(sizes.staging + 64);
        one.workspace.floats.resize(workspace_size(sizes.floats));
        one.workspace.doubles.resize(workspace_size(sizes.doubles));
        one.workspace.order.resize(workspace_size(sizes.order));
        one.base.resize(threads_.size());
        one.heard.resize(threads_.size());
    }
    const std::int64_t parts = plan_->threads;
    for (std::int64_t t = 0; t <= parts; ++t) row_cuts_.push_back(request_.rows * t / parts);
    cursor_.variables.resize(static_cast<std::size_t>(std::max(1, plan_->program.variables)));
}

bool Run::finished() const {
    return cursor_.done == request_.length || std::all_of(request_.lengths, request_.lengths + request_.rows,
                                                          [&](std::int64_t n) { return n <= cursor_.done; });
}

std::int64_t Run::advance(std::int64_t positions, double milliseconds) {
    if (failure_.kind != FailureKind::kNone) return 0;
    std::unique_ptr<Team> team = plan_->teams->take();
    using Clock = std::chrono::steady_clock;
    const auto begin = Clock::now();
    const auto elapsed = [&] { return std::chrono::duration<double, std::milli>(Clock::now() - begin).count(); };
    const std::int64_t before = cursor_.done;
    const std::int64_t target = std::min(request_.length, before + positions);
    // All threads stop at the same position, so time is turned into positions: by the rate so far, and at first by an
    // eighth of the rate that the cost model expects.
    if (positions_per_ms_ == 0.0) {
        const double rows = static_cast<double>(request_.rows) / static_cast<double>(plan_->options.rows);
        positions_per_ms_ = 1e6 / 8.0 / std::max(1.0, plan_->predicted_ns() * std::max(1.0, rows));
    }
    while (cursor_.done < target && !finished() && failure_.kind == FailureKind::kNone) {
        const double left = milliseconds - elapsed();
        if (left <= 0 && cursor_.done > before) break;
        const auto affordable = static_cast<std::int64_t>(std::max(1.0, positions_per_ms_ * std::max(left, 0.0)));
        const std::int64_t next = std::min(target, cursor_.done + affordable);
        const double started = elapsed();
        const std::int64_t from = cursor_.done;
        failed_.store(false, std::memory_order_relaxed);
        for (Thread& one : threads_) {
            one.cursor = cursor_;
            one.failure = {};
        }
        team->run([&](int thread) { carry(thread, next); });
        cursor_ = threads_[0].cursor;
        for (const Thread& one : threads_) {
            if (one.failure.kind == FailureKind::kNone) continue;
            if (failure_.kind == FailureKind::kNone || one.failure.position < failure_.position) {
                failure_ = one.failure;
                find_culprit(one);
            }
        }
        positions_per_ms_ = static_cast<double>(cursor_.done - from) / std::max(1e-6, elapsed() - started);
        if (positions_per_ms_ == 0.0) positions_per_ms_ = 1.0;
    }
    plan_->teams->give_back(std::move(team));
    return cursor_.done - before;
}

void Run::carry(int number, std::int64_t target) {
    const FlushToZero flush;
    Thread& thread = threads_[static_cast<std::size_t>(number)];
    Cursor& at = thread.cursor;
    const auto& entries = plan_->entries;
    while (at.done < target) {
        const Entry& entry = entries[at.entry];
        std::int64_t* variables = at.variables.data();
        switch (entry.control) {
            case Control::kLoop:
                variables[entry.variable] = 0;
                break;
            case Control::kWhen: {
                const std::int64_t i = entry.index.at(variables);
                const bool holds = i >= entry.start && i < entry.stop && (i - entry.start) % entry.step == 0;
                if (!holds) at.entry = entry.jump;
                break;
            }
            case Control::kEnd: {
                const Entry& opened = entries[entry.jump];
                if (opened.control != Control::kLoop) break;
                const std::int64_t count = opened.count < 0 ? request_.length : opened.count;
                if (++variables[opened.variable] < count) at.entry = entry.jump;
                break;
            }
            case Control::kBlock: {
                const Block& block = plan_->blocks[entry.block];
                std::int64_t positions = 1;
                if (block.loop >= 0 && request_.free()) {
                    const std::int64_t count = entries[at.entry - 1].count;
                    const std::int64_t left = (count < 0 ? request_.length : count) - variables[block.loop];
                    positions = std::min(left, target - at.done);
                }
                run_block(number, thread, block, positions);
                // Threads that meet at the block's end all see the flag; those that never meet stop on their own.
                if (plan_->sharing == Sharing::kSteps ? failed_.load(std::memory_order_acquire)
                                                      : thread.failure.kind != FailureKind::kNone) {
                    return;
                }
                at.done += block.completes ? positions : 0;
                if (block.loop >= 0) variables[block.loop] += positions - 1;
                break;
            }
        }
        ++at.entry;
    }
}

void Run::run_block(int number, Thread& thread, const Block& block, std::int64_t positions) {
    Frame frame{.request = request_,
                .spaces = spaces_.data(),
                .variables = thread.cursor.variables.data(),
                .workspace = thread.workspace,
                .failure = thread.failure,
                .done = thread.cursor.done,
                .row_begin = 0,
                .row_end = 0,
                .unit_begin = 0,
                .unit_end = 0,
                .positions = positions};
    const auto await = [&](int other, std::uint64_t count, Fetch& next) {
        const auto o = static_cast<std::size_t>(other);
        const std::uint64_t wanted = thread.base[o] + count;
        Spin spin;
        while (thread.heard[o] < wanted) {
            thread.heard[o] = progress_[o].tasks.load(std::memory_order_acquire);
            if (thread.heard[o] < wanted && !next()) spin();
        }
    };
    // What the next task goes on from, if it is known to be complete: where another thread wrote it, it comes from that
    // core's cache, and no product of the task could begin before.
    const auto ask_for_sums = [&](const Task& task) {
        const Place* begun = task.step->begun();
        if (!begun) return;
        for (int w = task.wait_begin; w < task.wait_end; ++w) {
            const Wait& wait = block.waits[static_cast<std::size_t>(w)];
            const auto o = static_cast<std::size_t>(wait.thread);
            if (thread.heard[o] < thread.base[o] + wait.count) return;
        }
        const float* sums = spaces_[static_cast<std::size_t>(begun->space)].data + begun->find(frame.variables);
        constexpr std::int64_t kLine = 16;
        for (std::int64_t i = 0; i < begun->width; i += kLine) __builtin_prefetch(sums + i);
    };
    auto& own = progress_[static_cast<std::size_t>(number)].tasks;
    std::uint64_t signalled = thread.base[static_cast<std::size_t>(number)];
    const std::vector<Task>& tasks = block.tasks[static_cast<std::size_t>(number)];
    for (std::size_t k = 0; k < tasks.size(); ++k) {
        const Task& task = tasks[k];
        Fetch next(task.reads);
        for (int w = task.wait_begin; w < task.wait_end; ++w) {
            const Wait& wait = block.waits[static_cast<std::size_t>(w)];
            await(wait.thread, wait.count, next);
        }
        frame.row_begin = task.row_parts == 1 ? 0 : row_cuts_[static_cast<std::size_t>(task.row_part)];
        frame.row_end = task.row_parts == 1 ? request_.rows : row_cuts_[static_cast<std::size_t>(task.row_part) + 1];
        frame.unit_begin = task.unit_begin;
        frame.unit_end = task.unit_end;
        // What reads no weights is a chain of latencies: meanwhile the next ones can be on their way.
        if (task.reads.count == 0) {
            Fetch ahead(task.next);
            for (int burst = 0; burst < 4; ++burst) ahead();
        }
        if (k + 1 < tasks.size()) ask_for_sums(tasks[k + 1]);
        if (frame.row_begin < frame.row_end) task.step->run(*task.step, frame);
        if (task.signals) {
            if (thread.failure.kind != FailureKind::kNone) failed_.store(true, std::memory_order_release);
            own.store(++signalled, std::memory_order_release);
        }
    }
    if (plan_->sharing == Sharing::kRows) return;
    Fetch next(tasks.empty() ? Reads{} : tasks.back().next);
    for (std::size_t t = 0; t < threads_.size(); ++t) {
        if (static_cast<int>(t) != number) await(static_cast<int>(t), block.signals[t], next);
        thread.base[t] += block.signals[t];
    }
}

// Names the first instruction of the block whose result is not finite, where the draw's parameters are not.
void Run::find_culprit(const Thread& thread) {
    if (failure_.kind != FailureKind::kNotANumber && failure_.kind != FailureKind::kNotFinite) return;
    const Entry& entry = plan_->entries[thread.cursor.entry];
    for (const auto& step : plan_->blocks[entry.block].steps) {
        for (const Place& out : step->outputs) {
            const Space& space = spaces_[static_cast<std::size_t>(out.space)];
            const float* x = space.data + failure_.row * space.row_stride + out.find(thread.cursor.variables.data());
            if (std::any_of(x, x + out.width, [](float one) { return !std::isfinite(one); })) {
                failure_.place = step->place;
                return;
            }
        }
    }
}

int Run::place() const {
    return cursor_.entry < plan_->entries.size() ? plan_->entries[cursor_.entry].place
                                                 : static_cast<int>(plan_->program.code.size());
}

void Run::stand(int place, std::vector<std::int64_t> variables, std::int64_t done) {
    const auto& entries = plan_->entries;
    const auto found = std::find_if(entries.begin(), entries.end(), [&](const Entry& e) { return e.place == place; });
    if (found == entries.end() && place != static_cast<int>(plan_->program.code.size())) {
        throw std::invalid_argument("state: place " + std::to_string(place) + " is within a block of instructions");
    }
    cursor_.entry = static_cast<std::size_t>(found - entries.begin());
    variables.resize(cursor_.variables.size());
    cursor_.variables = std::move(variables);
    cursor_.done = done;
    failure_ = {};
}

void Run::read(std::size_t buffer, float* to) const {
    const auto& where = plan_->layout.buffers[buffer];
    if (const OddsLoop* loop = kept_as_odds(*plan_, buffer)) {
        for (std::int64_t row = 0; row < request_.rows; ++row, to += where.size) {
            state_of(at(loop->odds, row), at(loop->powers, row), to, where.size);
        }
        return;
    }
    for (std::int64_t row = 0; row < request_.rows; ++row) {
        const float* from = spaces_[0].data + row * spaces_[0].row_stride + where.base;
        to = std::copy_n(from, where.size, to);
    }
}

void Run::write(std::size_t buffer, const float* from) {
    const auto& where = plan_->layout.buffers[buffer];
    if (const OddsLoop* loop = kept_as_odds(*plan_, buffer)) {
        const std::int64_t padded = plan_->layout.buffers[static_cast<std::size_t>(loop->odds)].size;
        for (std::int64_t row = 0; row < request_.rows; ++row, from += where.size) {
            odds_of(from, where.size, at(loop->odds, row), at(loop->powers, row), padded);
        }
        return;
    }
    for (std::int64_t row = 0; row < request_.rows; ++row) {
        std::copy_n(from, where.size, spaces_[0].data + row * spaces_[0].row_stride + where.base);
        from += where.size;
    }
}

void Run::read_own(float* to) const {
    for (std::int64_t row = 0; row < request_.rows; ++row) {
        for (const OddsLoop& loop : plan_->odds) {
            const std::int64_t size = plan_->layout.buffers[static_cast<std::size_t>(loop.odds)].size;
            for (const int buffer : {loop.odds, loop.powers}) to = std::copy_n(at(buffer, row), size, to);
        }
    }
}

void Run::write_own(const float* from) {
    for (std::int64_t row = 0; row < request_.rows; ++row) {
        for (const OddsLoop& loop : plan_->odds) {
            const std::int64_t size = plan_->layout.buffers[static_cast<std::size_t>(loop.odds)].size;
            for (const int buffer : {loop.odds, loop.powers}) {
                std::copy_n(from, size, at(buffer, row));
                from += size;
            }
        }
    }
}

float* Run::at(int buffer, std::int64_t row) const {
    const auto& where = plan_->layout.buffers[static_cast<std::size_t>(buffer)];
    return spaces_[0].data + row * spaces_[0].row_stride + where.base;
}

}  // namespace fastar::cpu
