// Where buffers lie, and how an instruction finds them.
#include <algorithm>

#include "cuda/assembler.h"

namespace fastar::cuda {
namespace {

// Where a row's buffers begin: a full vector.
constexpr std::int64_t kAlignment = 4;

}  // namespace

void Assembler::place_buffers() {
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
        const bool held = options_.schedule != Schedule::kGrid || copies_.contains(b);
        const bool fits = held && to_.fast + room <= options_.fast_numbers && !(cache && options_.caches_far);
        std::int64_t& end = fits ? to_.fast : to_.slow;
        to_.buffers[at(b)] = {fits ? kFastSpace : kSlowSpace, end, size(b)};
        end += room;
    }
    for (const auto& [buffer, other] : instead_) to_.buffers[at(buffer)] = to_.buffers[at(other)];
}

void Assembler::find_own() {
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

void Assembler::follow(Ref& ref) const {
    if (const auto found = instead_.find(ref.buffer); found != instead_.end()) ref.buffer = found->second;
}

void Assembler::list_parts() {
    std::erase_if(own_, [&](int buffer) { return to_.buffers[at(buffer)].space != kFastSpace; });
    for (const int buffer : own_) {
        if (instead_.contains(buffer)) continue;
        parts_.push_back({narrow(to_.buffers[at(buffer)].base), narrow(program_.buffers[at(buffer)].shape.back()),
                          outputs_of_tile(storage_of(options_.precision))});
    }
}

Slot Assembler::slot(const Index& index, std::int64_t factor, std::int64_t added) const {
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

std::int16_t Assembler::number(const Address& address) {
    Entry& block = entries_.back();
    for (std::int32_t n = 0; n < block.addresses; ++n) {
        if (std::memcmp(&addresses_[at(block.address + n)], &address, sizeof address) == 0) {
            return static_cast<std::int16_t>(n);
        }
    }
    addresses_.push_back(address);
    to_.stretch.most_addresses = std::max(to_.stretch.most_addresses, block.addresses + 1);
    if (block.addresses == std::numeric_limits<std::int16_t>::max()) {
        throw std::invalid_argument("program: a block of instructions with more places than the cuda executor numbers");
    }
    return static_cast<std::int16_t>(block.addresses++);
}

std::int16_t Assembler::index(const std::optional<Index>& i) {
    if (!i) return -1;
    Address a;
    a.offset = slot(*i);
    return number(a);
}

Address Assembler::address(const Ref& ref, const std::vector<std::int64_t>* tap) {
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
        a.at[a.coordinates] = slot(ref.at[c], 1, shift);
        a.size[a.coordinates] = narrow(buffer.shape[c]);
        a.stride[a.coordinates++] = narrow(strides[c]);
    }
    return a;
}

bool Assembler::join(Slot& offset, const Index& index, std::int64_t stride) const {
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

Operand Assembler::operand(const std::optional<Ref>& ref) {
    if (!ref) return {};
    return {.address = number(address(*ref, nullptr)),
            .space = static_cast<std::int16_t>(to_.buffers[at(ref->buffer)].space),
            .width = narrow(ref->width)};
}

Operand Assembler::whole(int buffer) {
    const std::int64_t width = program_.buffers[at(buffer)].shape.back();
    return operand(Ref{.buffer = buffer, .at = {}, .offset = {}, .width = width});
}
}  // namespace fastar::cuda
