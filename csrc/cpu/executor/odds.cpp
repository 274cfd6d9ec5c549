#include "cpu/executor/odds.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "cpu/dispatch.h"

namespace fastar::cpu {
namespace {

constexpr std::int64_t kLongestPeriod = 64;

// variable + constant
bool follows(const Index& index, int variable) {
    return index.divisor == 1 && index.terms.size() == 1 && index.terms[0] == std::pair{variable, std::int64_t{1}};
}

bool covers(const Program& program, const Ref& ref) {
    const Buffer& buffer = program.buffers[static_cast<std::size_t>(ref.buffer)];
    return buffer.shape.size() == 1 && ref.width == buffer.shape[0];
}

int uses(const Program& program, int buffer) {
    int count = 0;
    for (const Instruction& i : program.code) {
        for (const auto* ref : {&i.out, &i.source, &i.add, &i.other, &i.hidden, &i.cell, &i.cell_out, &i.log_prob}) {
            count += *ref && (*ref)->buffer == buffer;
        }
        count += i.op == Op::kAttention ? (i.keys == buffer) + (i.values == buffer) : 0;
    }
    return count;
}

// How many rows of the table in a row move no unit's odds by more than 2^kOddsMove: a power of two, or 0.
std::int64_t longest_period(const Weight& table, double scale) {
    const std::int64_t rows = table.shape[0];
    const std::int64_t width = table.shape[1];
    const double most = kOddsMove * std::numbers::ln2;
    std::vector<double> moved(static_cast<std::size_t>(width));
    for (std::int64_t period = kLongestPeriod; period > 0; period /= 2) {
        std::fill(moved.begin(), moved.end(), 0.0);
        bool fits = true;
        for (std::int64_t row = 0; row < rows && fits; ++row) {
            for (std::int64_t i = 0; i < width; ++i) {
                double& sum = moved[static_cast<std::size_t>(i)];
                sum += std::fabs(scale * table.floats[row * width + i]);
                if (row >= period) sum -= std::fabs(scale * table.floats[(row - period) * width + i]);
                // Written so that what is not a number does not fit.
                fits = fits && sum <= most;
            }
        }
        if (fits) return period;
    }
    return 0;
}

bool is_finite(const Program& program, int weight) {
    if (weight < 0) return true;
    const Weight& w = program.weights[static_cast<std::size_t>(weight)];
    return std::all_of(w.floats, w.floats + w.shape[0], [](float x) { return std::fabs(x) < 1e6f; });
}

bool fits_together(const Program& program, const Instruction& loop, const Instruction* i) {
    const Instruction& accumulate = i[0];
    const Instruction& readout = i[1];
    const Instruction& draw = i[2];
    if (loop.op != Op::kLoop || accumulate.op != Op::kAccumulate || readout.op != Op::kReadout ||
        draw.op != Op::kDraw || i[3].op != Op::kEnd) {
        return false;
    }
    const int v = loop.variable;
    return draw.head.kind == HeadKind::kBernoulli && !draw.out && program.channels == 1 && program.levels == 2 &&
           follows(*draw.position, v) && draw.position->constant == 0 && draw.source->buffer == readout.out->buffer &&
           readout.function == Function::kSigmoid && readout.out->width == 1 && covers(program, *readout.out) &&
           readout.source->buffer == accumulate.out->buffer && covers(program, *accumulate.out) &&
           covers(program, *readout.source) && follows(*readout.index, v) && follows(*accumulate.index, v) &&
           follows(*accumulate.position, v) && accumulate.position->constant == -1 && accumulate.shift == 0.0 &&
           uses(program, accumulate.out->buffer) == 2;
}

}  // namespace

std::vector<OddsLoop> keep_odds(Program& program) {
    std::vector<OddsLoop> loops;
    for (std::size_t at = 1; at + 3 < program.code.size(); ++at) {
        if (!fits_together(program, program.code[at - 1], &program.code[at])) continue;
        const Instruction& accumulate = program.code[at];
        const int state = accumulate.out->buffer;
        const Buffer& buffer = program.buffers[static_cast<std::size_t>(state)];
        const Weight& table = program.weights[static_cast<std::size_t>(accumulate.weight)];
        const std::int64_t period = longest_period(table, accumulate.scale);
        if (period == 0 || !is_finite(program, buffer.init)) continue;
        const std::int64_t padded = (buffer.shape[0] + kOddsBlock - 1) / kOddsBlock * kOddsBlock;
        const auto number = static_cast<int>(program.buffers.size());
        loops.push_back({at, program.code[at - 1].variable, period, state, number, number + 1});
        for (const char* name : {"odds", "powers"}) {
            program.buffers.push_back(
                {.name = name, .kind = BufferKind::kState, .shape = {padded}, .ring = false, .init = -1});
        }
    }
    return loops;
}

void odds_of(const float* state, std::int64_t width, float* odds, float* powers, std::int64_t padded) {
    for (std::int64_t i = 0; i < padded; ++i) {
        const double exponent = i < width ? -static_cast<double>(state[i]) * std::numbers::log2e : 0.0;
        const double whole = std::floor(exponent);
        odds[i] = static_cast<float>(std::exp2(exponent - whole));
        powers[i] = static_cast<float>(whole);
    }
    kernels().executor.balance_odds(odds, powers, padded);
}

void state_of(const float* odds, const float* powers, float* state, std::int64_t width) {
    for (std::int64_t i = 0; i < width; ++i) {
        state[i] = static_cast<float>(-(std::log2(static_cast<double>(odds[i])) + powers[i]) * std::numbers::ln2);
    }
}

namespace {

constexpr std::int64_t kStretch = 64;
// Rows that go side by side: the chain from a bit to the next one leaves a core half idle.
constexpr std::int64_t kTogether = 8;

struct Walker {
    double bars[kStretch];
    float logits[kStretch];
    float values[kStretch];
    float* odds;
    float* powers;
    bool last;
};

void prepare(Walker& w, const Request& r, std::int64_t row, std::int64_t position, std::int64_t count) {
    if (r.greedy) {
        std::fill_n(w.bars, count, 0.0);
        return;
    }
    if (r.uniforms) {
        for (std::int64_t i = 0; i < count; ++i) {
            const double u = r.uniforms[(row * r.length + position + i) * r.uniform_draws];
            w.bars[i] = std::log(u / (1 - u));
        }
    } else {
        kernels().executor.coin_bars(static_cast<std::uint64_t>(r.seeds[row]),
                                     static_cast<std::uint64_t>(r.row_numbers[row]),
                                     static_cast<std::uint32_t>(position + r.position_offset), w.bars, count);
    }
    for (std::int64_t i = 0; i < count; ++i) w.bars[i] *= r.temperature;
}

// Values and log-probabilities of a stretch, as far as the row still runs.
void conclude(const Walker& w, const OddsStep& s, Frame& frame, std::int64_t row, std::int64_t position,
              std::int64_t count) {
    const Request& r = frame.request;
    const std::int64_t active = std::clamp<std::int64_t>(r.lengths[row] - frame.done, 0, count);
    float log_probs[kStretch];
    kernels().executor.coin_log_probs(w.logits, w.values, log_probs, active);
    double sum = r.log_prob[row];
    for (std::int64_t i = 0; i < active; ++i) {
        if (w.logits[i] != w.logits[i]) {
            frame.done += i;
            return frame.fail(FailureKind::kNotANumber, row, s.readout_place);
        }
        r.values[row * r.length + position + i] = w.values[i];
        sum += log_probs[i];
    }
    r.log_prob[row] = sum;
}

// Applies the last bit of a row, and returns the next one's logit.
inline float step_once(const OddsStep& s, const ExecutorKernels& kernel, Walker& w, std::int64_t v) {
    const std::int64_t at = v + s.first_weight;
    // Before the first position there is nothing to apply, and no row of factors to be looked at.
    const float* factors = s.factors + (v > 0 ? (v + s.first_factor) * s.width : 0);
    const float dot = kernel.odds_dot(w.odds, w.last, factors, s.weights + at * s.width, s.width);
    if ((v & (s.period - 1)) == 0) kernel.balance_odds(w.odds, w.powers, s.width);
    return dot + (s.bias ? s.bias[at] : 0.0f);
}

}  // namespace

void run_odds(const Step& step, Frame& frame) {
    const auto& s = static_cast<const OddsStep&>(step);
    const Request& r = frame.request;
    const std::int64_t first = frame.variables[s.variable];
    const Space& space = frame.spaces[0];
    const ExecutorKernels& kernel = kernels().executor;
    const auto begin = [&](Walker& w, std::int64_t row, std::int64_t v) {
        w.odds = space.data + row * space.row_stride + s.odds.base;
        w.powers = space.data + row * space.row_stride + s.powers.base;
        w.last = v > 0 && r.values[row * r.length + v - 1] > 0.5;
    };
    if (!r.free()) {
        for (std::int64_t row = frame.row_begin; row < frame.row_end; ++row) {
            Walker w;
            begin(w, row, first);
            space.data[row * space.row_stride + s.out.base] = step_once(s, kernel, w, first);
        }
        return run_draw(*s.draw, frame);
    }
    Walker walkers[kTogether];
    const std::int64_t done = frame.done;
    for (std::int64_t from = 0; from < frame.positions; from += kStretch) {
        const std::int64_t count = std::min(kStretch, frame.positions - from);
        for (std::int64_t row = frame.row_begin; row < frame.row_end; row += kTogether) {
            const std::int64_t together = std::min(kTogether, frame.row_end - row);
            for (std::int64_t k = 0; k < together; ++k) {
                begin(walkers[k], row + k, first + from);
                prepare(walkers[k], r, row + k, first + from, count);
            }
            for (std::int64_t i = 0; i < count; ++i) {
                for (std::int64_t k = 0; k < together; ++k) {
                    Walker& w = walkers[k];
                    w.logits[i] = step_once(s, kernel, w, first + from + i);
                    w.last = w.logits[i] > w.bars[i];
                    w.values[i] = w.last ? 1.0f : 0.0f;
                }
            }
            frame.done = done + from;
            for (std::int64_t k = 0; k < together; ++k) {
                conclude(walkers[k], s, frame, row + k, first + from, count);
                if (frame.failure.kind != FailureKind::kNone) return;
            }
        }
    }
}

}  // namespace fastar::cpu
