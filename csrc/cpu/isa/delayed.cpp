#include "cpu/isa/delayed.h"

#include "cpu/isa/delayed_tile.h"
#include "cpu/isa/gates.h"

namespace fastar::cpu::FASTAR_ISA {
namespace {

template <typename T>
void pack(const DelayedSum& a, std::int64_t begin, std::int64_t end, Word<T>* packed) {
    const std::int64_t tiles = tiles_of(a.outputs);
    Matrix<T> matrix{
        static_cast<const T*>(a.weight), a.weight_output, a.weight_input, a.weight_tap, a.outputs, a.inputs, a.taps};
    for (std::int64_t g = begin / tiles; g * tiles < end; ++g) {
        matrix.data = static_cast<const T*>(a.weight) + g * a.weight_group;
        pack_tiles<T>(matrix, std::max<std::int64_t>(begin - g * tiles, 0), std::min(end - g * tiles, tiles),
                      packed + g * matrix.words());
    }
}

// Rows [begin, end) of a window of sums into the result.
template <typename T>
void finish(const DelayedSum& a, const float* sums, const float* bias, std::int64_t offset, std::int64_t count,
            std::int64_t begin, std::int64_t end) {
    by_gate(a.activation, [&](auto gate) {
        for (std::int64_t o = begin; o < end; ++o) {
            const Floats shift = splat(bias ? bias[o] : 0.0f);
            T* out = static_cast<T*>(a.out) + offset + o * a.count;
            T* kept = a.kept ? static_cast<T*>(a.kept) + offset + o * a.count : nullptr;
            for (std::int64_t t = 0; t < count; t += kLanes) {
                const Floats z = load(sums + o * kWidth + t) + shift;
                if (kept) store_elements(kept + t, z, count - t);
                store_elements(out + t, activate<decltype(gate)::value>(z), count - t);
            }
        }
    });
}

template <typename T>
void sum_items(const DelayedSum& a, const Word<T>* packed, std::int64_t begin, std::int64_t end) {
    const std::int64_t windows_per_row = (a.count + kWidth - 1) / kWidth;
    const std::int64_t words = words_of<T>(a.inputs);
    const std::int64_t depth = a.taps * words;
    const std::int64_t tiles = tiles_of(a.outputs);
    std::vector<float> sums(static_cast<std::size_t>(tiles * kTileRows * kWidth));
    std::vector<Window> windows(static_cast<std::size_t>(a.taps));
    alignas(64) Word<T> panel[kChunk * kWidth];
    for (std::int64_t item = begin; item < end; ++item) {
        const std::int64_t at = item % windows_per_row * kWidth;
        const std::int64_t g = item / windows_per_row % a.groups;
        const std::int64_t b = item / windows_per_row / a.groups;
        const std::int64_t count = std::min<std::int64_t>(kWidth, a.count - at);
        const std::int64_t vectors = (count + kLanes - 1) / kLanes;
        for (std::int64_t k = 0; k < a.taps; ++k) {
            windows[static_cast<std::size_t>(k)] = window_of(a.source, b, a.first + at, a.offsets[k], count);
        }
        const float* bias = a.bias ? a.bias + g * a.outputs : nullptr;
        const std::int64_t offset = (b * a.groups + g) * a.outputs * a.count + at;
        const Word<T>* weight = packed + g * tiles * depth * kTileRows;
        for (std::int64_t d = 0; d < depth; d += kChunk) {
            const std::int64_t rows = std::min(kChunk, depth - d);
            pack_panel<T>(a.source, windows.data(), b, g * a.inputs, a.inputs, d, d + rows, panel);
            // A tile is written as soon as it is ready, while the next one is being computed.
            multiply<T>(weight + d * kTileRows, depth * kTileRows, panel, a.outputs, rows, vectors, d == 0, sums.data(),
                        [&](std::int64_t first, std::int64_t last) {
                            if (d + rows == depth) finish<T>(a, sums.data(), bias, offset, count, first, last);
                        });
        }
    }
}

}  // namespace

DelayedExtent delayed_extent(const DelayedSum& a) {
    DelayedExtent extent{};
    by_element(a.element, [&](auto element) {
        using T = decltype(element);
        extent.tiles = a.groups * tiles_of(a.outputs);
        extent.bytes = extent.tiles * kTileRows * a.taps * words_of<T>(a.inputs) * 4;
    });
    extent.items = a.batch * a.groups * ((a.count + kWidth - 1) / kWidth);
    return extent;
}

void pack_delayed(const DelayedSum& a, std::int64_t begin, std::int64_t end, void* packed) {
    by_element(a.element, [&](auto element) {
        using T = decltype(element);
        pack<T>(a, begin, end, static_cast<Word<T>*>(packed));
    });
}

void delayed_sum(const DelayedSum& a, const void* packed, std::int64_t begin, std::int64_t end) {
    by_element(a.element, [&](auto element) {
        using T = decltype(element);
        sum_items<T>(a, static_cast<const Word<T>*>(packed), begin, end);
    });
}

}  // namespace fastar::cpu::FASTAR_ISA
