#include "cpu/executor/places.h"

#include <functional>
#include <numeric>
#include <stdexcept>
#include <string>

namespace fastar::cpu {
namespace {

// A cache line, so that rows and buffers start at full vectors.
constexpr std::int64_t kAlignment = 16;
// Rows a multiple of 4 KiB apart would meet in the same sets of the first cache level.
constexpr std::int64_t kPage = 1024;

std::int64_t aligned(std::int64_t n) {
    return (n + kAlignment - 1) / kAlignment * kAlignment;
}

}  // namespace

Slot resolve(const Index& index) {
    if (index.terms.size() > kMaxTerms) {
        throw std::invalid_argument("program: an index of " + std::to_string(index.terms.size()) +
                                    " variables; the cpu executor takes up to " + std::to_string(kMaxTerms));
    }
    Slot slot;
    slot.constant = index.constant;
    slot.divisor = index.divisor;
    for (const auto& [variable, coefficient] : index.terms) {
        slot.variable[slot.terms] = variable;
        slot.coefficient[slot.terms++] = coefficient;
    }
    return slot;
}

void Place::settle() {
    const bool varies = offset.terms > 0 || offset.divisor != 1;
    if (varies || coordinates > 1) return;
    quick.base = base + offset.constant;
    if (coordinates == 0) {
        quick.form = Form::kFixed;
        return;
    }
    const Slot& one = at[0];
    // From 2^32 on the reciprocal is not exact enough, and of size 1 it does not fit.
    if (one.terms > 1 || one.divisor != 1 || (ring && (size[0] < 2 || size[0] >> 32 != 0))) return;
    quick.form = Form::kLine;
    quick.variable = one.variable[0];
    quick.constant = one.constant;
    quick.coefficient = one.coefficient[0];
    quick.size = size[0];
    quick.stride = stride[0];
    if (ring) quick.reciprocal = ~std::uint64_t{0} / static_cast<std::uint64_t>(size[0]) + 1;
}

Layout::Layout(const Program& program) : row_stride(0), inputs(0) {
    for (const Buffer& one : program.buffers) {
        const std::int64_t size =
            std::accumulate(one.shape.begin(), one.shape.end(), std::int64_t{1}, std::multiplies<>());
        if (one.kind == BufferKind::kInput) {
            buffers.push_back({++inputs, 0, size});
        } else {
            buffers.push_back({0, row_stride, size});
            row_stride += aligned(size);
        }
    }
    if (row_stride % kPage == 0) row_stride += kAlignment;
}

Place Layout::resolve(const Program& program, const Ref& ref) const {
    const Buffer& buffer = program.buffers[static_cast<std::size_t>(ref.buffer)];
    if (ref.at.size() > kMaxCoordinates) {
        throw std::invalid_argument("program: buffer " + buffer.name + " has " + std::to_string(ref.at.size()) +
                                    " coordinates; the cpu executor takes up to " + std::to_string(kMaxCoordinates));
    }
    const Where& where = buffers[static_cast<std::size_t>(ref.buffer)];
    Place place;
    place.space = where.space;
    place.base = where.base;
    place.width = ref.width;
    place.ring = buffer.ring;
    place.offset = cpu::resolve(ref.offset);
    place.coordinates = static_cast<int>(ref.at.size());
    std::int64_t stride = buffer.shape.back();
    for (int c = place.coordinates - 1; c >= 0; --c) {
        place.at[c] = cpu::resolve(ref.at[static_cast<std::size_t>(c)]);
        place.size[c] = buffer.shape[static_cast<std::size_t>(c)];
        place.stride[c] = stride;
        stride *= place.size[c];
    }
    place.settle();
    return place;
}

}  // namespace fastar::cpu
