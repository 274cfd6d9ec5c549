// The product that delayed sums are made of: a tile of sums, rows x a few vectors of times, that stays in registers
// while it runs along the depth.
//
// Its right side is a panel: for each tap and input a row of kWidth consecutive times, copied there with its delay, its
// edges and its sequences' borders, so that nothing else in the program knows of them and rows a power of two apart do
// not meet in the cache. A copy is used once for each output, which makes it cheap from about eight outputs on.
//
// Entries of a panel and of a packed weight are words: a float or, of bfloat16 where the processor multiplies pairs,
// two neighbouring inputs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "cpu/delayed.h"
#include "cpu/isa/vector_elements.h"

namespace fastar::cpu::FASTAR_ISA {

// 8 x 3 sums of 32 registers leave room for three vectors of the panel and what is multiplied with them; of 16, 4 x 2.
inline constexpr int kTileRows = kLanes == 16 ? 8 : 4;
inline constexpr int kTileVectors = kLanes == 16 ? 3 : 2;
inline constexpr int kWidth = kTileVectors * kLanes;

// Words of depth between two visits of the sums to memory: the panel of a chunk, 24 KiB, stays in the first cache
// level.
inline constexpr std::int64_t kChunk = 192;

#ifdef __AVX512BF16__
template <typename T>
inline constexpr bool kPairs = std::is_same_v<T, Bfloat16>;
#else
template <typename T>
inline constexpr bool kPairs = false;
#endif

template <typename T>
using Word = std::conditional_t<kPairs<T>, std::uint32_t, float>;

template <typename T>
constexpr std::int64_t words_of(std::int64_t inputs) {
    return kPairs<T> ? (inputs + 1) / 2 : inputs;
}

constexpr std::int64_t tiles_of(std::int64_t rows) {
    return (rows + kTileRows - 1) / kTileRows;
}

template <typename T>
Floats multiply_add(Word<T> a, Floats b, Floats sum) {
#ifdef __AVX512BF16__
    if constexpr (kPairs<T>) {
        return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(static_cast<int>(a)), (__m512bh)bits_of(b));
    } else {
        return fma(splat(a), b, sum);
    }
#else
    return fma(splat(a), b, sum);
#endif
}

// sums [kRows, kWidth] = weight(k, r) times row k of the panel, over the depth; += where they are not `fresh`.
//
// What is new is summed by itself first: of many terms of one sign, a running sum would lose more. Fresh sums need no
// zeros before, which for a whole window's would pass through the second cache level.
//
// The loops over sums are unrolled early, by pragma: only then does GCC keep no copy of the sums in memory.
template <typename T, int kRows, int kVectors, typename Weight>
void tile(Weight weight, const Word<T>* panel, std::int64_t depth, bool fresh, float* sums) {
    Floats c[kRows][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) c[r][v] = splat(0.0f);
    }
    for (std::int64_t k = 0; k < depth; ++k) {
        Floats b[kVectors];
        for (int v = 0; v < kVectors; ++v) b[v] = load(reinterpret_cast<const float*>(panel) + v * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            const Word<T> one = weight(k, r);
            for (int v = 0; v < kVectors; ++v) c[r][v] = multiply_add<T>(one, b[v], c[r][v]);
        }
        panel += kWidth;
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
            float* sum = sums + r * kWidth + v * kLanes;
            store(sum, fresh ? c[r][v] : load(sum) + c[r][v]);
        }
    }
}

template <typename T, int kVectors>
void tile_of_rows(std::int64_t rows, const Word<T>* weight, std::int64_t next, const Word<T>* panel, std::int64_t depth,
                  bool fresh, float* sums) {
    const auto packed = [=](std::int64_t k, int r) {
        // The weight of the next rows comes from the second cache level or the third, in pieces too short for the
        // processor to see where they lead.
        if (r == 0) __builtin_prefetch(weight + next + k * kTileRows);
        return weight[k * kTileRows + r];
    };
    // A last tile of few rows is common where groups are small.
    if (rows > kTileRows / 2) return tile<T, kTileRows, kVectors>(packed, panel, depth, fresh, sums);
    if (rows > kTileRows / 4) return tile<T, kTileRows / 2, kVectors>(packed, panel, depth, fresh, sums);
    tile<T, kTileRows / 4, kVectors>(packed, panel, depth, fresh, sums);
}

// sums [rows, kWidth] = weight [rows, depth] times panel [depth, kWidth], += where they are not fresh, and
// done(first, end) after each tile of rows. The packed weight's tiles are `stride` words apart; sums are allocated for
// whole tiles, and of the columns `vectors` vectors count.
template <typename T, typename Done>
void multiply(const Word<T>* weight, std::int64_t stride, const Word<T>* panel, std::int64_t rows, std::int64_t depth,
              std::int64_t vectors, bool fresh, float* sums, Done done) {
    for (std::int64_t row = 0; row < rows; row += kTileRows) {
        if (vectors == 3) {
            if constexpr (kTileVectors == 3) tile_of_rows<T, 3>(rows - row, weight, stride, panel, depth, fresh, sums);
        } else if (vectors == 2) {
            tile_of_rows<T, 2>(rows - row, weight, stride, panel, depth, fresh, sums);
        } else {
            tile_of_rows<T, 1>(rows - row, weight, stride, panel, depth, fresh, sums);
        }
        done(row, std::min<std::int64_t>(row + kTileRows, rows));
        weight += stride;
        sums += kTileRows * kWidth;
    }
}

// A row of words from the elements of one input, or of two neighbours (the second may be null) where words are pairs.
template <typename T>
void pack_row(const T* first, const T* second, Word<T>* out) {
    for (int v = 0; v < kTileVectors; ++v) {
        if constexpr (kPairs<T>) {
            Ints words = zero_extend(load_halves(first + v * kLanes));
            if (second) words |= zero_extend(load_halves(second + v * kLanes)) << 16;
            store(reinterpret_cast<float*>(out) + v * kLanes, from_bits(words));
        } else {
            store(out + v * kLanes, load(first + v * kLanes));
        }
    }
}

// What the times [begin, begin + kWidth) of a source are, `begin` a tile's first time plus a tap's offset.
struct Window {
    std::int64_t begin;
    bool whole;  // all of them are in the data and seen
    // Else: places [0, low) are of the history or nothing, [low, high) of the data, further ones nothing.
    int low;
    int high;
    bool broken;                // in the data, some are of another sequence,
    std::uint8_t seen[kWidth];  // where this is 0
};

// The window of `count` times from `first` on, seen with this offset.
inline Window window_of(const Source& source, std::int64_t b, std::int64_t first, std::int64_t offset,
                        std::int64_t count) {
    Window w{.begin = first + offset, .whole = false, .low = 0, .high = 0, .broken = false, .seen = {}};
    const auto place = [&](std::int64_t time) {
        return static_cast<int>(std::clamp<std::int64_t>(time - w.begin, 0, std::min<std::int64_t>(count, kWidth)));
    };
    w.low = place(0);
    w.high = place(source.length);
    if (source.index) {
        const std::int32_t* index = source.index + b * source.length;
        for (int i = w.low; i < w.high; ++i) {
            w.seen[i] = index[w.begin + i] == index[first + i];
            w.broken |= !w.seen[i];
        }
    }
    w.whole = w.begin >= 0 && w.begin + kWidth <= source.length && (!source.index || (!w.broken && count >= kWidth));
    return w;
}

// A window of one channel that is not whole, put together.
template <typename T>
[[gnu::noinline]] void piece_together(const Source& source, const Window& w, const T* data, std::int64_t b,
                                      std::int64_t channel, T* near) {
    std::fill(near, near + w.low, T{});
    if (source.history_length > 0) {
        const T* history = static_cast<const T*>(source.history) + b * source.history_batch_stride +
                           channel * source.history_channel_stride + source.history_length + w.begin;
        const std::int64_t first = std::clamp<std::int64_t>(-source.history_length - w.begin, 0, w.low);
        std::copy(history + first, history + w.low, near + first);
    }
    std::copy(data + w.begin + w.low, data + w.begin + w.high, near + w.low);
    std::fill(near + w.high, near + kWidth, T{});
    for (int i = w.low; w.broken && i < w.high; ++i) {
        if (!w.seen[i]) near[i] = T{};
    }
}

// kWidth elements of one channel in a window: where they lie, or where they were put together.
template <typename T>
const T* channel_in(const Source& source, const Window& w, std::int64_t b, std::int64_t channel, T* near) {
    const T* data = static_cast<const T*>(source.data) + b * source.batch_stride + channel * source.channel_stride;
    if (w.whole) return data + w.begin;
    piece_together<T>(source, w, data, b, channel, near);
    return near;
}

// Rows [begin, end) of the panel of a group's channels: a row for each tap and word of inputs, the taps in front. What
// the next window holds is fetched meanwhile: a row's part of a window is too short for the processor to do so.
template <typename T>
void pack_panel(const Source& source, const Window* windows, std::int64_t b, std::int64_t first_channel,
                std::int64_t inputs, std::int64_t begin, std::int64_t end, Word<T>* panel) {
    constexpr std::int64_t kPerWord = kPairs<T> ? 2 : 1;
    constexpr std::int64_t kPerLine = 64 / sizeof(T);
    const std::int64_t words = words_of<T>(inputs);
    T near[2][kWidth];
    const Window* window = windows + begin / words;
    std::int64_t i = begin % words * kPerWord;
    for (std::int64_t row = begin; row < end; ++row) {
        const T* one = channel_in<T>(source, *window, b, first_channel + i, near[0]);
        const T* two = nullptr;
        if (kPairs<T> && i + 1 < inputs) two = channel_in<T>(source, *window, b, first_channel + i + 1, near[1]);
        for (std::int64_t t = kWidth; window->whole && t < 2 * kWidth; t += kPerLine) {
            __builtin_prefetch(one + t);
            if (two) __builtin_prefetch(two + t);
        }
        pack_row<T>(one, two, panel);
        panel += kWidth;
        i += kPerWord;
        if (i >= inputs) {
            i = 0;
            ++window;
        }
    }
}

// One word of a weight from the input i of a tap, `weight` being that of input 0.
template <typename T>
Word<T> word_of(const T* weight, std::int64_t stride, std::int64_t i, std::int64_t inputs) {
    if constexpr (kPairs<T>) {
        const std::uint32_t second = 2 * i + 1 < inputs ? weight[(2 * i + 1) * stride].bits : 0;
        return weight[2 * i * stride].bits | second << 16;
    } else {
        return widen(weight[i * stride]);
    }
}

// A weight [rows, inputs, taps] of any strides, in elements.
template <typename T>
struct Matrix {
    const T* data;
    std::int64_t row;
    std::int64_t input;
    std::int64_t tap;
    std::int64_t rows;
    std::int64_t inputs;
    std::int64_t taps;

    // Words along the taps and inputs, and in all when packed.
    std::int64_t depth() const { return taps * words_of<T>(inputs); }
    std::int64_t words() const { return tiles_of(rows) * kTileRows * depth(); }
};

// Tiles of rows [begin, end) of a matrix into its packed form, the taps in front.
template <typename T>
void pack_tiles(const Matrix<T>& m, std::int64_t begin, std::int64_t end, Word<T>* packed) {
    const std::int64_t words = words_of<T>(m.inputs);
    for (std::int64_t tile = begin; tile < end; ++tile) {
        Word<T>* out = packed + tile * kTileRows * m.depth();
        const T* rows = m.data + tile * kTileRows * m.row;
        const std::int64_t count = std::min<std::int64_t>(kTileRows, m.rows - tile * kTileRows);
        for (std::int64_t k = 0; k < m.taps; ++k) {
            for (std::int64_t i = 0; i < words; ++i) {
                for (std::int64_t r = 0; r < kTileRows; ++r) {
                    out[r] = r < count ? word_of<T>(rows + r * m.row + k * m.tap, m.input, i, m.inputs) : Word<T>{};
                }
                out += kTileRows;
            }
        }
    }
}

template <typename Body>
void by_element(Element element, Body body) {
    switch (element) {
        case Element::float32:
            return body(float{});
        case Element::bfloat16:
            return body(Bfloat16{});
        case Element::float16:
            return body(Float16{});
    }
}

}  // namespace fastar::cpu::FASTAR_ISA
