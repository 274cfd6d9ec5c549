// Gradients of weights: products of two rows along time. Times are lanes on both sides, so neither side is transposed;
// a lane's sum goes from the first time to the last, and lanes are added at the end.
#include "cpu/isa/delayed.h"
#include "cpu/isa/delayed_tile.h"

namespace fastar::cpu::FASTAR_ISA {
namespace {

// Sums that the registers hold beside one vector of each row of the source and one of the gradient.
constexpr int kDown = kLanes == 16 ? 8 : 4;
constexpr int kAcross = kLanes == 16 ? 3 : 2;

// Times between two visits of the sums to memory. Eight rows of them stay in the first cache level while all rows of
// the other side go by.
constexpr std::int64_t kTimes = 512;

// What rows are read as: words as in delayed_tile.h, but a pair is of neighbouring times.
template <typename T>
using Entry = std::conditional_t<kPairs<T>, Bfloat16, float>;
template <typename T>
constexpr int kEntries = kLanes * (kPairs<T> ? 2 : 1);

template <typename T>
Floats load_entries(const Entry<T>* p) {
    Floats a;
    __builtin_memcpy(&a, p, sizeof a);
    return a;
}

template <typename T>
Floats add_products(Floats a, Floats b, Floats sum) {
#ifdef __AVX512BF16__
    if constexpr (kPairs<T>) return _mm512_dpbf16_ps(sum, (__m512bh)bits_of(a), (__m512bh)bits_of(b));
#endif
    return fma(a, b, sum);
}

// sums[r][c], one vector each, += rows of grad times rows of source. Unrolled as in delayed_tile.h.
template <typename T>
void tile(const Entry<T>* const* grad, const Entry<T>* const* source, std::int64_t entries, float* sums,
          std::int64_t stride) {
    Floats total[kDown][kAcross];
#pragma GCC unroll 8
    for (int r = 0; r < kDown; ++r) {
#pragma GCC unroll 4
        for (int c = 0; c < kAcross; ++c) total[r][c] = load(sums + r * stride + c * kLanes);
    }
    for (std::int64_t t = 0; t < entries; t += kEntries<T>) {
        Floats one[kAcross];
#pragma GCC unroll 4
        for (int c = 0; c < kAcross; ++c) one[c] = load_entries<T>(source[c] + t);
#pragma GCC unroll 8
        for (int r = 0; r < kDown; ++r) {
            const Floats row = load_entries<T>(grad[r] + t);
#pragma GCC unroll 4
            for (int c = 0; c < kAcross; ++c) total[r][c] = add_products<T>(row, one[c], total[r][c]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kDown; ++r) {
#pragma GCC unroll 4
        for (int c = 0; c < kAcross; ++c) store(sums + r * stride + c * kLanes, total[r][c]);
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
    T seen[kTimes];
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

template <typename T>
void products(const DelayedProducts& a, std::int64_t begin, std::int64_t end) {
    const std::int64_t depth = a.inputs * a.taps;
    const std::int64_t across = (depth + a.columns - 1) / a.columns;
    const std::int64_t down = (a.outputs + a.rows - 1) / a.rows;
    const std::int64_t stride = a.columns * kLanes;
    const auto size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
    std::vector<float> sums(size(a.rows * stride));
    std::vector<Entry<T>> near(size((a.rows + a.columns) * kTimes));
    // Rows beyond the last repeat it: their sums are never read.
    std::vector<const Entry<T>*> grads(size(a.rows));
    std::vector<const Entry<T>*> sources(size(a.columns));
    for (std::int64_t item = begin; item < end; ++item) {
        const std::int64_t g = item / across / down;
        const std::int64_t first_row = item / across % down * a.rows;
        const std::int64_t first_column = item % across * a.columns;
        const std::int64_t rows = std::min(a.rows, a.outputs - first_row);
        const std::int64_t columns = std::min(a.columns, depth - first_column);
        std::fill(sums.begin(), sums.end(), 0.0f);
        for (std::int64_t b = 0; b < a.batch; ++b) {
            const T* grad =
                static_cast<const T*>(a.grad) + b * a.grad_batch + (g * a.outputs + first_row) * a.grad_channel;
            for (std::int64_t first = 0; first < a.source.length; first += kTimes) {
                const std::int64_t count = std::min(kTimes, a.source.length - first);
                const std::int64_t entries = (count + kEntries<T> - 1) / kEntries<T> * kEntries<T>;
                for (std::int64_t r = 0; r < a.rows; ++r) {
                    grads[size(r)] = r >= rows ? grads[size(r - 1)]
                                               : entries_of<T>(grad + r * a.grad_channel + first, count, entries,
                                                               near.data() + r * kTimes);
                }
                for (std::int64_t c = 0; c < a.columns; ++c) {
                    const std::int64_t k = (first_column + c) / a.inputs;
                    const std::int64_t channel = g * a.inputs + (first_column + c) % a.inputs;
                    sources[size(c)] = c >= columns
                                           ? sources[size(c - 1)]
                                           : delayed_entries<T>(a.source, b, channel, first, a.offsets[k], count,
                                                                entries, near.data() + (a.rows + c) * kTimes);
                }
                for (std::int64_t r = 0; r < rows; r += kDown) {
                    for (std::int64_t c = 0; c < columns; c += kAcross) {
                        tile<T>(grads.data() + r, sources.data() + c, entries, sums.data() + r * stride + c * kLanes,
                                stride);
                    }
                }
            }
        }
        for (std::int64_t r = 0; r < rows; ++r) {
            T* out = static_cast<T*>(a.out) + (g * a.outputs + first_row + r) * depth;
            for (std::int64_t c = 0; c < columns; ++c) {
                const std::int64_t k = (first_column + c) / a.inputs;
                const std::int64_t i = (first_column + c) % a.inputs;
                out[i * a.taps + k] = narrow<T>(sum(load(sums.data() + r * stride + c * kLanes)));
            }
        }
    }
}

}  // namespace

void delayed_products(const DelayedProducts& a, std::int64_t begin, std::int64_t end) {
    by_element(a.element, [&](auto element) { products<decltype(element)>(a, begin, end); });
}

}  // namespace fastar::cpu::FASTAR_ISA
