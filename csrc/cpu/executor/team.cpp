#include "cpu/executor/team.h"

#include <unistd.h>

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

void TeamPool::give_back(std::unique_ptr<Team> team) {
    std::lock_guard lock(mutex_);
    idle_.push_back(std::move(team));
}

}  // namespace fastar::cpu
