// Runs the programs of a file (flat.py) through the executor, without Python and torch: for the sanitizers. Each runs
// with one to three threads in both ways of sharing, paused and resumed in another run, and with options; every result
// has to be the first one's, bit for bit. Prints a line per program; ends in 1 where results differ.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/executor/plan.h"
#include "cpu/executor/run.h"
#include "cpu/isa/executor.h"
#include "cpu/kernel_table.h"

namespace fastar::cpu {

// One level is enough here, in the place of dispatch.cpp.
const KernelTable& kernels() {
    static const KernelTable table = [] {
        KernelTable t{};
        t.executor = {.matrix = FASTAR_ISA::matrix,
                      .unary = FASTAR_ISA::unary,
                      .clamp = FASTAR_ISA::clamp,
                      .add = FASTAR_ISA::add,
                      .multiply = FASTAR_ISA::multiply,
                      .gate = FASTAR_ISA::gate,
                      .norm = FASTAR_ISA::norm,
                      .cell = FASTAR_ISA::cell,
                      .attention = FASTAR_ISA::attention,
                      .accumulate = FASTAR_ISA::accumulate,
                      .accumulate_dot = FASTAR_ISA::accumulate_dot,
                      .toss = FASTAR_ISA::toss,
                      .balance_odds = FASTAR_ISA::balance_odds,
                      .coin_bars = FASTAR_ISA::coin_bars,
                      .coins = FASTAR_ISA::coins,
                      .largest = FASTAR_ISA::largest,
                      .exponentials = FASTAR_ISA::exponentials};
        return t;
    }();
    return table;
}

}  // namespace fastar::cpu

namespace {

using namespace fastar;
using namespace fastar::cpu;

struct Job {
    std::string name;
    Precision precision;
    std::int64_t rows;
    std::int64_t length;
    Program program;
    std::vector<std::vector<float>> floats;
    std::vector<std::vector<std::int32_t>> integers;
};

class Reader {
  public:
    explicit Reader(std::istream& in) : in_(in) {}

    bool more() { return static_cast<bool>(in_ >> std::ws) && in_.peek() != EOF; }

    void read(Job& s) {
        s.name = word();
        s.precision = static_cast<Precision>(number());
        s.rows = number();
        s.length = number();
        Program& p = s.program;
        p.channels = number();
        p.levels = number();
        const std::int64_t weights = number();
        s.floats.resize(static_cast<std::size_t>(weights));
        s.integers.resize(static_cast<std::size_t>(weights));
        for (std::size_t i = 0; i < s.floats.size(); ++i) {
            const bool real = number() != 0;
            const std::vector<std::int64_t> shape = numbers();
            std::int64_t size = 1;
            for (const std::int64_t n : shape) size *= n;
            for (std::int64_t k = 0; k < size; ++k) {
                if (real) {
                    s.floats[i].push_back(static_cast<float>(decimal()));
                } else {
                    s.integers[i].push_back(static_cast<std::int32_t>(number()));
                }
            }
            p.weights.push_back({shape, s.floats[i].data(), s.integers[i].data()});
        }
        for (std::int64_t count = number(); count > 0; --count) {
            Buffer b{};
            b.kind = static_cast<BufferKind>(number());
            b.shape = numbers();
            b.ring = number() != 0;
            b.init = static_cast<int>(number());
            p.buffers.push_back(b);
        }
        const std::int64_t entries = number();
        for (int place = 0; place < entries; ++place) {
            p.code.push_back(instruction());
            p.code.back().place = place;
        }
        p.variables = static_cast<int>(number());
    }

  private:
    std::string word() {
        std::string w;
        if (!(in_ >> w)) std::exit(2);
        return w;
    }
    std::optional<std::string> maybe() {
        std::string w = word();
        return w == "-" ? std::nullopt : std::optional(w);
    }
    std::int64_t number() { return std::stoll(word()); }
    double decimal() { return std::strtod(word().c_str(), nullptr); }
    std::optional<std::int64_t> maybe_number() {
        const auto w = maybe();
        return w ? std::optional<std::int64_t>(std::stoll(*w)) : std::nullopt;
    }
    std::optional<double> maybe_decimal() {
        const auto w = maybe();
        return w ? std::optional(std::strtod(w->c_str(), nullptr)) : std::nullopt;
    }
    std::vector<std::int64_t> numbers() {
        std::vector<std::int64_t> all(static_cast<std::size_t>(number()));
        for (std::int64_t& one : all) one = number();
        return all;
    }
    std::optional<Index> index() {
        const auto constant = maybe_number();
        if (!constant) return {};
        Index i;
        i.constant = *constant;
        i.divisor = number();
        for (std::int64_t terms = number(); terms > 0; --terms) {
            const int variable = static_cast<int>(number());
            i.terms.emplace_back(variable, number());
        }
        return i;
    }
    std::optional<Ref> ref() {
        const auto buffer = maybe_number();
        if (!buffer) return {};
        Ref r;
        r.buffer = static_cast<int>(*buffer);
        for (std::int64_t count = number(); count > 0; --count) r.at.push_back(*index());
        r.offset = *index();
        r.width = number();
        return r;
    }
    Instruction instruction() {
        Instruction i;
        i.op = static_cast<Op>(number());
        if (i.op == Op::kEnd) return i;
        if (i.op == Op::kLoop) {
            i.variable = static_cast<int>(number());
            i.count = maybe_number();
            return i;
        }
        if (i.op == Op::kWhen) {
            i.index = index();
            i.start = number();
            i.stop = maybe_number();
            i.step = number();
            return i;
        }
        for (auto* one : {&i.out, &i.source, &i.add, &i.other, &i.hidden, &i.cell, &i.cell_out, &i.log_prob}) {
            *one = ref();
        }
        for (int* one : {&i.weight, &i.bias, &i.spans, &i.reach}) *one = static_cast<int>(number());
        i.index = index();
        i.position = index();
        for (std::int64_t taps = number(); taps > 0; --taps) i.taps.push_back(numbers());
        i.channel = number();
        i.first_symbol = maybe_number();
        i.keys = static_cast<int>(number());
        i.values = static_cast<int>(number());
        i.heads = number();
        i.kv_heads = number();
        i.window = maybe_number();
        for (std::int64_t* one : {&i.local.rows, &i.local.columns, &i.local.width}) *one = number();
        for (double* one : {&i.scale, &i.shift, &i.first, &i.eps}) *one = decimal();
        i.function = static_cast<Function>(number());
        i.gate = static_cast<GateFunction>(number());
        i.norm = static_cast<NormKind>(number());
        i.cell_kind = static_cast<CellKind>(number());
        i.elementwise = static_cast<Elementwise>(number());
        i.head.kind = static_cast<HeadKind>(number());
        i.head.levels = number();
        i.head.components = number();
        i.head.channels = number();
        i.head.low = maybe_decimal();
        i.head.high = maybe_decimal();
        i.head.min_log_scale = maybe_decimal();
        i.head.branch = decimal();
        return i;
    }

    std::istream& in_;
};

// What a run borrows, and what it leaves.
struct Memory {
    std::vector<std::int64_t> row_numbers, seeds, lengths;
    std::vector<double> values, log_prob, log_weight, given;
    std::vector<std::vector<float>> inputs;
    FailureKind failure = FailureKind::kNone;

    Memory(const Job& s, bool clamps) {
        const auto rows = static_cast<std::size_t>(s.rows);
        const std::size_t count = rows * static_cast<std::size_t>(s.length * s.program.channels);
        for (std::int64_t row = 0; row < s.rows; ++row) {
            row_numbers.push_back(row);
            seeds.push_back(17);
            lengths.push_back(s.length);
        }
        values.resize(count);
        log_prob.resize(rows);
        log_weight.resize(rows);
        // Every position's first few rows are given: a head that models nothing asks for it.
        given.assign(count, clamps ? 0.0 : std::nan(""));
        std::mt19937 random(3);
        for (const Buffer& b : s.program.buffers) {
            if (b.kind != BufferKind::kInput) continue;
            std::int64_t size = s.rows * (b.shape[0] == 0 ? s.length : b.shape[0]);
            for (std::size_t d = 1; d < b.shape.size(); ++d) size *= b.shape[d];
            inputs.emplace_back();
            for (std::int64_t k = 0; k < size; ++k) {
                inputs.back().push_back(static_cast<float>(random() % 1000) / 500.0f - 1.0f);
            }
        }
    }

    Request request(const Job& s, bool clamps, bool options) {
        Request r{};
        r.rows = s.rows;
        r.length = s.length;
        r.channels = s.program.channels;
        r.row_numbers = row_numbers.data();
        r.seeds = seeds.data();
        r.lengths = lengths.data();
        r.values = values.data();
        r.log_prob = log_prob.data();
        r.log_weight = log_weight.data();
        r.given = clamps ? given.data() : nullptr;
        r.stop = -1;
        r.temperature = options ? 0.8 : 1.0;
        r.top_k = options ? 3 : 0;
        r.top_p = options ? 0.9 : 0.0;
        for (const auto& one : inputs) r.inputs.push_back(one.data());
        return r;
    }
};

bool same(const std::vector<double>& a, const std::vector<double>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

bool same(const Memory& a, const Memory& b) {
    if (a.failure != b.failure) return false;
    return a.failure != FailureKind::kNone || (same(a.values, b.values) && same(a.log_prob, b.log_prob));
}

void copy_state(const Run& from, Run& to, const Plan& plan) {
    for (std::size_t b = 0; b < plan.given_buffers; ++b) {
        if (plan.program.buffers[b].kind == BufferKind::kInput) continue;
        std::vector<float> state(static_cast<std::size_t>(plan.layout.buffers[b].size * from.request().rows));
        from.read(b, state.data());
        to.write(b, state.data());
    }
    std::vector<float> own(static_cast<std::size_t>(plan.own_floats() * from.request().rows));
    from.read_own(own.data());
    to.write_own(own.data());
    to.stand(from.place(), from.variables(), from.done());
}

Memory run(const Job& s, const PlanOptions& options, bool clamps, bool restricts, bool pauses) {
    const auto plan = std::make_shared<const Plan>(s.program, options);
    Memory memory(s, clamps);
    auto now = std::make_unique<Run>(plan, memory.request(s, clamps, restricts));
    while (!now->finished() && now->failure().kind == FailureKind::kNone) {
        now->advance(pauses ? 2 : s.length, 1e9);
        if (!pauses) continue;
        auto next = std::make_unique<Run>(plan, memory.request(s, clamps, restricts));
        if (now->failure().kind != FailureKind::kNone) break;
        copy_state(*now, *next, *plan);
        now = std::move(next);
    }
    memory.failure = now->failure().kind;
    return memory;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) return 2;
    std::ifstream file(argv[1]);
    Reader reader(file);
    int wrong = 0;
    int done = 0;
    while (reader.more()) {
        Job s;
        reader.read(s);
        bool discrete = true;
        bool clamps = false;
        for (const Instruction& i : s.program.code) {
            discrete = discrete && (i.op != Op::kDraw || i.head.kind <= HeadKind::kCategorical);
            clamps = clamps || (i.op == Op::kDraw && i.head.kind == HeadKind::kGiven);
        }
        for (const bool restricts : {false, true}) {
            if (restricts && !discrete) continue;
            const auto with = [&](int threads, Sharing sharing, bool pauses) {
                const PlanOptions options{
                    .precision = s.precision, .threads = threads, .rows = s.rows, .sharing = sharing};
                return run(s, options, clamps, restricts, pauses);
            };
            const Memory first = with(1, Sharing::kRows, false);
            const bool agree = same(first, with(2, Sharing::kSteps, false)) &&
                               same(first, with(3, Sharing::kSteps, true)) &&
                               same(first, with(3, Sharing::kRows, false));
            if (!agree) std::printf("%s: results differ\n", s.name.c_str());
            wrong += !agree;
        }
        ++done;
    }
    std::printf("%d programs\n", done);
    return wrong == 0 && done > 0 ? 0 : 1;
}
