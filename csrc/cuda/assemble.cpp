// The program, entry by entry.
#include <algorithm>

#include "cpu/executor/loosen.h"
#include "cuda/assembler.h"

namespace fastar::cuda {
namespace {

// A readout of many outputs applies its function to the inputs first: in tiles each of them would do it again.
Program with_inputs_activated(Program program) {
    std::vector<Instruction> code;
    for (Instruction& i : program.code) {
        if (i.op == cpu::Op::kReadout && i.function != Function::kNone && !sums_by_warps(i)) {
            const int number = static_cast<int>(program.buffers.size());
            program.buffers.push_back({.name = "activated " + std::to_string(i.place),
                                       .kind = BufferKind::kScratch,
                                       .shape = {i.source->width},
                                       .ring = false,
                                       .init = -1});
            Instruction apply;
            apply.op = cpu::Op::kElementwise;
            apply.place = i.place;
            apply.function = i.function;
            apply.source = i.source;
            apply.out = Ref{.buffer = number, .at = {}, .offset = {}, .width = i.source->width};
            i.source = apply.out;
            i.function = Function::kNone;
            code.push_back(std::move(apply));
        }
        code.push_back(std::move(i));
    }
    program.code = std::move(code);
    return program;
}

}  // namespace

void Assembler::run() {
    if (options_.stages < 0 || options_.stages > kMostStages || options_.stages % 8 != 0) {
        throw std::invalid_argument("stages: a ring has 0, 8, 16, 24 or 32, not " + std::to_string(options_.stages));
    }
    if (shares_copies() || raises_flags()) cpu::rename_scratch(program_);
    if (raises_flags()) {
        find_copies();
        fold_copies();
        place_copies();
    } else {
        place_buffers();
    }
    if (shares_copies()) {
        std::set<int> far;
        for (std::size_t b = 0; b < to_.buffers.size(); ++b) {
            if (to_.buffers[b].space == kSlowSpace) far.insert(static_cast<int>(b));
        }
        beside_ = keep_apart(program_, far);
        find_own();
        place_buffers();
    }
    beside_.resize(program_.code.size());
    list_parts();
    bool fresh = true;
    for (std::size_t number = 0; number < program_.code.size(); ++number) {
        const Instruction& i = program_.code[number];
        if (i.is_control()) {
            control(i);
            fresh = true;
            continue;
        }
        if (fresh) begin_block(i);
        command(i, beside_[number]);
        fresh = i.completes();
        entries_.back().completes = fresh;
    }
    end_block();
    thread_streams();
    lay_out();
}

void Assembler::control(const Instruction& i) {
    end_block();
    Entry e;
    e.place = i.place;
    if (i.op == cpu::Op::kEnd) {
        e.control = Control::kEnd;
        e.jump = open_.back();
        entries_[at(open_.back())].jump = narrow(static_cast<std::int64_t>(entries_.size()));
        open_.pop_back();
    } else {
        open_.push_back(narrow(static_cast<std::int64_t>(entries_.size())));
        e.control = i.op == cpu::Op::kLoop ? Control::kLoop : Control::kWhen;
        e.variable = i.variable;
        e.count = narrow(i.count.value_or(-1));
        if (i.index) e.index = slot(*i.index);
        e.start = narrow(i.start);
        if (i.stop) e.stop = narrow(*i.stop);
        e.step = narrow(i.step);
    }
    entries_.push_back(e);
}

void Assembler::begin_block(const Instruction& i) {
    end_block();
    Entry e;
    e.control = Control::kBlock;
    e.place = i.place;
    e.command = narrow(static_cast<std::int64_t>(commands_.size()));
    e.address = narrow(static_cast<std::int64_t>(addresses_.size()));
    e.fetch = narrow(static_cast<std::int64_t>(fetches_.size()));
    e.next_row = narrow(static_cast<std::int64_t>(next_rows_.size()));
    entries_.push_back(e);
    ++to_.tally.team_meetings;
}

Op Assembler::op_of(cpu::Op op) {
    switch (op) {
        case cpu::Op::kGather:
            return Op::kGather;
        case cpu::Op::kAccumulate:
            return Op::kAccumulate;
        case cpu::Op::kGate:
            return Op::kGate;
        case cpu::Op::kElementwise:
            return Op::kElementwise;
        case cpu::Op::kNorm:
            return Op::kNorm;
        case cpu::Op::kAttention:
            return Op::kAttention;
        case cpu::Op::kCell:
            return Op::kCell;
        case cpu::Op::kDraw:
            return Op::kDraw;
        case cpu::Op::kStore:
            return Op::kStore;
        case cpu::Op::kEmit:
            return Op::kEmit;
        default:
            return Op::kMatrix;
    }
}

void Assembler::command(const Instruction& i, const Beside& beside) {
    Command c;
    c.op = op_of(i.op);
    c.place = i.place;
    c.function = i.function;
    c.gate = i.gate;
    c.norm = i.norm;
    c.cell_kind = i.cell_kind;
    c.elementwise = static_cast<Elementwise>(i.elementwise);
    c.out = operand(i.out);
    c.source = i.taps.empty() ? operand(i.source)
                              : Operand{.address = -1, .space = space_of(*i.source), .width = narrow(i.source->width)};
    c.add = operand(i.add);
    c.other = operand(i.other);
    c.hidden = operand(i.hidden);
    c.cell = operand(i.cell);
    c.cell_out = operand(i.cell_out);
    c.log_prob = operand(i.log_prob);
    c.mirror = operand(beside.mirror);
    c.fresh = operand(beside.fresh);
    c.index = index(i.index);
    c.position = index(i.position);
    c.bias = table(i.bias);
    c.spans = table(i.spans);
    c.reach = table(i.reach);
    c.channel = narrow(i.channel);
    c.first_symbol = narrow(i.first_symbol.value_or(-1));
    c.heads = narrow(i.heads);
    c.kv_heads = narrow(i.kv_heads);
    c.window = narrow(i.window.value_or(0));
    c.local = {narrow(i.local.rows), narrow(i.local.columns), narrow(i.local.width)};
    c.scale = static_cast<float>(i.scale);
    c.shift = static_cast<float>(i.shift);
    c.first = static_cast<float>(i.first);
    c.eps = static_cast<float>(i.eps);
    if (c.op == Op::kMatrix) {
        matrix(i, beside, c);
    } else if (i.weight >= 0) {
        c.weight = table(i.weight);
    }
    if (c.op == Op::kAttention) {
        c.keys = whole(i.keys);
        c.values = whole(i.values);
        c.slots = narrow(program_.buffers[at(i.keys)].shape[0]);
        if (program_.buffers[at(i.values)].shape[0] != c.slots) {
            throw std::invalid_argument("program: entry " + std::to_string(i.place) +
                                        " attention: keys and values of different numbers of slots");
        }
        to_.stretch.most_slots = std::max(to_.stretch.most_slots, c.slots);
    }
    if (c.op == Op::kDraw) law(i, c);
    fetch_row(i, c);
    share(i, beside, c);
    if (c.op == Op::kMatrix && c.storage != Storage::kRows && c.resident < 0 && c.index < 0) count_share(c);
    commands_.push_back(c);
    ++entries_.back().commands;
    ++to_.tally.commands;
}

void Assembler::law(const Instruction& i, Command& c) {
    if (std::max(i.head.channels, program_.channels) > kMaxChannels) {
        throw std::invalid_argument("program: entry " + std::to_string(i.place) + " draw: more than " +
                                    std::to_string(kMaxChannels) + " channels a position");
    }
    c.law = narrow(static_cast<std::int64_t>(laws_.size()));
    laws_.push_back(i.head);
    auto& s = to_.stretch;
    if (i.head.kind == HeadKind::kCategorical) s.most_levels = std::max(s.most_levels, narrow(i.head.levels));
    s.most_components = std::max(s.most_components, narrow(i.head.components));
}

void Assembler::lay_out() {
    if (program_.variables > kMaxVariables) {
        throw std::invalid_argument("program: more than " + std::to_string(kMaxVariables) + " loop variables");
    }
    Stretch& s = to_.stretch;
    s.entry_count = narrow(static_cast<std::int64_t>(entries_.size()));
    s.entries = put(entries_);
    s.addresses = put(addresses_);
    s.laws = put(laws_);
    s.residents = put(residents_);
    s.resident_count = narrow(static_cast<std::int64_t>(residents_.size()));
    s.parts = put(parts_);
    s.part_count = narrow(static_cast<std::int64_t>(parts_.size()));
    s.fetches = put(fetches_);
    s.next_rows = put(next_rows_);
    s.commands = put(commands_);
    const auto begin = static_cast<std::int64_t>((to_.bytes.size() + 255) / 256 * 256);
    for (Resident& one : residents_) one.from += begin;
    for (NextRow& one : next_rows_) one.table += begin;
    for (Command& c : commands_) {
        for (std::int64_t* one : {&c.weight, &c.bias, &c.scales, &c.spans, &c.reach}) {
            if (*one >= 0) *one += begin;
        }
    }
    std::memcpy(to_.bytes.data() + s.commands, commands_.data(), commands_.size() * sizeof(Command));
    std::memcpy(to_.bytes.data() + s.residents, residents_.data(), residents_.size() * sizeof(Resident));
    std::memcpy(to_.bytes.data() + s.next_rows, next_rows_.data(), next_rows_.size() * sizeof(NextRow));
    put(weights_);
    to_.size = begin + weight_bytes_;
}

Assembly::Assembly(Program given, const AssemblyOptions& options) {
    const std::size_t own = given.buffers.size();
    Assembler(with_inputs_activated(std::move(given)), options, *this).run();
    buffers.resize(own);
}

}  // namespace fastar::cuda
