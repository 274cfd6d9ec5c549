#include "cuda/assemble.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "cpu/executor/access.h"
#include "cpu/executor/loosen.h"
#include "cuda/keep_apart.h"
#include "cuda/pack.h"

namespace fastar::cuda {
namespace {

using cpu::Accesses;
using cpu::Buffer;
using cpu::BufferKind;
using cpu::Index;
using cpu::Instruction;
using cpu::Program;
using cpu::Ref;

// Where a row's buffers begin: a full vector.
constexpr std::int64_t kAlignment = 4;
// Fewer outputs are summed by a warp each.
constexpr std::int64_t kTileOutputs = 16;
// An edge counts at most 2^20 bytes: eight rows of so many numbers.
constexpr std::int64_t kMostSent = 16 * 1024;

std::int64_t product(const std::vector<std::int64_t>& shape) {
    return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
}

std::int32_t narrow(std::int64_t n) {
    if (n < std::numeric_limits<std::int32_t>::min() || n > std::numeric_limits<std::int32_t>::max()) {
        throw std::invalid_argument("program: the number " + std::to_string(n) +
                                    " is beyond the 32 bits that the cuda executor has for sizes and places");
    }
    return static_cast<std::int32_t>(n);
}

std::size_t at(int i) {
    return static_cast<std::size_t>(i);
}

bool sums_by_warps(const Instruction& i) {
    return i.op == cpu::Op::kSpanLinear || i.out->width < kTileOutputs;
}

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

class Assembler {
  public:
    Assembler(Program program, const AssemblyOptions& options, Assembly& to)
        : program_(std::move(program)), options_(options), to_(to) {}

    void run() {
        if (shares_copies()) cpu::rename_scratch(program_);
        place_buffers();
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
        std::vector<std::int32_t> open;
        bool fresh = true;
        for (std::size_t number = 0; number < program_.code.size(); ++number) {
            const Instruction& i = program_.code[number];
            if (i.is_control()) {
                control(i, open);
                fresh = true;
                continue;
            }
            if (fresh) begin_block(i);
            command(i, beside_[number]);
            fresh = i.completes();
            entries_.back().completes = fresh;
        }
        end_block();
        lay_out();
    }

  private:
    // Whether the blocks of a team have copies of a row's numbers: those of a cluster.
    bool shares_copies() const { return options_.blocks > 1 && options_.fast_numbers > 0; }

    // Scratch and the smallest states are fast; what is left over is slow.
    void place_buffers() {
        to_.fast = to_.slow = 0;
        std::vector<int> order(program_.buffers.size());
        std::iota(order.begin(), order.end(), 0);
        const auto size = [&](int b) { return product(program_.buffers[at(b)].shape); };
        const auto rank = [&](int b) {
            return std::pair(program_.buffers[at(b)].kind == BufferKind::kScratch ? 0 : 1, size(b));
        };
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return rank(a) < rank(b); });
        to_.buffers.assign(order.size(), {});
        int inputs = 0;
        for (std::size_t b = 0; b < program_.buffers.size(); ++b) {
            if (program_.buffers[b].kind != BufferKind::kInput) continue;
            if (inputs == kMaxInputs)
                throw std::invalid_argument("program: more than " + std::to_string(inputs) + " inputs");
            to_.buffers[b] = {kFirstInputSpace + inputs++, 0, 0};
        }
        for (const int b : order) {
            if (program_.buffers[at(b)].kind == BufferKind::kInput || instead_.contains(b)) continue;
            const std::int64_t room = (size(b) + kAlignment - 1) / kAlignment * kAlignment;
            const bool cache = program_.buffers[at(b)].shape.size() > 1;
            const bool fits = to_.fast + room <= options_.fast_numbers && !(cache && options_.caches_far);
            std::int64_t& end = fits ? to_.fast : to_.slow;
            to_.buffers[at(b)] = {fits ? kFastSpace : kSlowSpace, end, size(b)};
            end += room;
        }
        for (const auto& [buffer, other] : instead_) to_.buffers[at(buffer)] = to_.buffers[at(other)];
    }

    // Scratch that is only ever added to by products of the same outputs: a block needs the numbers of its own tiles,
    // and a chain of such sums one place.
    void find_own() {
        std::map<int, Ref> all;
        std::map<int, int> uses;
        std::set<int> others;
        const auto exactly = [](const Ref& a, const Ref& b) {
            return a.at.empty() && b.at.empty() && a.offset.terms.empty() && b.offset.terms.empty() &&
                   a.offset.constant == b.offset.constant && a.width == b.width;
        };
        const auto see = [&](const std::optional<Ref>& ref, bool apt) {
            if (!ref) return;
            const auto [found, fresh] = all.try_emplace(ref->buffer, *ref);
            const bool scratch = program_.buffers[at(ref->buffer)].kind == BufferKind::kScratch;
            if (!apt || !scratch || !exactly(found->second, *ref)) others.insert(ref->buffer);
            ++uses[ref->buffer];
        };
        for (std::size_t number = 0; number < program_.code.size(); ++number) {
            const Instruction& i = program_.code[number];
            const bool apt = (i.op == cpu::Op::kLinear || i.op == cpu::Op::kTappedLinear) && !sums_by_warps(i) &&
                             bank_bytes(shape_of(i), storage_of(options_.precision)) > options_.local_bytes;
            see(i.out, apt && !beside_[number].mirror);
            see(i.add, apt);
            for (const auto* ref : {&i.source, &i.other, &i.hidden, &i.cell, &i.cell_out, &i.log_prob}) {
                see(*ref, false);
            }
            see(beside_[number].fresh, false);
        }
        for (const auto& [buffer, ref] : all) {
            if (!others.contains(buffer)) own_.insert(buffer);
        }
        for (Instruction& i : program_.code) {
            if (!i.add || !own_.contains(i.add->buffer)) continue;
            const bool last = uses[i.add->buffer] == 2;  // written once, read once
            follow(*i.add);
            if (last && own_.contains(i.out->buffer) && uses[i.out->buffer] == 2 && exactly(*i.out, *i.add)) {
                instead_[i.out->buffer] = i.add->buffer;
                follow(*i.out);
            }
        }
    }

    void follow(Ref& ref) const {
        if (const auto found = instead_.find(ref.buffer); found != instead_.end()) ref.buffer = found->second;
    }

    // What a launch gathers at its end: numbers of which each block holds some.
    void list_parts() {
        std::erase_if(own_, [&](int buffer) { return to_.buffers[at(buffer)].space != kFastSpace; });
        for (const int buffer : own_) {
            if (instead_.contains(buffer)) continue;
            parts_.push_back({narrow(to_.buffers[at(buffer)].base), narrow(program_.buffers[at(buffer)].shape.back()),
                              outputs_of_tile(storage_of(options_.precision))});
        }
    }

    MatrixShape shape_of(const Instruction& i) const {
        const bool banked = i.op == cpu::Op::kReadout || (i.index && i.op != cpu::Op::kSpanLinear);
        return {.banks = banked ? program_.weights[at(i.weight)].shape[0] : 1,
                .outputs = i.out->width,
                .taps = std::max<std::int64_t>(1, static_cast<std::int64_t>(i.taps.size())),
                .inputs = i.source->width};
    }

    void control(const Instruction& i, std::vector<std::int32_t>& open) {
        end_block();
        Entry e;
        e.place = i.place;
        if (i.op == cpu::Op::kEnd) {
            e.control = Control::kEnd;
            e.jump = open.back();
            entries_[at(open.back())].jump = narrow(static_cast<std::int64_t>(entries_.size()));
            open.pop_back();
        } else {
            open.push_back(narrow(static_cast<std::int64_t>(entries_.size())));
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

    void begin_block(const Instruction& i) {
        end_block();
        Entry e;
        e.control = Control::kBlock;
        e.place = i.place;
        e.command = narrow(static_cast<std::int64_t>(commands_.size()));
        e.address = narrow(static_cast<std::int64_t>(addresses_.size()));
        e.fetch = narrow(static_cast<std::int64_t>(fetches_.size()));
        entries_.push_back(e);
        ++to_.tally.team_meetings;
    }

    // Every edge is waited for before its block of commands ends, so that all stand at the same count.
    void end_block() {
        for (const Before& one : before_) {
            if (one.edge >= 0 && !one.waited) wait_for(commands_.back(), one.edge);
        }
        before_.clear();
    }

    void wait_for(Command& c, int edge) {
        c.waits |= std::uint64_t{1} << edge;
        ++to_.tally.edges;
        for (Before& one : before_) one.waited = one.waited || one.edge == edge;
    }

    Slot slot(const Index& index, std::int64_t factor = 1, std::int64_t added = 0) const {
        if (index.terms.size() > kMaxTerms) {
            throw std::invalid_argument("program: an index of more than " + std::to_string(kMaxTerms) + " variables");
        }
        Slot s;
        s.divisor = narrow(index.divisor);
        s.constant = narrow(index.constant * factor + added * index.divisor);
        for (const auto& [variable, coefficient] : index.terms) {
            s.variable[s.terms] = variable;
            s.coefficient[s.terms++] = narrow(coefficient * factor);
        }
        return s;
    }

    std::int16_t number(const Address& address) {
        Entry& block = entries_.back();
        for (std::int32_t n = 0; n < block.addresses; ++n) {
            if (std::memcmp(&addresses_[at(block.address + n)], &address, sizeof address) == 0) {
                return static_cast<std::int16_t>(n);
            }
        }
        addresses_.push_back(address);
        to_.stretch.most_addresses = std::max(to_.stretch.most_addresses, block.addresses + 1);
        if (block.addresses == std::numeric_limits<std::int16_t>::max()) {
            throw std::invalid_argument(
                "program: a block of instructions with more places than the cuda executor numbers");
        }
        return static_cast<std::int16_t>(block.addresses++);
    }

    std::int16_t index(const std::optional<Index>& i) {
        if (!i) return -1;
        Address a;
        a.offset = slot(*i);
        return number(a);
    }

    Address address(const Ref& ref, const std::vector<std::int64_t>* tap) {
        const Buffer& buffer = program_.buffers[at(ref.buffer)];
        if (ref.at.size() > kMaxCoordinates) {
            throw std::invalid_argument("program: buffer " + buffer.name + " has more than " +
                                        std::to_string(kMaxCoordinates) + " coordinates");
        }
        Address a;
        a.base = narrow(to_.buffers[at(ref.buffer)].base);
        a.offset = slot(ref.offset);
        std::int64_t stride = buffer.shape.back();
        std::vector<std::int64_t> strides(ref.at.size());
        for (std::size_t c = ref.at.size(); c-- > 0;) {
            strides[c] = stride;
            stride *= buffer.shape[c];
        }
        for (std::size_t c = 0; c < ref.at.size(); ++c) {
            const bool ring = c == 0 && buffer.ring;
            const std::int64_t shift = tap ? (*tap)[c] : 0;
            if (!tap && !ring && join(a.offset, ref.at[c], strides[c])) continue;
            if (ring) a.wraps = 1;
            // A ring's coordinate is always kept, so it stays the first.
            a.at[a.coordinates] = slot(ref.at[c], 1, shift);
            a.size[a.coordinates] = narrow(buffer.shape[c]);
            a.stride[a.coordinates++] = narrow(strides[c]);
        }
        return a;
    }

    // offset += stride * index, where that is one sum of products.
    bool join(Slot& offset, const Index& index, std::int64_t stride) const {
        if (offset.divisor != 1 || index.divisor != 1) return false;
        Slot sum = offset;
        for (const auto& [variable, coefficient] : index.terms) {
            int i = 0;
            while (i < sum.terms && sum.variable[i] != variable) ++i;
            if (i == kMaxTerms) return false;
            if (i == sum.terms) sum.variable[sum.terms++] = variable;
            sum.coefficient[i] = narrow(sum.coefficient[i] + coefficient * stride);
        }
        sum.constant = narrow(sum.constant + index.constant * stride);
        offset = sum;
        return true;
    }

    Operand operand(const std::optional<Ref>& ref) {
        if (!ref) return {};
        return {.address = number(address(*ref, nullptr)),
                .space = static_cast<std::int16_t>(to_.buffers[at(ref->buffer)].space),
                .width = narrow(ref->width)};
    }

    Operand whole(int buffer) {
        const std::int64_t width = program_.buffers[at(buffer)].shape.back();
        return operand(Ref{.buffer = buffer, .at = {}, .offset = {}, .width = width});
    }

    std::int64_t append(const void* from, std::int64_t bytes) {
        const std::int64_t begin = (weight_bytes_ + 255) / 256 * 256;
        weight_bytes_ = begin + bytes;
        if (options_.contents) {
            weights_.resize(static_cast<std::size_t>(weight_bytes_));
            std::memcpy(weights_.data() + begin, from, static_cast<std::size_t>(bytes));
        }
        return begin;
    }

    std::int64_t table(int weight) {
        if (weight < 0) return -1;
        auto [held, fresh] = tables_.try_emplace(weight);
        if (fresh) {
            const cpu::Weight& w = program_.weights[at(weight)];
            const void* from = w.floats ? static_cast<const void*>(w.floats) : w.integers;
            held->second = append(from, 4 * product(w.shape));
        }
        return held->second;
    }

    // Taps that are fetched beforehand: outside where the ring's place is, else where they were fetched to.
    void fetch_taps(const Instruction& i, const Beside& beside, Command& c) {
        Entry& block = entries_.back();
        std::vector<std::int16_t> far;
        for (int tap = 0; tap < i.tap_end; ++tap) far.push_back(number(address(*i.source, &i.taps[at(tap)])));
        c.tap = static_cast<std::int16_t>(block.addresses);
        c.source.space = kFastSpace;
        for (int tap = 0; tap < i.tap_end; ++tap) {
            Address near = addresses_[at(block.address + far[at(tap)])];
            near.base = narrow(to_.buffers[at(beside.fetched[at(tap)])].base);
            near.stride[0] = 0;
            addresses_.push_back(near);
            fetches_.push_back({far[at(tap)], near.base, c.source.width});
            ++block.fetches;
            ++to_.tally.fetches;
        }
        addresses_.push_back(address(*beside.fresh, nullptr));
        block.addresses += narrow(static_cast<std::int64_t>(i.taps.size()));
        c.fresh = {};
    }

    void matrix(const Instruction& i, const Beside& beside, Command& c) {
        const MatrixShape all = shape_of(i);
        const auto [banks, outputs, taps, inputs] = all;
        c.outputs = narrow(outputs);
        c.inputs = narrow(inputs);
        if (i.op == cpu::Op::kReadout) std::swap(c.function, c.input_function);
        c.storage = sums_by_warps(i) ? Storage::kRows : storage_of(options_.precision);
        const auto near = [&](int buffer) { return to_.buffers[at(buffer)].space == kFastSpace; };
        if (!beside.fetched.empty() && near(beside.fresh->buffer) &&
            std::all_of(beside.fetched.begin(), beside.fetched.end(), near)) {
            fetch_taps(i, beside, c);
        } else if (!i.taps.empty()) {
            c.tap = static_cast<std::int16_t>(entries_.back().addresses);
            for (const auto& tap : i.taps) {
                // Taps are numbered one after another, so that none may be shared with what came before.
                addresses_.push_back(address(*i.source, &tap));
                ++entries_.back().addresses;
            }
        }
        if (!i.taps.empty()) {
            to_.stretch.most_addresses = std::max(to_.stretch.most_addresses, entries_.back().addresses);
            c.taps = static_cast<std::int16_t>(taps);
        }
        if (c.storage == Storage::kRows) {
            c.weight = table(i.weight);
            c.bank_bytes = 4 * c.outputs * taps * c.inputs;
        } else {
            c.shared_out = is_shared_out(c, bank_bytes(all, c.storage));
            c.own_copy = own_.contains(i.out->buffer);
            // Whoever adds to sums that lie with their tiles has its own where they are.
            const bool fixed = c.own_copy || (i.add && own_.contains(i.add->buffer));
            auto& held = packed_[{i.weight, banks, taps, c.shared_out, fixed}];
            if (held.bank_bytes == 0) held = keep(program_.weights[at(i.weight)].floats, all, c, fixed);
            c.first_block = held.first_block;
            c.weight = held.weights;
            c.scales = held.scales;
            c.bank_bytes = held.bank_bytes;
            c.tile_bytes = held.tile_bytes;
            c.resident = held.resident;
            const std::int64_t steps = taps * ((c.inputs + kStep - 1) / kStep);
            c.parts = narrow(std::clamp<std::int64_t>(steps / kStepsPerPart, 1, kMaxParts));
            to_.stretch.most_parts = std::max(to_.stretch.most_parts, c.parts);
        }
        if (c.storage == Storage::kRows) c.shared_out = is_shared_out(c, c.bank_bytes);
        double share = c.shared_out ? 1.0 / static_cast<double>(options_.blocks) : 1.0;
        if (i.spans >= 0) share /= static_cast<double>(program_.weights[at(i.spans)].shape[0] - 1);
        const auto read = static_cast<std::int64_t>(share * static_cast<double>(c.bank_bytes));
        to_.tally.weight_bytes += read;
        if (c.resident >= 0) to_.tally.resident_bytes += read;
        to_.tally.streams += c.resident < 0 || c.source.space == kSlowSpace;
    }

    // What every block does on its own copy of a row's fast numbers costs no exchange.
    bool is_shared_out(const Command& c, std::int64_t matrix_bytes) const {
        const bool slow = c.out.space != kFastSpace || (c.cell_out.present() && c.cell_out.space != kFastSpace);
        const bool large = c.op == Op::kMatrix && matrix_bytes > options_.local_bytes;
        return slow || large || c.op == Op::kAttention || c.op == Op::kDraw || c.op == Op::kEmit;
    }

    struct Held {
        std::int64_t weights = 0;
        std::int64_t scales = -1;
        std::int64_t bank_bytes = 0;
        std::int64_t resident = -1;
        std::int32_t tile_bytes = 0;
        std::int32_t first_block = 0;
    };

    // Room in every block's shared memory, of which matrices of fewer tiles than blocks leave some blocks' free.
    struct Shelf {
        std::int64_t to;
        std::int64_t bytes;
        std::int64_t blocks;  // whose room is taken
    };

    Held keep(const float* weights, const MatrixShape& shape, const Command& c, bool fixed) {
        const Storage storage = c.storage;
        Held held;
        held.tile_bytes = narrow(tile_bytes(shape, storage));
        const std::int64_t tiles = (shape.outputs + outputs_of_tile(storage) - 1) / outputs_of_tile(storage);
        held.bank_bytes = bank_bytes(shape, storage);
        if (options_.contents) {
            const Packed m = pack(weights, shape, storage);
            held.weights = append(m.weights.data(), static_cast<std::int64_t>(m.weights.size()));
            if (!m.scales.empty()) {
                held.scales = append(m.scales.data(), 4 * static_cast<std::int64_t>(m.scales.size()));
            }
        } else {
            held.weights = append(nullptr, shape.banks * held.bank_bytes);
            if (storage == Storage::kInt8) held.scales = append(nullptr, 4 * shape.banks * shape.outputs);
        }
        Stretch& s = to_.stretch;
        const std::int64_t apart = c.shared_out ? options_.blocks : 1;
        const std::int64_t own = (tiles + apart - 1) / apart * shape.banks * held.tile_bytes;
        const auto shelf = std::find_if(shelves_.begin(), shelves_.end(), [&](const Shelf& one) {
            return !fixed && one.bytes == own && one.blocks + tiles <= apart;
        });
        if (shelf != shelves_.end()) {
            held.resident = shelf->to;
            held.first_block = narrow(shelf->blocks);
            shelf->blocks += tiles;
        } else if (s.resident_bytes + own <= options_.resident_bytes) {
            held.resident = s.resident_bytes;
            s.resident_bytes += own;
            if (tiles < apart) shelves_.push_back({held.resident, own, tiles});
        } else {
            return held;
        }
        residents_.push_back({held.weights, held.resident, held.tile_bytes, narrow(tiles), narrow(shape.banks),
                              narrow(apart), held.first_block});
        return held;
    }

    static Storage storage_of(Precision precision) {
        switch (precision) {
            case Precision::kBfloat16:
                return Storage::kBfloat16;
            case Precision::kFloat16:
                return Storage::kFloat16;
            case Precision::kInt8:
                return Storage::kInt8;
            default:
                return Storage::kFloat32;
        }
    }

    static Op op_of(cpu::Op op) {
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

    void command(const Instruction& i, const Beside& beside) {
        Command c;
        c.op = op_of(i.op);
        c.place = i.place;
        c.function = i.function;
        c.gate = i.gate;
        c.norm = i.norm;
        c.cell_kind = i.cell_kind;
        c.elementwise = static_cast<Elementwise>(i.elementwise);
        c.out = operand(i.out);
        c.source = i.taps.empty()
                       ? operand(i.source)
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
        share(i, beside, c);
        commands_.push_back(c);
        ++entries_.back().commands;
        ++to_.tally.commands;
    }

    std::int16_t space_of(const Ref& ref) const { return static_cast<std::int16_t>(to_.buffers[at(ref.buffer)].space); }

    void law(const Instruction& i, Command& c) {
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

    // Whom the command waits for, and whether an edge tells the others of it.
    void share(const Instruction& i, const Beside& beside, Command& c) {
        if (c.op != Op::kMatrix) c.shared_out = is_shared_out(c, 0);
        std::vector<Before> now{{.accesses = cpu::accesses(i), .shared_out = c.shared_out && !c.own_copy}};
        // Only the last command of a block writes a value, and none of the block reads that one.
        std::erase_if(now[0].accesses.reads, [](const cpu::Access& one) { return one.ref.buffer == cpu::kValues; });
        // What was fetched came before the block of commands began.
        if (!beside.fetched.empty()) now[0].accesses.reads.erase(now[0].accesses.reads.begin());
        if (beside.fresh) now[0].accesses.reads.push_back({.ref = *beside.fresh});
        if (beside.mirror) {
            now.push_back({.accesses = {.reads = {}, .writes = {{.ref = *beside.mirror}}}, .shared_out = true});
        }
        std::set<int> edges;
        for (const Before& one : before_) {
            for (const Before& own : now) {
                const Meeting needed = meets(one, own, edges);
                if (needed != Meeting::kBlock || !one.block_met) c.meeting = std::max(c.meeting, needed);
            }
        }
        for (const int edge : edges) wait_for(c, edge);
        if (c.meeting == Meeting::kTeam) {
            // Edges are waited for all the same: each of them has to be, once.
            std::erase_if(before_, [](const Before& one) { return one.edge < 0 || one.waited; });
        }
        if (c.meeting != Meeting::kNobody) {
            for (Before& one : before_) one.block_met = true;
        }
        to_.tally.team_meetings += c.meeting == Meeting::kTeam;
        to_.tally.block_meetings += c.meeting == Meeting::kBlock;
        Entry& block = entries_.back();
        const bool sends = shares_copies() && c.op == Op::kMatrix && c.storage != Storage::kRows && c.shared_out &&
                           !c.own_copy && c.out.space == kFastSpace && c.outputs <= kMostSent;
        if (sends && block.edges < kMaxEdges) {
            now[0].edge = c.edge = static_cast<std::int8_t>(block.edges++);
            to_.stretch.edges = kMaxEdges;
        }
        before_.insert(before_.end(), now.begin(), now.end());
    }

    // A command, or what it does in global memory beside, since the last meeting of the team.
    struct Before {
        Accesses accesses;
        bool shared_out = false;
        int edge = -1;
        bool waited = false;     // for the edge
        bool block_met = false;  // since
    };

    // Adds the edge by which the earlier one's results come, where the later one needs them or takes their place.
    Meeting meets(const Before& earlier, const Before& later, std::set<int>& edges) const {
        const Accesses wrote{.reads = {}, .writes = earlier.accesses.writes};
        const Accesses read{.reads = earlier.accesses.reads, .writes = {}};
        const Accesses reads{.reads = later.accesses.reads, .writes = {}};
        const Accesses writes{.reads = {}, .writes = later.accesses.writes};
        bool any = false;
        bool team = false;
        const bool needs = cpu::depends(program_, wrote, reads);
        const bool replaces = cpu::depends(program_, wrote, writes);
        if ((needs || replaces) && earlier.edge >= 0 && !earlier.waited) edges.insert(earlier.edge);
        if (needs && earlier.edge < 0) {
            any = true;
            team = team || earlier.shared_out;
        }
        if (cpu::depends(program_, read, writes)) {
            any = true;
            team = team || later.shared_out;
        }
        if (replaces) {
            any = true;
            team = team || earlier.shared_out || later.shared_out;
        }
        return team ? Meeting::kTeam : any ? Meeting::kBlock : Meeting::kNobody;
    }

    template <typename T>
    std::int64_t put(const std::vector<T>& all) {
        static_assert(std::is_trivially_copyable_v<T>);
        const std::size_t begin = (to_.bytes.size() + 255) / 256 * 256;
        to_.bytes.resize(begin + all.size() * sizeof(T));
        if (!all.empty()) std::memcpy(to_.bytes.data() + begin, all.data(), all.size() * sizeof(T));
        return static_cast<std::int64_t>(begin);
    }

    void lay_out() {
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
        // The commands name weights by their distance from the beginning, known once everything before them is placed.
        s.commands = put(commands_);
        const auto begin = static_cast<std::int64_t>((to_.bytes.size() + 255) / 256 * 256);
        for (Resident& one : residents_) one.from += begin;
        for (Command& c : commands_) {
            for (std::int64_t* one : {&c.weight, &c.bias, &c.scales, &c.spans, &c.reach}) {
                if (*one >= 0) *one += begin;
            }
        }
        std::memcpy(to_.bytes.data() + s.commands, commands_.data(), commands_.size() * sizeof(Command));
        std::memcpy(to_.bytes.data() + s.residents, residents_.data(), residents_.size() * sizeof(Resident));
        put(weights_);
        to_.size = begin + weight_bytes_;
    }

    Program program_;
    const AssemblyOptions& options_;
    Assembly& to_;
    std::vector<Entry> entries_;
    std::vector<Command> commands_;
    std::vector<Address> addresses_;
    std::vector<Head> laws_;
    std::vector<Resident> residents_;
    std::vector<std::byte> weights_;
    std::int64_t weight_bytes_ = 0;
    std::map<int, std::int64_t> tables_;
    std::map<std::tuple<int, std::int64_t, std::int64_t, bool, bool>, Held> packed_;
    std::vector<Shelf> shelves_;
    std::vector<Beside> beside_;
    std::set<int> own_;           // buffers of which a block needs the numbers of its own tiles only
    std::map<int, int> instead_;  // buffers whose place is another's
    std::vector<Part> parts_;
    std::vector<Fetch> fetches_;
    std::vector<Before> before_;
};

}  // namespace

Assembly::Assembly(Program given, const AssemblyOptions& options) {
    const std::size_t own = given.buffers.size();
    Assembler(with_inputs_activated(std::move(given)), options, *this).run();
    buffers.resize(own);
}

}  // namespace fastar::cuda
