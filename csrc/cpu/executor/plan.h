// A program made ready to run: weights packed, every instruction a step, every step given to threads.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cpu/executor/access.h"
#include "cpu/executor/compile.h"
#include "cpu/executor/matrices.h"
#include "cpu/executor/odds.h"
#include "cpu/executor/places.h"
#include "cpu/executor/program.h"
#include "cpu/executor/team.h"

namespace fastar::cpu {

// How rows and threads meet: every thread alone with its rows, or all threads together at all rows.
enum class Sharing { kRows, kSteps };

struct PlanOptions {
    Precision precision = Precision::kFloat32;
    int threads = 1;
    std::int64_t rows = 1;             // of the runs to expect; a run may have any number
    std::optional<Sharing> sharing;    // absent: whichever the cost model prefers
    std::optional<double> ns_to_hear;  // from one thread to another; absent: measured
};

// A step, or a part of one, in a thread's order. It starts when each awaited thread has come as far as it says.
struct Task {
    const Step* step;
    std::int64_t unit_begin;
    std::int64_t unit_end;
    // The task's rows are those of part row_part of row_parts, which is 1 or the number of threads.
    int row_part;
    int row_parts;
    int wait_begin;  // in Block::waits
    int wait_end;
    bool signals;
    Reads reads;
    Reads next;  // of the next task that reads any; after the last comes the first
};

// Tasks of `thread` that must be complete: how many of its signals in this block.
struct Wait {
    int thread;
    std::uint64_t count;
};

// Sets what tasks in this order read.
void note_reads(std::vector<Task>& tasks);

// Instructions without control flow among them.
struct Block {
    std::vector<std::unique_ptr<Step>> steps;
    std::vector<Accesses> accesses;        // of each step
    std::vector<std::vector<Task>> tasks;  // of each thread
    std::vector<Wait> waits;
    std::vector<std::uint64_t> signals;  // of each thread
    bool completes = false;              // a position
    int loop = -1;                       // the variable of the loop that its one step can run by itself
    double predicted_ns = 0.0;           // per pass, for the rows of the plan's options
};

enum class Control { kLoop, kWhen, kEnd, kBlock };

// An entry of the plan's code: control, or a block.
struct Entry {
    Control control;
    int place;  // of its first instruction in the program's code
    int variable = 0;
    std::int64_t count = -1;  // -1: the length of the run
    Slot index;
    std::int64_t start = 0;
    std::int64_t stop = std::numeric_limits<std::int64_t>::max();
    std::int64_t step = 1;
    std::size_t jump = 0;  // from a loop or when to its end, from an end to its beginning
    std::size_t block = 0;
};

struct Plan {
    Plan(Program program, const PlanOptions& options);

    Program program;  // without its weights' contents
    PlanOptions options;
    std::size_t given_buffers;  // the program's own; the plan's follow
    std::vector<OddsLoop> odds;
    Layout layout;
    WeightStore store;
    std::vector<Block> blocks;
    std::vector<Entry> entries;
    std::vector<std::vector<float>> initial;  // per buffer: the state at the start of a run, empty for zeros
    WorkspaceSizes sizes;
    // Nanoseconds that the cost model expects from one position to the next, as a mean over a run.
    double predicted_ns() const;
    // States that are kept in another form than the program's, as numbers of one row.
    std::int64_t own_floats() const;
    Sharing sharing = Sharing::kRows;
    int threads = 1;          // in use
    double ns_to_hear = 0.0;  // from one thread to another, where threads share steps or might have
    std::unique_ptr<TeamPool> teams;

  private:
    void build(Compiler& compiler);
    void share_rows(int threads);
    void share_steps(int threads);
};

}  // namespace fastar::cpu
