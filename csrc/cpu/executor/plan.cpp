#include "cpu/executor/plan.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <numeric>
#include <utility>

#include "cpu/executor/loosen.h"
#include "cpu/executor/schedule.h"

namespace fastar::cpu {
namespace {

Entry control_of(const Instruction& i) {
    Entry e{.control = Control::kEnd, .place = i.place, .index = {}};
    if (i.op == Op::kLoop) {
        e.control = Control::kLoop;
        e.variable = i.variable;
        e.count = i.count.value_or(-1);
    } else if (i.op == Op::kWhen) {
        e.control = Control::kWhen;
        e.index = resolve(*i.index);
        e.start = i.start;
        if (i.stop) e.stop = *i.stop;
        e.step = i.step;
    }
    return e;
}

}  // namespace

void note_reads(std::vector<Task>& tasks) {
    Reads next;
    for (int round = 0; round < 2; ++round) {
        for (auto task = tasks.rbegin(); task != tasks.rend(); ++task) {
            task->reads = task->step->reads(task->unit_begin, task->unit_end);
            task->next = next;
            if (task->reads.count > 0) next = task->reads;
        }
    }
}

void WorkspaceSizes::cover(const WorkspaceSizes& other) {
    segments = std::max(segments, other.segments);
    staging = std::max(staging, other.staging);
    floats = std::max(floats, other.floats);
    doubles = std::max(doubles, other.doubles);
    order = std::max(order, other.order);
}

Plan::Plan(Program given, const PlanOptions& wanted)
    : program(loosen(std::move(given), wanted.precision, wanted.threads)),
      options(wanted),
      given_buffers(program.buffers.size()),
      odds(keep_odds(program)),
      layout(program),
      store(program, options.precision) {
    Compiler compiler(program, layout, store);
    for (const Buffer& one : program.buffers) {
        initial.emplace_back();
        if (one.init < 0) continue;
        const float* from = program.weights[static_cast<std::size_t>(one.init)].floats;
        const std::int64_t size =
            std::accumulate(one.shape.begin(), one.shape.end(), std::int64_t{1}, std::multiplies<>());
        initial.back().assign(from, from + size);
    }
    for (const OddsLoop& loop : odds) {
        const auto at = [&](int buffer) -> std::vector<float>& { return initial[static_cast<std::size_t>(buffer)]; };
        const auto& state = program.buffers[static_cast<std::size_t>(loop.state)];
        std::vector<float> begin = at(loop.state);
        begin.resize(static_cast<std::size_t>(state.shape[0]));
        const std::int64_t padded = program.buffers[static_cast<std::size_t>(loop.odds)].shape[0];
        at(loop.odds).resize(static_cast<std::size_t>(padded));
        at(loop.powers).resize(static_cast<std::size_t>(padded));
        odds_of(begin.data(), state.shape[0], at(loop.odds).data(), at(loop.powers).data(), padded);
    }
    build(compiler);
    for (const Block& block : blocks) {
        for (const auto& step : block.steps) sizes.cover(step->sizes);
    }
    // What is borrowed ends with this constructor.
    for (Weight& one : program.weights) {
        one.floats = nullptr;
        one.integers = nullptr;
        one.own.reset();
    }
    // A thread without rows would only wait.
    const auto for_rows = static_cast<int>(std::clamp<std::int64_t>(options.rows, 1, options.threads));
    share_rows(for_rows);
    if (options.threads > 1 && options.sharing != Sharing::kRows) {
        auto all = std::make_unique<TeamPool>(options.threads);
        // What was written before the flag takes its own way after it.
        ns_to_hear = options.ns_to_hear ? *options.ns_to_hear : 2.0 * all->ns_to_hear();
        const double apart = predicted_ns();
        share_steps(options.threads);
        if (options.sharing || predicted_ns() < apart) {
            teams = std::move(all);
        } else {
            share_rows(for_rows);
        }
    }
    if (!teams) teams = std::make_unique<TeamPool>(threads);
}

void Plan::build(Compiler& compiler) {
    std::vector<std::size_t> open;
    bool fresh = true;
    const auto& code = program.code;
    for (std::size_t at = 0; at < code.size(); ++at) {
        const Instruction& i = code[at];
        if (i.is_control()) {
            Entry e = control_of(i);
            if (e.control == Control::kEnd) {
                e.jump = open.back();
                entries[open.back()].jump = entries.size();
                open.pop_back();
            } else {
                open.push_back(entries.size());
            }
            entries.push_back(e);
            fresh = true;
            continue;
        }
        if (fresh) {
            entries.push_back({.control = Control::kBlock, .place = i.place, .index = {}, .block = blocks.size()});
            blocks.emplace_back();
        }
        Block& block = blocks.back();
        if (const auto loop = std::find_if(odds.begin(), odds.end(), [&](const auto& o) { return o.at == at; });
            loop != odds.end()) {
            block.accesses.emplace_back();
            block.steps.push_back(compiler.odds(*loop));
            block.completes = true;
            block.loop = loop->variable;
            at += 2;
            continue;
        }
        block.accesses.push_back(cpu::accesses(i));
        std::unique_ptr<Step> both = at + 1 < code.size() ? compiler.fused(i, code[at + 1]) : nullptr;
        if (both) {
            const Accesses second = cpu::accesses(code[++at]);
            auto& merged = block.accesses.back();
            merged.reads.insert(merged.reads.end(), second.reads.begin(), second.reads.end());
            merged.writes.insert(merged.writes.end(), second.writes.begin(), second.writes.end());
        }
        block.steps.push_back(both ? std::move(both) : compiler.step(i));
        block.completes = code[at].completes();
        fresh = block.completes;
    }
}

std::int64_t Plan::own_floats() const {
    std::int64_t count = 0;
    for (const OddsLoop& loop : odds) count += 2 * layout.buffers[static_cast<std::size_t>(loop.odds)].size;
    return count;
}

double Plan::predicted_ns() const {
    // How often a block runs: the product of the loops around it, an open loop counting as a long one, and a condition
    // on a loop's own variable as its share.
    constexpr double kOpen = 1000.0;
    std::map<int, double> counts;
    std::vector<double> times{1.0};
    double ns = 0.0;
    double positions = 0.0;
    for (const Entry& e : entries) {
        if (e.control == Control::kLoop) {
            counts[e.variable] = e.count < 0 ? kOpen : static_cast<double>(e.count);
            times.push_back(times.back() * counts[e.variable]);
        } else if (e.control == Control::kWhen) {
            double share = 1.0;
            if (e.index.terms == 1 && e.index.coefficient[0] == 1 && e.index.divisor == 1) {
                const double n = counts[e.index.variable[0]];
                const double first = static_cast<double>(e.start - e.index.constant);
                const double end = std::min(n, static_cast<double>(e.stop) - static_cast<double>(e.index.constant));
                share = std::max(0.0, std::ceil((end - std::max(first, 0.0)) / static_cast<double>(e.step))) / n;
            }
            times.push_back(times.back() * share);
        } else if (e.control == Control::kEnd) {
            times.pop_back();
        } else {
            ns += times.back() * blocks[e.block].predicted_ns;
            positions += blocks[e.block].completes ? times.back() : 0.0;
        }
    }
    return positions > 0.0 ? ns / positions : ns;
}

void Plan::share_rows(int count) {
    sharing = Sharing::kRows;
    threads = count;
    const CostModel model(static_cast<double>(store.bytes()) * count, count, ns_to_hear);
    const double rows = std::ceil(static_cast<double>(options.rows) / count);
    for (Block& block : blocks) {
        block.predicted_ns = 0.0;
        block.waits.clear();
        block.tasks.assign(static_cast<std::size_t>(count), {});
        block.signals.assign(static_cast<std::size_t>(count), 0);
        for (const auto& step : block.steps) {
            block.predicted_ns += model.step(*step, 1.0, rows);
            for (int t = 0; t < count; ++t) {
                block.tasks[static_cast<std::size_t>(t)].push_back(
                    {step.get(), 0, step->units, t, count, 0, 0, false, {}, {}});
            }
        }
        for (auto& tasks : block.tasks) note_reads(tasks);
    }
}

void Plan::share_steps(int count) {
    sharing = Sharing::kSteps;
    threads = count;
    const CostModel model(static_cast<double>(store.bytes()), count, ns_to_hear);
    for (Block& block : blocks) {
        std::vector<std::vector<std::size_t>> before(block.steps.size());
        for (std::size_t i = 0; i < block.steps.size(); ++i) {
            for (std::size_t j = 0; j < i; ++j) {
                if (depends(program, block.accesses[j], block.accesses[i])) before[i].push_back(j);
            }
        }
        block.predicted_ns = schedule(block, before, count, std::max<std::int64_t>(1, options.rows), model);
    }
}

}  // namespace fastar::cpu
