// References with everything resolved that is known when a run is planned: what is left are a few products of loop
// variables.
#pragma once

#include <cstdint>

#include "cpu/executor/program.h"

namespace fastar::cpu {

constexpr int kMaxTerms = 4;
constexpr int kMaxCoordinates = 3;

struct Slot {
    std::int64_t constant = 0;
    std::int64_t divisor = 1;
    std::int64_t coefficient[kMaxTerms] = {};
    int variable[kMaxTerms] = {};
    int terms = 0;

    std::int64_t at(const std::int64_t* variables) const {
        std::int64_t value = constant;
        for (int i = 0; i < terms; ++i) value += coefficient[i] * variables[variable[i]];
        if (divisor == 1) return value;
        const std::int64_t quotient = value / divisor;
        return quotient - (value % divisor < 0);
    }
};

// Channels of a vector of one row's buffer, as an offset from the row's first number in its space.
struct Place {
    int space = 0;  // 0: the arena of states and scratch; i > 0: input i - 1
    std::int64_t base = 0;
    std::int64_t width = 0;
    int coordinates = 0;
    bool ring = false;
    Slot at[kMaxCoordinates];
    std::int64_t size[kMaxCoordinates] = {};
    std::int64_t stride[kMaxCoordinates] = {};
    Slot offset;

    std::int64_t find(const std::int64_t* variables) const {
        std::int64_t where = base + offset.at(variables);
        for (int c = 0; c < coordinates; ++c) {
            const std::int64_t i = at[c].at(variables);
            where += (c == 0 && ring ? i % size[0] : i) * stride[c];
        }
        return where;
    }

    // The offset with a tap added to the coordinates, or -1 where that is outside.
    std::int64_t find_tap(const std::int64_t* variables, const std::int64_t* tap) const {
        std::int64_t where = base + offset.at(variables);
        for (int c = 0; c < coordinates; ++c) {
            std::int64_t i = at[c].at(variables) + tap[c];
            const bool wraps = c == 0 && ring;
            if (i < 0 || (i >= size[c] && !wraps)) return -1;
            if (wraps) i %= size[0];
            where += i * stride[c];
        }
        return where;
    }
};

// Throws std::invalid_argument for an index of more terms than this executor takes.
Slot resolve(const Index& index);

// Where every buffer lies in a row's arena; inputs lie in spaces of their own.
struct Layout {
    struct Where {
        int space;
        std::int64_t base;
        std::int64_t size;
    };
    std::vector<Where> buffers;
    std::int64_t row_stride;
    int inputs;

    explicit Layout(const Program& program);
    Place resolve(const Program& program, const Ref& ref) const;
};

}  // namespace fastar::cpu
