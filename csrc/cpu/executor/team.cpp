#include "cpu/executor/team.h"

#include <unistd.h>

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

#include <algorithm>
#include <chrono>
#include <utility>

namespace fastar::cpu {
namespace {

// Between the pieces of one run the next piece comes within microseconds; after this many turns it is a pause.
constexpr int kTurnsBeforeSleep = 6000;

}  // namespace

Team::Team(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { serve(i); });
}

Team::~Team() {
    {
        std::lock_guard lock(mutex_);
        stopping_.store(true, std::memory_order_release);
    }
    wake_.notify_all();
    for (auto& one : workers_) one.join();
}

void Team::run(const std::function<void(int)>& body) {
    if (workers_.empty()) return body(0);
    keep_apart();
    body_ = &body;
    busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    {
        // Under the mutex, so that a worker about to sleep either sees the new count or is woken.
        std::lock_guard lock(mutex_);
        started_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    body(0);
    Spin spin;
    while (busy_.load(std::memory_order_acquire) > 0) spin();
}

// Linux likes to wake a thread where its waker runs, and needs milliseconds to see that both are busy: until then every
// wait lasts until the other gives the core away. Where all cores had been idle, a run of two milliseconds took ten to
// a hundred.
void Team::keep_apart() {
#ifdef __linux__
    const int core = sched_getcpu();
    if (core == caller_core_) return;
    caller_core_ = core;
    cpu_set_t cores;
    if (core < 0 || sched_getaffinity(0, sizeof cores, &cores) != 0 || CPU_COUNT(&cores) < size()) return;
    CPU_CLR(core, &cores);
    for (auto& one : workers_) pthread_setaffinity_np(one.native_handle(), sizeof cores, &cores);
#endif
}

double Team::ns_to_hear() {
    using Clock = std::chrono::steady_clock;
    constexpr auto kTime = std::chrono::microseconds(300);
    // The caller makes the number odd, the first worker even again; below zero it is over.
    alignas(64) std::atomic<std::int64_t> ball{0};
    double ns = 0.0;
    run([&](int thread) {
        const auto await = [&](auto arrived) {
            Spin spin;
            while (!arrived(ball.load(std::memory_order_acquire))) spin();
        };
        if (thread == 1) {
            for (std::int64_t turn = 0; turn >= 0;) {
                await([&](std::int64_t at) { return (turn = at) % 2 != 0 || at < 0; });
                if (turn >= 0) ball.store(turn + 1, std::memory_order_release);
            }
        }
        if (thread != 0) return;
        // The fastest of many rallies: in the others the worker may have been asleep, or another program at work.
        constexpr std::int64_t kTurns = 16;
        constexpr std::int64_t kRallies = 16;
        const auto begin = Clock::now();
        auto now = begin;
        auto fastest = Clock::duration::max();
        std::int64_t turns = 0;
        while (turns < kTurns * kRallies || now - begin < kTime) {
            const auto served = now;
            for (const std::int64_t stop = turns + kTurns; turns < stop; ++turns) {
                ball.store(2 * turns + 1, std::memory_order_release);
                await([&](std::int64_t at) { return at == 2 * turns + 2; });
            }
            now = Clock::now();
            fastest = std::min(fastest, now - served);
        }
        ball.store(-1, std::memory_order_release);
        ns = std::chrono::duration<double, std::nano>(fastest).count() / static_cast<double>(2 * kTurns);
    });
    return ns;
}

void Team::serve(int number) {
    std::uint64_t seen = 0;
    while (true) {
        Spin spin;
        const auto called = [&] {
            return started_.load(std::memory_order_acquire) != seen || stopping_.load(std::memory_order_acquire);
        };
        while (!called()) {
            if (spin.turns() < kTurnsBeforeSleep) {
                spin();
            } else {
                std::unique_lock lock(mutex_);
                wake_.wait(lock, called);
            }
        }
        if (stopping_.load(std::memory_order_acquire)) return;
        ++seen;
        (*body_)(number);
        busy_.fetch_sub(1, std::memory_order_release);
    }
}

TeamPool::~TeamPool() {
    // After a fork the threads are the parent's: their handles are given up, not joined.
    if (owner_ == getpid()) return;
    for (auto& one : idle_) static_cast<void>(one.release());
}

std::unique_ptr<Team> TeamPool::take() {
    std::lock_guard lock(mutex_);
    if (owner_ != getpid()) {
        for (auto& one : idle_) static_cast<void>(one.release());
        idle_.clear();
        owner_ = getpid();
    }
    if (idle_.empty()) return std::make_unique<Team>(threads_);
    std::unique_ptr<Team> team = std::move(idle_.back());
    idle_.pop_back();
    return team;
}

double TeamPool::ns_to_hear() {
    std::unique_ptr<Team> team = take();
    const double ns = team->ns_to_hear();
    give_back(std::move(team));
    return ns;
}

void TeamPool::give_back(std::unique_ptr<Team> team) {
    std::lock_guard lock(mutex_);
    idle_.push_back(std::move(team));
}

}  // namespace fastar::cpu
