// The blocks that run a program together for some rows, and how they meet: the one thing in which schedules differ.
#pragma once

#include <cstdint>

#include "cuda/run.h"
#include "cuda/vocabulary.cuh"

namespace fastar::cuda {

constexpr unsigned long long kNoFailure = ~0ull;

struct Team {
    Schedule schedule;
    int number;
    int rank;
    int size;
    unsigned long long* failure;  // of this block, or of all in a grid
    unsigned* arrivals;           // of a grid
    unsigned met = 0;             // arrivals at the meetings so far

    // Of a grid: this block has waited in vain. It says so in its own memory too, since a look at the team's after
    // every wait would take as long as another wait.
    FASTAR_DEVICE void give_up() const {
        constexpr auto kStuck = static_cast<unsigned long long>(FailureKind::kStuck);
        atomic_min(failure, kStuck);
        *own_word() = kStuck;
    }
    FASTAR_DEVICE bool has_given_up() const { return *own_word() != kNoFailure; }
    FASTAR_DEVICE static unsigned long long* own_word() {
        return reinterpret_cast<unsigned long long*>(shared_memory());
    }

    // Every thread of the team; what was written before is seen after. False where some never came.
    FASTAR_DEVICE bool meet() {
        if (size == 1) {
            barrier();
            return true;
        }
        if (schedule == Schedule::kCluster) {
            cluster_arrive();
            cluster_wait();
            return true;
        }
        barrier();
        met += static_cast<unsigned>(size);
        if (thread_index() == 0) {
            add_release(arrivals, 1);
            if (!await(arrivals, met)) give_up();
        }
        barrier();
        return !has_given_up();
    }
};

}  // namespace fastar::cuda
