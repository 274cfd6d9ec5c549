// Draws and emits: the commands that complete positions.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/mixture.h"
#include "common/philox.h"
#include "cuda/choice.cuh"
#include "cuda/context.cuh"

namespace fastar::cuda {

struct Drawing {
    const Context& x;
    const Command& c;
    const Head& law;
    int r;
    int position;

    FASTAR_DEVICE std::int64_t row() const { return x.first_row + r; }
    // Noise is wanted whatever the caller asks of values.
    FASTAR_DEVICE bool is_noise() const { return c.out.present(); }

    FASTAR_DEVICE double uniform(int draw) const {
        const Run& run = x.run;
        if (run.uniforms != nullptr) {
            return run.uniforms[(row() * run.length + position) * run.uniform_draws + draw];
        }
        const PhiloxWords words =
            philox(static_cast<std::uint64_t>(run.seeds[row()]), static_cast<std::uint64_t>(run.row_numbers[row()]),
                   static_cast<std::uint32_t>(position + run.position_offset), static_cast<std::uint32_t>(draw));
        const bool discrete = law.kind == HeadKind::kBernoulli || law.kind == HeadKind::kCategorical;
        const bool fine = law.kind == HeadKind::kNormal || (!discrete && draw > 0);
        return fine ? continuous_uniform(words) : static_cast<double>(discrete_uniform(words));
    }
    // The value where it is given, else null.
    FASTAR_DEVICE const double* known() const {
        if (x.run.given == nullptr || is_noise()) return nullptr;
        const double* at = x.run.given + (row() * x.run.length + position) * x.run.channels;
        return *at != *at ? nullptr : at;
    }
    FASTAR_DEVICE const std::uint8_t* allowed() const {
        if (x.run.support == nullptr || is_noise()) return nullptr;
        return x.run.support + ((x.run.levels_per_row ? row() : 0) * x.run.length + position) * x.run.levels;
    }
    FASTAR_DEVICE ChoiceOptions options() const {
        return {x.run.temperature, is_noise() ? 0 : x.run.top_k, is_noise() ? 0.0 : x.run.top_p, allowed()};
    }

    // Writes the position's value, and ends the row where it drew the stop symbol.
    FASTAR_DEVICE void complete(const double* value) const {
        const Run& run = x.run;
        double* to = x.values(r, x.done);
        for (int v = 0; v < run.channels; ++v) to[v] = value[v];
        double* at_hand = drawn_at(run, x.layout, r, x.done);
        for (int i = 0; i < x.team.size && x.team.schedule != Schedule::kGrid; ++i) {
            for (int v = 0; v < run.channels; ++v) {
                if (x.team.size > 1) {
                    put_in_block(at_hand + v, static_cast<unsigned>(i), value[v]);
                } else {
                    at_hand[v] = value[v];
                }
            }
        }
        if (run.handed != nullptr) hand_over(value);
        if (run.stop >= 0 && value[0] == static_cast<double>(run.stop)) x.length(r) = x.done + 1;
    }
    FASTAR_DEVICE void hand_over(const double* value) const {
        double* to = x.run.handed + (row() * x.run.length + x.done) * x.run.channels;
        for (int v = 0; v < x.run.channels; ++v) to[v] = value[v];
    }
    // By one thread: the sums are the block's that always draws for this row.
    FASTAR_DEVICE void keep(const double* value, double log_prob, bool was_known) const {
        double* sums = reinterpret_cast<double*>(shared_memory() + x.layout.sums) + 2 * r;
        if (x.done < x.length(r)) sums[0] += log_prob;
        if (is_noise()) {
            x.put(c, c.out, x.row(c.out, r), static_cast<float>(value[0]));
            return;
        }
        if (was_known) sums[1] += log_prob;
        complete(value);
    }
};

FASTAR_DEVICE_CALL void draw_bernoulli(const Drawing& d) {
    const double z = *d.x.row(d.c.source, d.r);
    if (z != z) return d.x.fail(FailureKind::kNotANumber, d.c.place, d.r);
    const double* known = d.known();
    double value = 0.0;
    if (known != nullptr) {
        value = *known;
    } else {
        const ChoiceOptions options = d.options();
        double zero = 0.0;
        double one = z / options.temperature;
        if (options.allowed != nullptr && options.allowed[0] == 0) zero = -INFINITY;
        if (options.allowed != nullptr && options.allowed[1] == 0) one = -INFINITY;
        const double top = one > zero ? one : zero;
        if (top == -INFINITY) return d.x.fail(FailureKind::kNoSupport, d.c.place, d.r);
        const double likelier = 1.0 / (1.0 + exp(-fabs(one - zero)));
        const bool alone =
            d.x.run.greedy != 0 || options.top_k == 1 || (options.top_p > 0.0 && likelier >= options.top_p);
        if (alone || zero == -INFINITY || one == -INFINITY) {
            value = one > zero ? 1.0 : 0.0;
        } else {
            // u < sigmoid(one), without a function of the logit: that of u can be had before it.
            const double u = d.uniform(0);
            value = one > log(u / (1.0 - u)) ? 1.0 : 0.0;
        }
    }
    const double against = z * (1.0 - 2.0 * value);
    d.keep(&value, -(against > 0.0 ? against : 0.0) - log1p(exp(-fabs(z))), known != nullptr);
}

FASTAR_DEVICE_CALL void draw_continuous(const Drawing& d) {
    const Run& run = d.x.run;
    const float* params = d.x.row(d.c.source, d.r);
    for (int i = 0; i < d.c.source.width; ++i) {
        if (params[i] != params[i]) return d.x.fail(FailureKind::kNotANumber, d.c.place, d.r);
    }
    const bool integer = run.levels > 0 && !d.is_noise();
    double* scratch = reinterpret_cast<double*>(shared_memory() + d.x.layout.mixture) +
                      static_cast<std::int64_t>(d.r) * 2 * run.where.most_components;
    const MixtureParameters parameters{params, scratch};
    double value[kMaxChannels];
    const auto channels = static_cast<int>(d.law.channels);
    const double* known = d.known();
    if (known != nullptr) {
        for (int v = 0; v < channels; ++v) value[v] = known[v];
    } else {
        double u[1 + kMaxChannels];
        const int draws = d.law.kind == HeadKind::kNormal ? 1 : 1 + channels;
        for (int i = 0; i < draws; ++i) u[i] = d.uniform(i);
        const std::int64_t at = ((run.range_per_row ? d.row() : 0) * run.length + d.position) * run.channels;
        const bool bounded = run.low != nullptr && !d.is_noise();
        const Bounds support{bounded ? run.low + at : nullptr, bounded ? run.high + at : nullptr};
        if (!draw_mixture(d.law, parameters, u, run.temperature, run.greedy != 0, support, integer, value)) {
            return d.x.fail(FailureKind::kNoSupport, d.c.place, d.r);
        }
        // What is drawn is what the caller gets: a number of the run's activation type.
        for (int v = 0; v < channels && !integer; ++v) value[v] = static_cast<float>(value[v]);
    }
    d.keep(value, mixture_log_prob(d.law, parameters, value, integer), known != nullptr);
}

FASTAR_DEVICE void draw_categorical(const Drawing& d, const Chooser& crew) {
    const double* known = d.known();
    const Choice choice = choose(crew, d.x.row(d.c.source, d.r), static_cast<int>(d.law.levels), d.options(),
                                 d.uniform(0), known != nullptr ? static_cast<int>(*known) : -1, d.x.run.greedy != 0);
    if (crew.rank != 0) return;
    if (choice.failure != FailureKind::kNone) return d.x.fail(choice.failure, d.c.place, d.r);
    const double value = choice.level;
    d.keep(&value, choice.log_prob, known != nullptr);
}

// Row r is always drawn by block r mod blocks of the team, which keeps its sums.
FASTAR_DEVICE void run_draw(const Context& x, const Command& c) {
    const Head& law = x.weights<Head>(x.run.where.laws)[c.law];
    const Crew block = x.block_crew();
    const bool by_block = law.kind == HeadKind::kCategorical && law.levels > kWarpLevels;
    double* sums = reinterpret_cast<double*>(shared_memory() + x.layout.choice);
    const Chooser crew = by_block
                             ? Chooser{static_cast<int>(thread_index()), block.warps * kLanes, kBlockSegments, sums}
                             : Chooser{block.lane, kLanes, kWarpSegments, sums + block.warp * kWarpSegments};
    for (int r = x.team.rank, turn = 0; r < x.rows; r += x.team.size, ++turn) {
        if (!by_block && turn % block.warps != block.warp) continue;
        const Drawing d{x, c, law, r, x.index(c.position)};
        // What an ended row goes on computing has no effect, so its draws are left out.
        if (x.done >= x.length(r) && !d.is_noise()) continue;
        if (law.kind == HeadKind::kCategorical) {
            draw_categorical(d, crew);
        } else if (block.lane == 0) {
            if (law.kind == HeadKind::kGiven) {
                const double* known = d.known();
                if (known == nullptr) {
                    x.fail(FailureKind::kNotGiven, c.place, r);
                } else {
                    d.complete(known);
                }
            } else if (law.kind == HeadKind::kBernoulli) {
                draw_bernoulli(d);
            } else {
                draw_continuous(d);
            }
        }
    }
}

FASTAR_DEVICE void run_emit(const Context& x, const Command& c) {
    const Crew block = x.block_crew();
    if (block.lane != 0) return;
    for (int r = x.team.rank, turn = 0; r < x.rows; r += x.team.size, ++turn) {
        if (turn % block.warps != block.warp) continue;
        const Drawing d{x, c, *x.weights<Head>(x.run.where.laws), r, x.done};
        if (x.done >= x.length(r)) continue;
        double value[kMaxChannels];
        const float* source = x.row(c.source, r);
        bool finite = true;
        for (int v = 0; v < x.run.channels; ++v) {
            finite = finite && fabsf(source[v]) < INFINITY;
            value[v] = source[v];
        }
        if (!finite) {
            x.fail(FailureKind::kNotFinite, c.place, r);
            continue;
        }
        if (c.log_prob.present()) {
            reinterpret_cast<double*>(shared_memory() + x.layout.sums)[2 * r] += *x.row(c.log_prob, r);
        }
        d.complete(value);
    }
}

}  // namespace fastar::cuda
