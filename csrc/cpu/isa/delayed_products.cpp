// Gradients of weights: the product of delayed_tile.h with times in the place of inputs. Its left side is the
// gradient's rows as they lie; its panel, kWidth pairs of a tap and an input wide, is the source turned on its side.
#include <memory>

#include "cpu/isa/delayed.h"
#include "cpu/isa/delayed_tile.h"

namespace fastar::cpu::FASTAR_ISA {
namespace {

// What rows are read as; a word is one of them or, of bfloat16 pairs, two neighbouring times.
template <typename T>
using Entry = std::conditional_t<kPairs<T>, Bfloat16, float>;
template <typename T>
constexpr std::int64_t kPerWord = kPairs<T> ? 2 : 1;

// Times between two visits of the sums to memory.
template <typename T>
constexpr std::int64_t kTimes = kChunk * kPerWord<T>;

// Lane i of vector j becomes lane j of vector i. Each round moves the highest bit of a vector's number to the lowest
// bit of the lanes' and back.
void transpose(Floats (&block)[kLanes]) {
    for (int half = kLanes / 2; half > 0; half /= 2) {
        Floats next[kLanes];
#pragma GCC unroll 8
        for (int i = 0; i < kLanes / 2; ++i) interleave(block[i], block[i + kLanes / 2], next[2 * i], next[2 * i + 1]);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) block[i] = next[i];
    }
}

// `words` is a multiple of kLanes.
template <typename T>
void pack_columns(const Entry<T>* const* columns, std::int64_t words, Word<T>* panel) {
    for (std::int64_t t = 0; t < words; t += kLanes) {
        for (std::int64_t c = 0; c < kWidth; c += kLanes) {
            Floats block[kLanes];
            for (int i = 0; i < kLanes; ++i) __builtin_memcpy(&block[i], columns[c + i] + t * kPerWord<T>, 4 * kLanes);
            transpose(block);
            for (int i = 0; i < kLanes; ++i) store(reinterpret_cast<float*>(panel) + (t + i) * kWidth + c, block[i]);
        }
    }
}

// sums [rows, kWidth] += the rows' words times the panel; rows are a multiple of kTileRows.
template <typename T>
void multiply_rows(const Entry<T>* const* rows, std::int64_t count, const Word<T>* panel, std::int64_t words,
                   float* sums) {
    for (std::int64_t r = 0; r < count; r += kTileRows) {
        const Entry<T>* lines[kTileRows];
        std::copy_n(rows + r, kTileRows, lines);
        const auto word = [&](std::int64_t k, int i) {
            Word<T> value;
            __builtin_memcpy(&value, lines[i] + k * kPerWord<T>, sizeof value);
            return value;
        };
        tile<T, kTileRows, kTileVectors>(word, panel, words, false, sums + r * kWidth);
    }
}

// `count` elements and zeros up to `entries`: where they lie, if nothing is missing there, or copied to `near`.
template <typename T>
const Entry<T>* entries_of(const T* data, std::int64_t count, std::int64_t entries, Entry<T>* near) {
    if constexpr (std::is_same_v<T, Entry<T>>) {
        if (count == entries) return data;
        std::copy_n(data, count, near);
    } else {
        for (std::int64_t t = 0; t < count; t += kLanes) {
            store_upto(near + t, load_elements(data + t, count - t), entries - t);
        }
    }
    std::fill(near + count, near + entries, Entry<T>{});
    return near;
}

// The same of a channel at times first + offset + [0, count): its data, its history or nothing.
template <typename T>
const Entry<T>* delayed_entries(const Source& s, std::int64_t b, std::int64_t channel, std::int64_t first,
                                std::int64_t offset, std::int64_t count, std::int64_t entries, Entry<T>* near) {
    const T* data = static_cast<const T*>(s.data) + b * s.batch_stride + channel * s.channel_stride;
    const std::int64_t begin = first + offset;
    if (begin >= 0 && begin + count <= s.length && !s.index) {
        return entries_of<T>(data + begin, count, entries, near);
    }
    const T* history = static_cast<const T*>(s.history) + b * s.history_batch_stride +
                       channel * s.history_channel_stride + s.history_length;
    const std::int32_t* index = s.index ? s.index + b * s.length : nullptr;
    T seen[kTimes<T>];
    for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t t = begin + i;
        if (t >= 0 && t < s.length) {
            seen[i] = !index || index[t] == index[first + i] ? data[t] : T{};
        } else {
            seen[i] = t < 0 && t >= -s.history_length ? history[t] : T{};
        }
    }
    std::fill(seen + count, seen + entries, T{});
    if constexpr (std::is_same_v<T, Entry<T>>) {
        std::copy_n(seen, entries, near);
        return near;
    } else {
        return entries_of<T>(seen, entries, entries, near);
    }
}

std::int64_t size(const DelayedProducts& a) {
    return a.groups * a.outputs * a.inputs * a.taps;
}

// Sums of an item, in the second cache level beside the rows of a chunk, and rows for which a panel is packed once.
constexpr std::int64_t kSums = 1 << 17;
constexpr std::int64_t kRows = 256;
// The least work of an item, in chunks, and how many items are enough.
constexpr std::int64_t kChunks = 4;
constexpr std::int64_t kItems = 32;

constexpr std::int64_t pieces(std::int64_t count, std::int64_t size) {
    return (count + size - 1) / size;
}

template <typename T>
std::int64_t chunks_of(const DelayedProducts& a) {
    return a.batch * pieces(a.source.length, kTimes<T>);
}

template <typename T>
void products(const DelayedProducts& a, const ProductsExtent& extent, float* partial, std::int64_t begin,
              std::int64_t end) {
    const std::int64_t depth = a.inputs * a.taps;
    const std::int64_t across = pieces(depth, extent.columns);
    const std::int64_t down = pieces(a.outputs, extent.rows);
    const std::int64_t per_row = pieces(a.source.length, kTimes<T>);
    const auto index = [](std::int64_t n) { return static_cast<std::size_t>(n); };
    const std::int64_t elements = extent.rows * extent.columns;
    const auto sums = std::make_unique_for_overwrite<float[]>(index(elements));
    const auto near = std::make_unique_for_overwrite<Entry<T>[]>(index((extent.rows + kWidth) * kTimes<T>));
    // Rows and columns beyond the last repeat it: their sums are never read.
    std::vector<const Entry<T>*> grads(index(extent.rows));
    const Entry<T>* columns[kWidth];
    alignas(64) Word<T> panel[kChunk * kWidth];
    for (std::int64_t item = begin; item < end; ++item) {
        const std::int64_t segment = item % extent.segments;
        const std::int64_t place = item / extent.segments;
        const std::int64_t g = place / across / down;
        const std::int64_t first_row = place / across % down * extent.rows;
        const std::int64_t first_column = place % across * extent.columns;
        const std::int64_t rows = std::min(extent.rows, a.outputs - first_row);
        const std::int64_t tiles = tiles_of(rows) * kTileRows;
        const std::int64_t last_column = std::min(first_column + extent.columns, depth);
        std::fill_n(sums.get(), elements, 0.0f);
        const std::int64_t chunks = chunks_of<T>(a);
        const std::int64_t last_chunk = (segment + 1) * chunks / extent.segments;
        for (std::int64_t chunk = segment * chunks / extent.segments; chunk < last_chunk; ++chunk) {
            const std::int64_t b = chunk / per_row;
            const std::int64_t first = chunk % per_row * kTimes<T>;
            const std::int64_t count = std::min(kTimes<T>, a.source.length - first);
            constexpr std::int64_t kWhole = kLanes * kPerWord<T>;
            const std::int64_t entries = pieces(count, kWhole) * kWhole;
            const T* grad =
                static_cast<const T*>(a.grad) + b * a.grad_batch + (g * a.outputs + first_row) * a.grad_channel;
            for (std::int64_t r = 0; r < tiles; ++r) {
                grads[index(r)] = r >= rows ? grads[index(r - 1)]
                                            : entries_of<T>(grad + r * a.grad_channel + first, count, entries,
                                                            near.get() + r * kTimes<T>);
            }
            float* window = sums.get();
            for (std::int64_t start = first_column; start < last_column; start += kWidth) {
                for (std::int64_t c = 0; c < kWidth; ++c) {
                    const std::int64_t k = (start + c) / a.inputs;
                    const std::int64_t channel = g * a.inputs + (start + c) % a.inputs;
                    columns[c] = start + c >= last_column
                                     ? columns[c - 1]
                                     : delayed_entries<T>(a.source, b, channel, first, a.offsets[k], count, entries,
                                                          near.get() + (extent.rows + c) * kTimes<T>);
                }
                pack_columns<T>(columns, entries / kPerWord<T>, panel);
                multiply_rows<T>(grads.data(), tiles, panel, entries / kPerWord<T>, window);
                window += extent.rows * kWidth;
            }
        }
        float* out = partial + segment * size(a) + (g * a.outputs + first_row) * depth;
        for (std::int64_t c = first_column; c < last_column; c += kWidth) {
            const float* window = sums.get() + (c - first_column) * extent.rows;
            for (std::int64_t r = 0; r < rows; ++r) {
                std::copy_n(window + r * kWidth, std::min<std::int64_t>(kWidth, last_column - c), out + r * depth + c);
            }
        }
    }
}

}  // namespace

ProductsExtent products_extent(const DelayedProducts& a) {
    ProductsExtent extent{};
    const std::int64_t depth = a.inputs * a.taps;
    if (size(a) == 0) return extent;
    extent.rows = std::min(kRows, tiles_of(a.outputs) * kTileRows);
    const std::int64_t panels = pieces(depth, kWidth);
    extent.columns = pieces(panels, pieces(panels, kSums / extent.rows / kWidth)) * kWidth;
    const std::int64_t parts = a.groups * pieces(a.outputs, extent.rows) * pieces(depth, extent.columns);
    by_element(a.element, [&](auto element) {
        const std::int64_t most = chunks_of<decltype(element)>(a) / kChunks;
        extent.segments = std::clamp<std::int64_t>(pieces(kItems, parts), 1, std::max<std::int64_t>(1, most));
    });
    extent.items = parts * extent.segments;
    extent.floats = extent.segments * size(a);
    return extent;
}

void delayed_products(const DelayedProducts& a, const ProductsExtent& extent, float* partial, std::int64_t begin,
                      std::int64_t end) {
    by_element(a.element, [&](auto element) { products<decltype(element)>(a, extent, partial, begin, end); });
}

void sum_products(const DelayedProducts& a, const ProductsExtent& extent, const float* partial, std::int64_t begin,
                  std::int64_t end) {
    by_element(a.element, [&](auto element) {
        using T = decltype(element);
        const std::int64_t depth = a.inputs * a.taps;
        std::vector<float> row(static_cast<std::size_t>(depth));
        for (std::int64_t r = begin; r < end; ++r) {
            std::copy_n(partial + r * depth, depth, row.begin());
            for (std::int64_t segment = 1; segment < extent.segments; ++segment) {
                const float* more = partial + segment * size(a) + r * depth;
                for (std::int64_t c = 0; c < depth; ++c) row[static_cast<std::size_t>(c)] += more[c];
            }
            T* out = static_cast<T*>(a.out) + r * depth;
            for (std::int64_t c = 0; c < depth; ++c) {
                out[c % a.inputs * a.taps + c / a.inputs] = narrow<T>(row[static_cast<std::size_t>(c)]);
            }
        }
    });
}

}  // namespace fastar::cpu::FASTAR_ISA
