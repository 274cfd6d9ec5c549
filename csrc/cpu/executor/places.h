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
    // What most places come down to, in one cache line: nothing varies, or one coordinate follows one variable.
    enum class Form : std::int32_t { kFixed, kLine, kAny };
    struct Short {
        Form form = Form::kAny;
        std::int32_t variable = 0;
        std::int64_t base = 0;
        std::int64_t constant = 0;
        std::int64_t coefficient = 0;
        std::int64_t size = 0;
        std::int64_t stride = 0;
        std::uint64_t reciprocal = 0;  // of the size of a ring, in units of 2^-64; else 0

        std::int64_t at(const std::int64_t* variables) const { return constant + coefficient * variables[variable]; }

        // i modulo size. Where both fit into 32 bits, the fraction of i times the reciprocal times the size is exactly
        // that; a division would take three times as long.
        std::int64_t wrapped(std::int64_t i) const {
            if (static_cast<std::uint64_t>(i) >> 32 != 0) return i % size;
            const std::uint64_t fraction = reciprocal * static_cast<std::uint64_t>(i);
            return static_cast<std::int64_t>(static_cast<unsigned __int128>(fraction) * size >> 64);
        }
    };

    Short quick;
    int space = 0;  // 0: the arena of states and scratch; i > 0: input i - 1
    std::int64_t base = 0;
    std::int64_t width = 0;
    int coordinates = 0;
    bool ring = false;
    Slot at[kMaxCoordinates];
    std::int64_t size[kMaxCoordinates] = {};
    std::int64_t stride[kMaxCoordinates] = {};
    Slot offset;

    // Once everything else is set.
    void settle();

    std::int64_t find(const std::int64_t* variables) const {
        if (quick.form == Form::kFixed) return quick.base;
        if (quick.form == Form::kLine) {
            const std::int64_t i = quick.at(variables);
            return quick.base + (quick.reciprocal ? quick.wrapped(i) : i) * quick.stride;
        }
        std::int64_t where = base + offset.at(variables);
        for (int c = 0; c < coordinates; ++c) {
            const std::int64_t i = at[c].at(variables);
            where += (c == 0 && ring ? i % size[0] : i) * stride[c];
        }
        return where;
    }

    // The offset with a tap added to the coordinates, or -1 where that is outside.
    std::int64_t find_tap(const std::int64_t* variables, const std::int64_t* tap) const {
        if (quick.form == Form::kLine) {
            const std::int64_t i = quick.at(variables) + tap[0];
            if (i < 0 || (i >= quick.size && !quick.reciprocal)) return -1;
            return quick.base + (quick.reciprocal ? quick.wrapped(i) : i) * quick.stride;
        }
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
