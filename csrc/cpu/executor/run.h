// A run of a plan: its rows' buffers, its place, and the threads that carry it on.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cpu/executor/frame.h"
#include "cpu/executor/plan.h"
#include "cpu/executor/team.h"

namespace fastar::cpu {

class Run {
  public:
    Run(std::shared_ptr<const Plan> plan, Request request);

    // Runs until that many more positions are complete, or about `milliseconds` have passed, or a draw failed; returns
    // how many positions were completed.
    std::int64_t advance(std::int64_t positions, double milliseconds);

    bool finished() const;
    std::int64_t done() const { return cursor_.done; }
    const Failure& failure() const { return failure_; }

    // Where the run stands, in the program's terms: the next entry of the code, and the variables.
    int place() const;
    const std::vector<std::int64_t>& variables() const { return cursor_.variables; }
    // Throws std::invalid_argument for a place at which runs do not pause.
    void stand(int place, std::vector<std::int64_t> variables, std::int64_t done);

    // Copies a buffer's contents [rows, shape] out or in.
    void read(std::size_t buffer, float* to) const;
    void write(std::size_t buffer, const float* from);

    // What the plan keeps in a form of its own, [rows, plan.own_floats()], exactly as it is: `read` and `write` of
    // those states go through the program's form and round.
    void read_own(float* to) const;
    void write_own(const float* from);

    const Request& request() const { return request_; }

  private:
    struct Cursor {
        std::size_t entry = 0;
        std::int64_t done = 0;
        std::vector<std::int64_t> variables;
    };
    struct alignas(64) Progress {
        std::atomic<std::uint64_t> tasks{0};
    };
    // What one thread has of its own.
    struct alignas(64) Thread {
        Workspace workspace;
        Cursor cursor;
        Failure failure;
        std::vector<std::uint64_t> base;   // every thread's progress at the start of the block
        std::vector<std::uint64_t> heard;  // and as last seen
    };

    void carry(int thread, std::int64_t target);
    void run_block(int number, Thread& thread, const Block& block, std::int64_t positions);
    float* at(int buffer, std::int64_t row) const;
    void find_culprit(const Thread& thread);

    std::shared_ptr<const Plan> plan_;
    Request request_;
    AlignedBytes arena_;
    std::vector<Space> spaces_;
    std::vector<std::int64_t> row_cuts_;  // where each thread's rows begin, and the end
    std::vector<Thread> threads_;
    std::vector<Progress> progress_;
    std::atomic<bool> failed_{false};
    Cursor cursor_;
    Failure failure_;
    double positions_per_ms_ = 0.0;
};

}  // namespace fastar::cpu
