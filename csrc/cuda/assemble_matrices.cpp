// Weights: packed, kept in shared memory where there is room, and read in tiles.
#include <algorithm>

#include "cuda/assembler.h"

namespace fastar::cuda {
namespace {

// Bytes of rows that are fetched beforehand: two of a thousand numbers, and a few more.
constexpr std::int64_t kMostNextRows = 16 * 1024;

}  // namespace

MatrixShape Assembler::shape_of(const Instruction& i) const {
    const bool banked = i.op == cpu::Op::kReadout || (i.index && i.op != cpu::Op::kSpanLinear);
    return {.banks = banked ? program_.weights[at(i.weight)].shape[0] : 1,
            .outputs = i.out->width,
            .taps = std::max<std::int64_t>(1, static_cast<std::int64_t>(i.taps.size())),
            .inputs = i.source->width};
}

std::int64_t Assembler::append(const void* from, std::int64_t bytes) {
    const std::int64_t begin = (weight_bytes_ + 255) / 256 * 256;
    weight_bytes_ = begin + bytes;
    if (options_.contents) {
        weights_.resize(static_cast<std::size_t>(weight_bytes_));
        std::memcpy(weights_.data() + begin, from, static_cast<std::size_t>(bytes));
    }
    return begin;
}

std::int64_t Assembler::table(int weight) {
    if (weight < 0) return -1;
    auto [held, fresh] = tables_.try_emplace(weight);
    if (fresh) {
        const cpu::Weight& w = program_.weights[at(weight)];
        const void* from = w.floats ? static_cast<const void*>(w.floats) : w.integers;
        held->second = append(from, 4 * product(w.shape));
    }
    return held->second;
}

void Assembler::fetch_taps(const Instruction& i, const Beside& beside, Command& c) {
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

void Assembler::matrix(const Instruction& i, const Beside& beside, Command& c) {
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

void Assembler::fetch_row(const Instruction& i, Command& c) {
    const bool reads_table = c.op == Op::kAccumulate || c.op == Op::kGather;
    const bool bank = c.op == Op::kMatrix && c.storage == Storage::kRows && c.index >= 0 && c.spans < 0;
    const std::int64_t bytes = bank ? c.bank_bytes : 4 * c.out.width;
    const auto loop = std::find_if(open_.rbegin(), open_.rend(),
                                   [&](std::int32_t entry) { return entries_[at(entry)].control == Control::kLoop; });
    const bool apt = options_.schedule == Schedule::kRow && (bank || c.op == Op::kAccumulate) && bytes % 16 == 0 &&
                     i.index->divisor == 1 && loop != open_.rend() &&
                     to_.stretch.next_row_bytes + kRowHeader + bytes <= kMostNextRows;
    if (!apt) {
        to_.tally.streams += reads_table;
        return;
    }
    const auto step = std::find_if(i.index->terms.begin(), i.index->terms.end(),
                                   [&](const auto& term) { return term.first == entries_[at(*loop)].variable; });
    c.fetched_row = narrow(to_.stretch.next_row_bytes);
    to_.stretch.next_row_bytes += kRowHeader + bytes;
    next_rows_.push_back({.table = c.weight,
                          .address = c.index,
                          .step = step == i.index->terms.end() ? 0 : narrow(step->second),
                          .rows = narrow(program_.weights[at(i.weight)].shape[0]),
                          .bytes = narrow(bytes),
                          .to = c.fetched_row});
    ++entries_.back().next_rows;
    to_.tally.streams -= bank;
}

void Assembler::end_rows() {
    if (entries_.empty() || entries_.back().next_rows == 0) return;
    Entry& block = entries_.back();
    const auto begin = commands_.begin() + block.command;
    const auto end = begin + block.commands;
    auto last = end;
    while (last != begin && (last - 1)->fetched_row < 0) --last;
    // Where all threads of the block have come past the last that reads them.
    const auto place = std::find_if(last, end, [](const Command& c) { return c.meeting != Meeting::kNobody; });
    if (place != end) {
        place->fetches_rows = true;
        return;
    }
    for (auto c = begin; c != end; ++c) {
        to_.tally.streams += c->fetched_row >= 0;
        c->fetched_row = -1;
    }
    next_rows_.resize(at(block.next_row));
    to_.stretch.next_row_bytes = next_rows_.empty() ? 0 : next_rows_.back().to + kRowHeader + next_rows_.back().bytes;
    block.next_rows = 0;
}

Assembler::Held Assembler::keep(const float* weights, const MatrixShape& shape, const Command& c, bool fixed) {
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
        // Matrices of fewer tiles than blocks come to other blocks each.
        if (!fixed) held.first_block = narrow(std::exchange(next_block_, (next_block_ + tiles) % apart));
        return held;
    }
    residents_.push_back({held.weights, held.resident, held.tile_bytes, narrow(tiles), narrow(shape.banks),
                          narrow(apart), held.first_block});
    return held;
}

Storage Assembler::storage_of(Precision precision) {
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
}  // namespace fastar::cuda
