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

// Positions whose random numbers are computed together, and their log-probabilities.
constexpr std::int64_t kStretch = 64;
static_assert(kStretch % kLongestPeriod == 0);

struct Walker {
    float bars[kStretch];
    float logits[kStretch];
};

void prepare(Walker& w, const Request& r, std::int64_t row, std::int64_t position, std::int64_t count) {
    if (r.greedy) {
        std::fill_n(w.bars, count, 0.0f);
    } else if (r.uniforms) {
        for (std::int64_t i = 0; i < count; ++i) {
            const double u = r.uniforms[(row * r.length + position + i) * r.uniform_draws];
            w.bars[i] = static_cast<float>(r.temperature * std::log(u / (1 - u)));
        }
    } else {
        kernels().executor.coin_bars(
            static_cast<std::uint64_t>(r.seeds[row]), static_cast<std::uint64_t>(r.row_numbers[row]),
            static_cast<std::uint32_t>(position + r.position_offset), r.temperature, w.bars, count);
    }
}

// Values and log-probabilities of a stretch, as far as the row still runs.
void conclude(const Walker& w, const OddsStep& s, Frame& frame, std::int64_t row, std::int64_t position,
              std::int64_t count) {
    const Request& r = frame.request;
    const std::int64_t active = std::clamp<std::int64_t>(r.lengths[row] - frame.done, 0, count);
    float log_probs[kStretch];
    kernels().executor.coins(w.logits, w.bars, r.values + row * r.length + position, log_probs, active);
    for (std::int64_t i = 0; i < active; ++i) r.log_prob[row] += log_probs[i];
    if (r.log_prob[row] != r.log_prob[row]) {
        frame.done += std::find_if(w.logits, w.logits + active, [](float z) { return z != z; }) - w.logits;
        frame.fail(FailureKind::kNotANumber, row, s.readout_place);
    }
}

// A step's rows on their way from position to position.
class Walk {
  public:
    Walk(const OddsStep& step, const Frame& frame) : s_(step), r_(frame.request), space_(frame.spaces[0]) {}

    void add(std::int64_t row, std::int64_t position, Walker& w) {
        powers_[count_] = at(row, s_.powers);
        rows_[count_++] = {at(row, s_.odds), w.bars, w.logits,
                           position > 0 && r_.values[row * r_.length + position - 1] > 0.5};
    }

    void go(std::int64_t position, std::int64_t positions) {
        for (std::int64_t n = 0; positions > 0; position += n, positions -= n) {
            if (position % s_.period == 0) {
                for (std::int64_t k = 0; k < count_; ++k) {
                    kernels().executor.balance_odds(rows_[k].odds, powers_[k], s_.width);
                }
            }
            // No bit comes before the first position, and no row of factors: any other is looked at.
            n = position == 0 ? 1 : std::min(positions, s_.period - position % s_.period);
            const std::int64_t at = position + s_.first_weight;
            kernels().executor.toss(rows_, count_,
                                    {s_.factors + (position == 0 ? 0 : position + s_.first_factor) * s_.width,
                                     s_.weights + at * s_.width, s_.bias ? s_.bias + at : nullptr, s_.width, n});
            for (std::int64_t k = 0; k < count_; ++k) {
                rows_[k].bars += n;
                rows_[k].logits += n;
            }
        }
    }

  private:
    float* at(std::int64_t row, const Place& place) const { return space_.data + row * space_.row_stride + place.base; }

    const OddsStep& s_;
    const Request& r_;
    const Space& space_;
    OddsRow rows_[kOddsRows];
    float* powers_[kOddsRows];
    std::int64_t count_ = 0;
};

}  // namespace

void run_odds(const Step& step, Frame& frame) {
    const auto& s = static_cast<const OddsStep&>(step);
    const Request& r = frame.request;
    const std::int64_t first = frame.variables[s.variable];
    const Space& space = frame.spaces[0];
    Walker walkers[kOddsRows];
    if (!r.free()) {
        for (std::int64_t row = frame.row_begin; row < frame.row_end; ++row) {
            Walk walk(s, frame);
            walkers[0].bars[0] = 0.0f;
            walk.add(row, first, walkers[0]);
            walk.go(first, 1);
            space.data[row * space.row_stride + s.out.base] = walkers[0].logits[0];
        }
        return run_draw(*s.draw, frame);
    }
    const std::int64_t done = frame.done;
    for (std::int64_t from = 0, count = 0; from < frame.positions; from += count) {
        count = std::min(kStretch - (first + from) % kStretch, frame.positions - from);
        frame.done = done + from;
        for (std::int64_t row = frame.row_begin; row < frame.row_end; row += kOddsRows) {
            const std::int64_t together = std::min(kOddsRows, frame.row_end - row);
            Walk walk(s, frame);
            for (std::int64_t k = 0; k < together; ++k) {
                prepare(walkers[k], r, row + k, first + from, count);
                walk.add(row + k, first + from, walkers[k]);
            }
            walk.go(first + from, count);
            for (std::int64_t k = 0; k < together; ++k) {
                conclude(walkers[k], s, frame, row + k, first + from, count);
                if (frame.failure.kind != FailureKind::kNone) return;
            }
        }
    }
}

}  // namespace fastar::cpu
