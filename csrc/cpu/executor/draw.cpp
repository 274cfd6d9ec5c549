// Draws and emits: the steps that complete positions.
#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

#include "common/mixture.h"
#include "common/philox.h"
#include "cpu/dispatch.h"
#include "cpu/executor/choice.h"
#include "cpu/executor/steps.h"

namespace fastar::cpu {
namespace {

const float* channels_of(const Place& place, const Frame& frame, std::int64_t row) {
    const Space& space = frame.spaces[place.space];
    return space.data + row * space.row_stride + place.find(frame.variables);
}

bool is_discrete(const Head& head) {
    return head.kind == HeadKind::kBernoulli || head.kind == HeadKind::kCategorical;
}

struct Uniforms {
    const Frame& frame;
    std::int64_t row;
    std::int64_t position;

    double operator()(const Head& head, std::int64_t draw) const {
        const Request& r = frame.request;
        if (r.uniforms) return r.uniforms[(row * r.length + position) * r.uniform_draws + draw];
        const PhiloxWords words =
            philox(static_cast<std::uint64_t>(r.seeds[row]), static_cast<std::uint64_t>(r.row_numbers[row]),
                   static_cast<std::uint32_t>(position + r.position_offset), static_cast<std::uint32_t>(draw));
        const bool fine = head.kind == HeadKind::kNormal || (!is_discrete(head) && draw > 0);
        return fine ? continuous_uniform(words) : static_cast<double>(discrete_uniform(words));
    }
};

// One row's draw from a head of levels: the value if it is not given, and the log-probability of either.
struct Outcome {
    FailureKind failure = FailureKind::kNone;
    double log_prob = 0.0;
};

Outcome draw_bernoulli(const float* params, const Request& r, const ChoiceOptions& options, const Uniforms& u,
                       const Head& head, const double* known, std::int32_t* order, double* value) {
    const double z = params[0];
    if (z != z) return {FailureKind::kNotANumber};
    bool drawn = false;
    if (known) {
        *value = *known;
    } else if (r.greedy && !options.allowed) {
        *value = z > 0 ? 1.0 : 0.0;
    } else if (!options.allowed && options.top_k == 0 && options.top_p == 0) {
        drawn = true;
    } else {
        double both[2] = {0.0, z};
        restrict_to(both, 2, options, order);
        // 1 comes first: it is drawn where u is below its probability.
        std::swap(both[0], both[1]);
        const std::int64_t k = pick_from_logits(both, 2, u(head, 0));
        if (k < 0) return {FailureKind::kNoSupport};
        *value = static_cast<double>(1 - k);
    }
    if (drawn) {
        // u < sigmoid(z / t) without a function of z: at one row the next step waits for this value, while the logit of
        // u is known long before.
        const double uniform = u(head, 0);
        const double bar = options.temperature * std::log(uniform / (1 - uniform));
        // 1 where z > bar. Written as a comparison it is compiled to a branch, and half of the guesses are wrong.
        *value = 0.5 - std::copysign(0.5, bar - z);
    }
    // Without a branch on the value, which nothing can guess; and the logarithm of 2 + 2e less that of 2, since near 1
    // it takes another way.
    const double against = z * (1 - 2 * *value);
    const double log1p_e = std::log(2 + 2 * std::exp(-std::fabs(z))) - std::numbers::ln2;
    return {FailureKind::kNone, -std::max(against, 0.0) - log1p_e};
}

Outcome draw_categorical(const float* z, std::int64_t n, const ChoiceOptions& options, const Uniforms& u,
                         const Head& head, const double* known, Workspace& workspace, double* value) {
    const ExecutorKernels& kernel = kernels().executor;
    constexpr std::int64_t kBlock = 16;
    const float top = kernel.largest(z, n);
    if (top != top) return {FailureKind::kNotANumber};
    if (top == -INFINITY) return {FailureKind::kNoSupport};
    float* e = workspace.floats.data();
    double* sums = workspace.doubles.data();
    kernel.exponentials(z, top, e, sums, n);
    const std::int64_t blocks = (n + kBlock - 1) / kBlock;
    double total = 0;
    for (std::int64_t i = 0; i < blocks; ++i) total += sums[i];
    const bool plain =
        options.temperature == 1.0 && options.top_k == 0 && options.top_p == 0 && !options.greedy && !options.allowed;
    if (known) {
        *value = *known;
    } else if (plain) {
        const double bar = u(head, 0) * total;
        double sum = 0;
        std::int64_t block = 0;
        // The block in which the sum passes the bar, then the level; the last with probability where rounding hides it.
        while (block + 1 < blocks && sum + sums[block] <= bar) sum += sums[block++];
        std::int64_t k = block * kBlock;
        for (; k < n; ++k) {
            sum += e[k];
            if (sum > bar) break;
        }
        if (k == n) {
            for (k = n - 1; e[k] == 0; --k) {
            }
        }
        *value = static_cast<double>(k);
    } else {
        double* wide = workspace.doubles.data() + blocks;
        for (std::int64_t k = 0; k < n; ++k) wide[k] = z[k];
        restrict_to(wide, n, options, workspace.order.data());
        const std::int64_t k = pick_from_logits(wide, n, u(head, 0));
        if (k < 0) return {FailureKind::kNoSupport};
        *value = static_cast<double>(k);
    }
    const double chosen = z[static_cast<std::int64_t>(*value)];
    return {FailureKind::kNone, chosen - static_cast<double>(top) - std::log(total)};
}

Outcome draw_continuous(const DrawStep& s, const float* params, Frame& frame, std::int64_t row, std::int64_t position,
                        const double* known, double* value) {
    const Request& r = frame.request;
    const Head& head = s.head;
    for (std::int64_t i = 0; i < s.params->width; ++i) {
        if (params[i] != params[i]) return {FailureKind::kNotANumber};
    }
    const MixtureParameters parameters{params, frame.workspace.doubles.data()};
    if (known) {
        std::copy_n(known, head.channels, value);
    } else {
        const Uniforms uniforms{frame, row, position};
        double u[1 + kMaxChannels];
        const std::int64_t draws = head.kind == HeadKind::kNormal ? 1 : 1 + head.channels;
        for (std::int64_t d = 0; d < draws; ++d) u[d] = uniforms(head, d);
        const std::int64_t at = ((r.range_per_row ? row : 0) * r.length + position) * s.channels;
        const bool bounded = r.low && !s.out;
        const Bounds support{bounded ? r.low + at : nullptr, bounded ? r.high + at : nullptr};
        if (!draw_mixture(head, parameters, u, r.temperature, r.greedy, support, s.integer, value)) {
            return {FailureKind::kNoSupport};
        }
        // What is drawn is what the caller gets: a number of the run's activation type.
        if (!s.integer) {
            for (std::int64_t c = 0; c < head.channels; ++c) value[c] = static_cast<float>(value[c]);
        }
    }
    return {FailureKind::kNone, mixture_log_prob(head, parameters, value, s.integer)};
}

// Writes the position's value, and ends the row where it drew the stop symbol.
void complete(const Request& r, std::int64_t channels, std::int64_t row, std::int64_t done, const double* value) {
    double* to = r.values + (row * r.length + done) * channels;
    for (std::int64_t c = 0; c < channels; ++c) to[c] = value[c];
    if (r.stop >= 0 && value[0] == static_cast<double>(r.stop)) r.lengths[row] = done + 1;
}

}  // namespace

void run_draw(const Step& step, Frame& frame) {
    const auto& s = static_cast<const DrawStep&>(step);
    const Request& r = frame.request;
    const std::int64_t position = s.position.at(frame.variables);
    double value[kMaxChannels];
    for (std::int64_t row = frame.row_begin; row < frame.row_end; ++row) {
        // What an ended row goes on computing has no effect, so its draws are left out; noise is still wanted.
        if (frame.done >= r.lengths[row] && !s.out) continue;
        const double* known = nullptr;
        if (r.given && !s.out) {
            known = r.given + (row * r.length + position) * s.channels;
            if (*known != *known) known = nullptr;
        }
        if (s.head.kind == HeadKind::kGiven) {
            if (!known) return frame.fail(FailureKind::kNotGiven, row, s.place);
            complete(r, s.channels, row, frame.done, known);
            continue;
        }
        const float* params = channels_of(*s.params, frame, row);
        const Uniforms uniforms{frame, row, position};
        ChoiceOptions options{r.temperature, s.out ? 0 : r.top_k, s.out ? 0.0 : r.top_p, r.greedy, nullptr};
        if (r.levels && !s.out) {
            options.allowed = r.levels + ((r.levels_per_row ? row : 0) * r.length + position) * s.levels;
        }
        Outcome outcome;
        if (s.head.kind == HeadKind::kBernoulli) {
            outcome = draw_bernoulli(params, r, options, uniforms, s.head, known, frame.workspace.order.data(), value);
        } else if (s.head.kind == HeadKind::kCategorical) {
            outcome = draw_categorical(params, s.head.levels, options, uniforms, s.head, known, frame.workspace, value);
        } else {
            outcome = draw_continuous(s, params, frame, row, position, known, value);
        }
        if (outcome.failure != FailureKind::kNone) return frame.fail(outcome.failure, row, s.place);
        const bool active = frame.done < r.lengths[row];
        if (active) r.log_prob[row] += outcome.log_prob;
        if (s.out) {
            *const_cast<float*>(channels_of(*s.out, frame, row)) = static_cast<float>(value[0]);
            continue;
        }
        if (known) r.log_weight[row] += outcome.log_prob;
        complete(r, s.channels, row, frame.done, value);
    }
}

void run_emit(const Step& step, Frame& frame) {
    const auto& s = static_cast<const EmitStep&>(step);
    const Request& r = frame.request;
    double value[kMaxChannels];
    for (std::int64_t row = frame.row_begin; row < frame.row_end; ++row) {
        if (frame.done >= r.lengths[row]) continue;
        const float* x = channels_of(s.source, frame, row);
        for (std::int64_t c = 0; c < s.channels; ++c) {
            if (!std::isfinite(x[c])) return frame.fail(FailureKind::kNotFinite, row, s.place);
            value[c] = x[c];
        }
        if (s.log_prob) r.log_prob[row] += *channels_of(*s.log_prob, frame, row);
        complete(r, s.channels, row, frame.done, value);
    }
}

}  // namespace fastar::cpu
