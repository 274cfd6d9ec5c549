// What a step sees while it runs: the rows of the run, the place of the loops, and a thread's own workspace.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/executor/matrices.h"
#include "cpu/executor/program.h"

namespace fastar::cpu {

// What the caller of a run asks for; docs/step-programs.md, "Draws". Arrays are borrowed and indexed by row first.
struct Request {
    std::int64_t rows;
    std::int64_t length;
    std::int64_t channels;  // of a value
    const std::int64_t* row_numbers;
    const std::int64_t* seeds;
    std::int64_t* lengths;       // [rows]; shortened where a row draws `stop`
    double* values;              // [rows, length, channels]
    double* log_prob;            // [rows]
    double* log_weight;          // [rows]
    const double* given;         // [rows, length, channels] or null; NaN where unknown
    const std::uint8_t* levels;  // [rows or 1, length, levels] or null
    bool levels_per_row;
    const double* low;  // [rows or 1, length, channels] or null
    const double* high;
    bool range_per_row;
    const double* uniforms;  // [rows, length, draws] or null
    std::int64_t uniform_draws;
    std::int64_t stop;  // -1: none
    std::int64_t position_offset;
    double temperature;
    std::int64_t top_k;  // 0: none
    double top_p;        // 0: none
    bool greedy;
    std::vector<const float*> inputs;
    std::vector<std::int64_t> input_entries;  // of each input's first coordinate

    // Whether nothing but chance and the model decides about the values.
    bool free() const { return !given && !levels && top_k == 0 && top_p == 0.0 && stop < 0; }
};

struct Space {
    float* data;
    std::int64_t row_stride;
};

// Scratch memory of one thread, sized when a run starts.
struct Workspace {
    std::vector<Segment> segments;
    AlignedBytes staging;
    std::vector<float> floats;  // activated inputs, attention scores, exponentials
    std::vector<double> doubles;
    std::vector<std::int32_t> order;
};

// How much of each a plan's steps ask for, for a block of rows.
struct WorkspaceSizes {
    std::size_t segments = 1;
    std::size_t staging = 0;
    std::size_t floats = 0;
    std::size_t doubles = 0;
    std::size_t order = 0;

    void cover(const WorkspaceSizes& other);
};

enum class FailureKind { kNone, kNotANumber, kNoSupport, kNotGiven, kNotFinite };

struct Failure {
    FailureKind kind = FailureKind::kNone;
    std::int64_t row = 0;
    std::int64_t position = 0;
    int place = 0;
};

struct Frame {
    const Request& request;
    const Space* spaces;
    const std::int64_t* variables;
    Workspace& workspace;
    Failure& failure;
    std::int64_t done;  // positions complete
    std::int64_t row_begin;
    std::int64_t row_end;
    std::int64_t unit_begin;
    std::int64_t unit_end;
    std::int64_t positions;  // to complete, for a step that runs its loop itself

    // Keeps the first failure of a thread.
    void fail(FailureKind kind, std::int64_t row, int place) const {
        if (failure.kind == FailureKind::kNone) failure = {kind, row, done, place};
    }
};

// Rows that share a pass over a matrix: their inputs stay in the second cache level.
constexpr std::int64_t kRowBlock = 48;

}  // namespace fastar::cpu
