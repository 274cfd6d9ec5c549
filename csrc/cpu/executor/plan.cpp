#include "cpu/executor/plan.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <utility>


namespace fastar::cpu {
namespace {

bool is_control(Op op) {
    return op == Op::kLoop || op == Op::kWhen || op == Op::kEnd;
}

bool completes(const Instruction& i) {
    return (i.op == Op::kDraw && !i.out) || i.op == Op::kEmit;
}

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

void WorkspaceSizes::cover(const WorkspaceSizes& other) {
    segments = std::max(segments, other.segments);
    staging = std::max(staging, other.staging);
    floats = std::max(floats, other.floats);
    doubles = std::max(doubles, other.doubles);
    order = std::max(order, other.order);
}

Plan::Plan(Program given, const PlanOptions& wanted)
    : program(std::move(given)), options(wanted), layout(program), store(program, options.precision) {
    Compiler compiler(program, layout, store);
    for (const Buffer& one : program.buffers) {
        initial.emplace_back();
        if (one.init < 0) continue;
        const float* from = program.weights[static_cast<std::size_t>(one.init)].floats;
        const std::int64_t size =
            std::accumulate(one.shape.begin(), one.shape.end(), std::int64_t{1}, std::multiplies<>());
        initial.back().assign(from, from + size);
    }
    build(compiler);
    for (const Block& block : blocks) {
        for (const auto& step : block.steps) sizes.cover(step->sizes);
    }
    // What is borrowed ends with this constructor.
    for (Weight& one : program.weights) {
        one.floats = nullptr;
        one.integers = nullptr;
    }
    threads = std::max(1, options.threads);
    share_rows();
}

void Plan::build(Compiler& compiler) {
    std::vector<std::size_t> open;
    bool fresh = true;
    const auto& code = program.code;
    for (std::size_t at = 0; at < code.size(); ++at) {
        const Instruction& i = code[at];
        if (is_control(i.op)) {
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
        std::unique_ptr<Step> both = at + 1 < code.size() ? compiler.fused(i, code[at + 1]) : nullptr;
        if (both) ++at;
        block.steps.push_back(both ? std::move(both) : compiler.step(i));
        block.completes = completes(code[at]);
        fresh = block.completes;
    }
}

void Plan::share_rows() {
    sharing = Sharing::kRows;
    // A thread without rows would only wait.
    threads = static_cast<int>(std::min<std::int64_t>(threads, std::max<std::int64_t>(1, options.rows)));
    for (Block& block : blocks) {
        block.tasks.assign(static_cast<std::size_t>(threads), {});
        block.signals.assign(static_cast<std::size_t>(threads), 0);
        for (int t = 0; t < threads; ++t) {
            for (const auto& step : block.steps) {
                block.tasks[static_cast<std::size_t>(t)].push_back(
                    {step.get(), 0, step->units, t, threads, 0, 0, false});
            }
        }
    }
}

}  // namespace fastar::cpu
