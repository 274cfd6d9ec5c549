#include "cpu/executor/join_sums.h"

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include "cpu/executor/access.h"
#include "cpu/executor/rewrite.h"

namespace fastar::cpu {
namespace {

// Wide enough that a product runs at the speed of its stream.
constexpr std::int64_t kMostInputs = 256;

// Where a buffer occurs in the code: entries by number, once per reference.
struct Uses {
    std::vector<std::size_t> writes;
    std::vector<std::size_t> reads;
    bool plain = true;  // always at a fixed offset
};

std::vector<Uses> uses_of(Program& program) {
    std::vector<Uses> uses(program.buffers.size());
    for (std::size_t at = 0; at < program.code.size(); ++at) {
        Instruction& i = program.code[at];
        const auto note = [&](const Ref& ref) -> Uses& {
            Uses& one = uses[static_cast<std::size_t>(ref.buffer)];
            one.plain &= ref.at.empty() && ref.offset.terms.empty() && ref.offset.divisor == 1;
            return one;
        };
        for_each_read(i, [&](Ref& ref) { note(ref).reads.push_back(at); });
        for_each_write(i, [&](Ref& ref) { note(ref).writes.push_back(at); });
        if (i.op == Op::kAccumulate) note(*i.out).reads.push_back(at);
        for (const int whole : {i.keys, i.values}) {
            if (whole >= 0) uses[static_cast<std::size_t>(whole)].plain = false;
        }
    }
    return uses;
}

// Values in [-1, 1], so that several sources are quantised alike by one scale.
bool bounded(const Instruction& i) {
    if (i.op == Op::kGate) return i.gate == GateFunction::kTanh;
    return i.function == Function::kTanh || i.function == Function::kSigmoid;
}

class Joiner {
  public:
    Joiner(Program& program, Precision precision)
        : program_(program), precision_(precision), uses_(uses_of(program)), gone_(program.code.size()) {}

    bool run() {
        bool any = false;
        for (const Span& block : blocks_of(program_)) {
            std::set<std::size_t> seen;
            for (std::size_t at = block.begin; at < block.end; ++at) {
                if (seen.contains(at) || !fits(block, at)) continue;
                std::vector<std::size_t> chain{at};
                while (const auto next = next_of(block, chain.back())) chain.push_back(*next);
                seen.insert(chain.begin(), chain.end());
                any |= join_all(chain);
            }
        }
        std::vector<Instruction> code;
        for (std::size_t at = 0; at < program_.code.size(); ++at) {
            if (!gone_[at]) code.push_back(std::move(program_.code[at]));
        }
        program_.code = std::move(code);
        return any;
    }

  private:
    const Uses& uses(int buffer) const { return uses_[static_cast<std::size_t>(buffer)]; }

    // A buffer that the block alone knows, written whole by one of its instructions.
    bool own(const Span& block, const Ref& ref) const {
        const Uses& u = uses(ref.buffer);
        const auto inside = [&](std::size_t at) { return at >= block.begin && at < block.end; };
        return program_.buffers[static_cast<std::size_t>(ref.buffer)].kind == BufferKind::kScratch && u.plain &&
               u.writes.size() == 1 && inside(u.writes.front()) && covers(program_, ref) &&
               std::all_of(u.reads.begin(), u.reads.end(), inside);
    }

    // Whether an instruction may be one of a sum's.
    bool fits(const Span& block, std::size_t at) const {
        const Instruction& i = program_.code[at];
        if (i.op != Op::kLinear || i.index || i.source->width % kInputBlock != 0) return false;
        if (!own(block, *i.source)) return false;
        const Instruction& writer = program_.code[uses(i.source->buffer).writes.front()];
        return i.source->width == writer.out->width && (precision_ != Precision::kInt8 || bounded(writer));
    }

    // The instruction that alone adds to an instruction's sum.
    std::optional<std::size_t> next_of(const Span& block, std::size_t at) const {
        const Instruction& i = program_.code[at];
        if (i.function != Function::kNone || !own(block, *i.out) || uses(i.out->buffer).reads.size() != 1) return {};
        const std::size_t next = uses(i.out->buffer).reads.front();
        const Instruction& n = program_.code[next];
        if (!fits(block, next) || !n.add || n.add->buffer != i.out->buffer || n.source->buffer == i.source->buffer) {
            return {};
        }
        return next;
    }

    bool join_all(const std::vector<std::size_t>& chain) {
        bool any = false;
        for (std::size_t first = 0; first < chain.size();) {
            const std::size_t most = std::max<std::size_t>(1, (chain.size() - first) / 2);
            std::size_t count = 1;
            std::int64_t inputs = source(chain[first]).width;
            for (; count < most; ++count) {
                inputs += source(chain[first + count]).width;
                if (inputs > kMostInputs) break;
            }
            const auto begin = chain.begin() + static_cast<std::ptrdiff_t>(first);
            const std::vector<std::size_t> group(begin, begin + static_cast<std::ptrdiff_t>(count));
            if (count > 1 && stays(group)) {
                join(group);
                any = true;
            }
            first += count;
        }
        return any;
    }

    Ref& source(std::size_t at) { return *program_.code[at].source; }

    // Whether what the first one adds is still there at the last one's place.
    bool stays(const std::vector<std::size_t>& group) const {
        const Instruction& first = program_.code[group.front()];
        if (!first.add) return true;
        for (std::size_t at = group.front() + 1; at < group.back(); ++at) {
            const Accesses theirs = accesses(program_.code[at]);
            if (depends(program_, {.reads = {}, .writes = theirs.writes},
                        {.reads = {{.ref = *first.add}}, .writes = {}}))
                return false;
        }
        return true;
    }

    void join(const std::vector<std::size_t>& group) {
        std::int64_t inputs = 0;
        std::map<int, std::int64_t> places;
        for (const std::size_t at : group) {
            places[source(at).buffer] = inputs;
            inputs += source(at).width;
        }
        const int together = add_scratch(program_, "joined", inputs);
        // Nobody's own: what is joined once stays as it is.
        uses_.push_back({.writes = {}, .reads = {}, .plain = false});
        for (Instruction& i : program_.code) {
            const auto move = [&](Ref& ref) {
                const auto found = places.find(ref.buffer);
                if (found == places.end()) return;
                ref.buffer = together;
                ref.offset.constant += found->second;
            };
            for_each_read(i, move);
            for_each_write(i, move);
        }
        const Instruction& first = program_.code[group.front()];
        Instruction& last = program_.code[group.back()];
        last.weight = joined_weight(group, inputs);
        last.bias = joined_bias(group);
        last.add = first.add;
        last.source = Ref{.buffer = together, .at = {}, .offset = {}, .width = inputs};
        for (const std::size_t at : group) gone_[at] = at != group.back();
    }

    int add_weight(std::vector<std::int64_t> shape, std::vector<float> numbers) {
        auto held = std::make_shared<const std::vector<float>>(std::move(numbers));
        const float* floats = held->data();
        program_.weights.push_back(
            {.shape = std::move(shape), .floats = floats, .integers = nullptr, .own = std::move(held)});
        return static_cast<int>(program_.weights.size()) - 1;
    }

    const Weight& weight(int number) const { return program_.weights[static_cast<std::size_t>(number)]; }

    int joined_weight(const std::vector<std::size_t>& group, std::int64_t inputs) {
        const std::int64_t outputs = program_.code[group.back()].out->width;
        std::vector<float> numbers;
        numbers.reserve(static_cast<std::size_t>(outputs * inputs));
        for (std::int64_t o = 0; o < outputs; ++o) {
            for (const std::size_t at : group) {
                const Weight& one = weight(program_.code[at].weight);
                const std::int64_t width = one.shape.back();
                numbers.insert(numbers.end(), one.floats + o * width, one.floats + (o + 1) * width);
            }
        }
        return add_weight({outputs, inputs}, std::move(numbers));
    }

    // -1 where none of them has one.
    int joined_bias(const std::vector<std::size_t>& group) {
        std::vector<float> total;
        for (const std::size_t at : group) {
            if (program_.code[at].bias < 0) continue;
            const Weight& one = weight(program_.code[at].bias);
            total.resize(static_cast<std::size_t>(one.shape.back()));
            std::transform(total.begin(), total.end(), one.floats, total.begin(), std::plus<>());
        }
        const auto size = static_cast<std::int64_t>(total.size());
        return total.empty() ? -1 : add_weight({size}, std::move(total));
    }

    Program& program_;
    Precision precision_;
    std::vector<Uses> uses_;
    std::vector<bool> gone_;
};

}  // namespace

bool join_sums(Program& program, Precision precision) {
    return Joiner(program, precision).run();
}

}  // namespace fastar::cpu
