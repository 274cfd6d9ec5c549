#include "cpu/isa/conv.h"

#include <algorithm>
#include <bit>
#include <cstring>
#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace fastar::cpu::FASTAR_ISA {
namespace {

// Rows x vectors of accumulators are what the registers hold beside one row of the matrix and a broadcast element:
// 6 x 4 of 32 registers, 6 x 2 of 16.
constexpr int kRows = 6;

#if defined(__AVX512F__)
using Vector = __m512;
constexpr int kLanes = 16;
constexpr int kMostVectors = 4;
inline Vector zero() {
    return _mm512_setzero_ps();
}
inline Vector load(const float* p) {
    return _mm512_loadu_ps(p);
}
inline void store(float* p, Vector v) {
    _mm512_storeu_ps(p, v);
}
inline Vector broadcast(const float* p) {
    return _mm512_set1_ps(*p);
}
inline Vector multiply_add(Vector a, Vector b, Vector c) {
    return _mm512_fmadd_ps(a, b, c);
}
#elif defined(__AVX2__)
using Vector = __m256;
constexpr int kLanes = 8;
constexpr int kMostVectors = 2;
inline Vector zero() {
    return _mm256_setzero_ps();
}
inline Vector load(const float* p) {
    return _mm256_loadu_ps(p);
}
inline void store(float* p, Vector v) {
    _mm256_storeu_ps(p, v);
}
inline Vector broadcast(const float* p) {
    return _mm256_broadcast_ss(p);
}
inline Vector multiply_add(Vector a, Vector b, Vector c) {
    return _mm256_fmadd_ps(a, b, c);
}
#else
// The compiler maps these to whatever the processor has.
using Vector = float __attribute__((vector_size(16)));
constexpr int kLanes = 4;
constexpr int kMostVectors = 2;
inline Vector zero() {
    return Vector{};
}
inline Vector load(const float* p) {
    Vector v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store(float* p, Vector v) {
    std::memcpy(p, &v, sizeof v);
}
inline Vector broadcast(const float* p) {
    return Vector{*p, *p, *p, *p};
}
inline Vector multiply_add(Vector a, Vector b, Vector c) {
    return a * b + c;
}
#endif

// sums[r, 0 .. VECTORS) += the pieces of kRows positions times the rows of `matrix`, `stride` apart.
template <int VECTORS>
void tile(const float* const* positions, const Piece* begin, const Piece* end, const float* matrix, std::int64_t stride,
          float* sums, std::int64_t sums_stride) {
    Vector c[kRows][VECTORS];
    for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < VECTORS; ++v) c[r][v] = load(sums + r * sums_stride + v * kLanes);
    }
    for (const Piece* piece = begin; piece != end; ++piece) {
        const float* a[kRows];
        for (int r = 0; r < kRows; ++r) a[r] = positions[r] + piece->offset;
        for (std::int64_t k = 0; k < piece->length; ++k) {
            Vector b[VECTORS];
            for (int v = 0; v < VECTORS; ++v) b[v] = load(matrix + v * kLanes);
            for (int r = 0; r < kRows; ++r) {
                const Vector one = broadcast(a[r] + k);
                for (int v = 0; v < VECTORS; ++v) c[r][v] = multiply_add(one, b[v], c[r][v]);
            }
            matrix += stride;
        }
    }
    for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < VECTORS; ++v) store(sums + r * sums_stride + v * kLanes, c[r][v]);
    }
}

using Tile = void (*)(const float* const*, const Piece*, const Piece*, const float*, std::int64_t, float*,
                      std::int64_t);

// Over all columns of a panel, as many at a time as the registers allow.
void tile_row(const float* const* positions, const Piece* begin, const Piece* end, const float* matrix,
              std::int64_t width, float* sums) {
    static constexpr Tile kTiles[] = {tile<1>, tile<2>, tile<3>, tile<4>};
    const std::int64_t vectors = width / kLanes;
    for (std::int64_t v = 0; v < vectors; v += kMostVectors) {
        const std::int64_t now = std::min<std::int64_t>(kMostVectors, vectors - v);
        kTiles[now - 1](positions, begin, end, matrix + v * kLanes, width, sums + v * kLanes, width);
    }
}

// Bfloat16 is kept as bits; rounding is to nearest even, and a NaN stays one.
struct Bfloat16 {
    std::uint16_t bits;
};

inline float widen(float v) {
    return v;
}
inline float widen(_Float16 v) {
    return static_cast<float>(v);
}
inline float widen(Bfloat16 v) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(v.bits) << 16);
}

template <typename T>
T narrow(float v) {
    return static_cast<T>(v);
}

template <>
Bfloat16 narrow(float v) {
    const auto bits = std::bit_cast<std::uint32_t>(v);
    const std::uint32_t rounded = bits + 0x7fff + ((bits >> 16) & 1);
    const bool nan = (bits & 0x7fffffff) > 0x7f800000;
    return {static_cast<std::uint16_t>((nan ? bits | 0x400000 : rounded) >> 16)};
}

template <typename Run>
void by_element(Element element, Run run) {
    switch (element) {
        case Element::float32:
            return run(float{});
        case Element::bfloat16:
            return run(Bfloat16{});
        case Element::float16:
            return run(_Float16{});
    }
}

// Channels that are moved together where the channels of one side and the pixels of the other lie side by side, so that
// what is read of a line is read once.
constexpr std::int64_t kStrip = 16;

void clear(const PadArguments& a, float* row, std::int64_t first_channel, std::int64_t begin, std::int64_t end) {
    const std::int64_t channel = a.out_strides[1];
    const std::int64_t pixel = a.out_strides[3];
    if (channel == 1) {
        for (std::int64_t x = begin; x < end; ++x)
            std::fill(row + x * pixel + first_channel, row + x * pixel + a.out_channels, 0.0F);
    } else {
        for (std::int64_t c = first_channel; c < a.out_channels; ++c)
            std::fill(row + c * channel + begin, row + c * channel + end, 0.0F);
    }
}

template <typename T>
void pad_row(const PadArguments& a, const T* source, float* out) {
    const auto [source_image, source_channel, source_row, source_pixel] = a.source_strides;
    const auto [out_image, out_channel, out_row, out_pixel] = a.out_strides;
    const std::int64_t first = std::clamp<std::int64_t>(a.left, 0, a.out_width);
    const std::int64_t last = std::clamp<std::int64_t>(a.left + a.width, first, a.out_width);
    clear(a, out, 0, 0, first);
    clear(a, out, 0, last, a.out_width);
    clear(a, out, a.channels, first, last);
    source -= a.left * source_pixel;
    if (source_channel == 1 && out_channel == 1) {
        for (std::int64_t x = first; x < last; ++x) {
            const T* from = source + x * source_pixel;
            float* to = out + x * out_pixel;
            for (std::int64_t c = 0; c < a.channels; ++c) to[c] = widen(from[c]);
        }
        return;
    }
    if (source_pixel == 1 && out_pixel == 1) {
        for (std::int64_t c = 0; c < a.channels; ++c) {
            const T* from = source + c * source_channel;
            float* to = out + c * out_channel;
            for (std::int64_t x = first; x < last; ++x) to[x] = widen(from[x]);
        }
        return;
    }
    for (std::int64_t strip = 0; strip < a.channels; strip += kStrip) {
        const std::int64_t end = std::min(a.channels, strip + kStrip);
        for (std::int64_t x = first; x < last; ++x) {
            for (std::int64_t c = strip; c < end; ++c) {
                out[x * out_pixel + c * out_channel] = widen(source[x * source_pixel + c * source_channel]);
            }
        }
    }
}

void block(const TapSumArguments& a, Panel panel, std::int64_t first) {
    const std::int64_t count = std::min(kPositions, a.images * a.height * a.width - first);
    const std::int64_t width = panel.vectors * kVector;
    alignas(64) float sums[kPositions * kPanelVectors * kVector];
    const float* positions[kPositions];
    std::int64_t outs[kPositions];
    for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t x = (first + i) % a.width;
        const std::int64_t y = (first + i) / a.width % a.height;
        const std::int64_t image = (first + i) / a.width / a.height;
        positions[i] = a.source + image * a.source_image + y * a.source_row + x * a.source_pixel;
        outs[i] = image * a.out_image + y * a.out_row + x * a.out_pixel + panel.first * a.out_channel;
    }
    const std::int64_t tiles = (count + kRows - 1) / kRows;
    // A last tile that is not full computes its last position several times.
    for (std::int64_t i = count; i < tiles * kRows; ++i) positions[i] = positions[count - 1];

    const std::int64_t visible = std::min(width, a.columns - panel.first);
    for (std::int64_t i = 0; i < tiles * kRows; ++i) {
        float* row = sums + i * width;
        if (a.bias) std::memcpy(row, a.bias + panel.first, static_cast<std::size_t>(visible) * sizeof(float));
        const std::int64_t filled = a.bias ? visible : 0;
        std::memset(row + filled, 0, static_cast<std::size_t>(width - filled) * sizeof(float));
    }
    const float* matrix = a.packed + a.depth * panel.first;
    const Piece* begin = a.pieces;
    std::int64_t depth = 0;
    for (const Piece* piece = begin; piece != a.pieces + a.piece_count; ++piece) {
        depth += piece->length;
        if (!piece->ends_chunk) continue;
        for (std::int64_t t = 0; t < tiles; ++t) {
            tile_row(positions + t * kRows, begin, piece + 1, matrix, width, sums + t * kRows * width);
        }
        matrix += depth * width;
        begin = piece + 1;
        depth = 0;
    }
    by_element(a.element, [&](auto element) {
        using T = decltype(element);
        T* out = static_cast<T*>(a.out);
        if (a.out_channel == 1) {
            for (std::int64_t i = 0; i < count; ++i) {
                for (std::int64_t j = 0; j < visible; ++j) out[outs[i] + j] = narrow<T>(sums[i * width + j]);
            }
            return;
        }
        for (std::int64_t j = 0; j < visible; ++j) {
            for (std::int64_t i = 0; i < count; ++i) {
                out[outs[i] + j * a.out_channel] = narrow<T>(sums[i * width + j]);
            }
        }
    });
}

}  // namespace

void pad(const PadArguments& a, std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
        const std::int64_t image = row / a.out_height;
        const std::int64_t out_y = row % a.out_height;
        const std::int64_t y = out_y - a.top;
        float* out = a.out + image * a.out_strides[0] + out_y * a.out_strides[2];
        if (y < 0 || y >= a.height) {
            clear(a, out, 0, 0, a.out_width);
            continue;
        }
        by_element(a.element, [&](auto element) {
            using T = decltype(element);
            pad_row(a, static_cast<const T*>(a.source) + image * a.source_strides[0] + y * a.source_strides[2], out);
        });
    }
}

void tap_sum(const TapSumArguments& a, std::int64_t begin, std::int64_t end) {
    const std::int64_t blocks = (a.images * a.height * a.width + kPositions - 1) / kPositions;
    for (std::int64_t item = begin; item < end; ++item) {
        block(a, panel_of(item / blocks, a.columns), item % blocks * kPositions);
    }
}

}  // namespace fastar::cpu::FASTAR_ISA
