#include "cpu/executor/matrices.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "common/memory.h"

namespace fastar::cpu {
namespace {

constexpr std::int64_t kRegister = 16;
constexpr std::size_t kLine = 64;
constexpr std::size_t kLargePage = std::size_t{1} << 21;

std::int64_t round_up(std::int64_t n, std::int64_t to) {
    return (n + to - 1) / to * to;
}

std::uint16_t to_bfloat16(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Element (output, input) of a bank goes to place((output, input)), in elements, where a word holds `per_word` inputs.
struct TilePlaces {
    std::int64_t outputs;
    std::int64_t inputs;
    std::int64_t per_word;

    std::int64_t operator()(std::int64_t output, std::int64_t input) const {
        const std::int64_t tile = output / kTileOutputs;
        const std::int64_t wide = std::min(kTileOutputs, round_up(outputs - tile * kTileOutputs, kRegister));
        const std::int64_t word = input / per_word * wide + output % kTileOutputs;
        return tile * kTileOutputs * inputs + word * per_word + input % per_word;
    }
};

template <typename T, typename Convert>
void fill_tiles(const float* from, std::int64_t outputs, std::int64_t inputs, const TilePlaces& place, T* to,
                Convert convert) {
    for (std::int64_t o = 0; o < outputs; ++o) {
        for (std::int64_t k = 0; k < inputs; ++k) to[place(o, k)] = convert(from[o * inputs + k], o);
    }
}

void quantise(const float* from, std::int64_t outputs, std::int64_t inputs, const TilePlaces& place, std::int8_t* to,
              float* scales) {
    for (std::int64_t o = 0; o < outputs; ++o) {
        float top = 0.0f;
        for (std::int64_t k = 0; k < inputs; ++k) top = std::max(top, std::fabs(from[o * inputs + k]));
        const float factor = top > 0.0f ? 127.0f / top : 0.0f;
        std::int32_t sum = 0;
        for (std::int64_t k = 0; k < inputs; ++k) {
            const auto one = static_cast<std::int8_t>(std::nearbyint(from[o * inputs + k] * factor));
            to[place(o, k)] = one;
            sum += one;
        }
        const std::int32_t shift = 128 * sum;
        scales[o] = top / 127.0f;
        std::memcpy(scales + outputs + o, &shift, sizeof shift);
    }
}

}  // namespace

AlignedBytes::AlignedBytes(std::size_t bytes, Pages pages) : size_(bytes) {
    const bool large = pages == Pages::kLarge && bytes >= kLargePage;
    const std::size_t boundary = large ? kLargePage : kLine;
    // calloc knows that fresh pages are zero, and leaves them untouched.
    held_.reset(std::calloc(std::max(bytes, kLine) + boundary, 1));
    if (!held_) throw std::bad_alloc();
    void* start = held_.get();
    std::size_t space = bytes + boundary;
    data_ = static_cast<std::byte*>(std::align(boundary, bytes, start, space));
    if (large) prefer_huge_pages(data_, bytes);
}

std::byte* WeightArena::take(std::size_t bytes) {
    const std::size_t whole = (bytes + kLine - 1) / kLine * kLine;
    if (chunks_.empty() || used_of_last_ + whole > chunks_.back().size()) {
        // From a quarter of a large page on, a whole one.
        const std::size_t wanted = std::max(whole, chunk_);
        const std::size_t unit = wanted >= kLargePage / 4 ? kLargePage : kLine;
        chunks_.emplace_back((wanted + unit - 1) / unit * unit);
        used_of_last_ = 0;
    }
    std::byte* at = chunks_.back().data() + used_of_last_;
    used_of_last_ += whole;
    used_ += whole;
    return at;
}

bool prefers_rows(std::int64_t outputs) {
    return outputs < kSlimUnit;
}

Matrix pack(const float* weights, std::int64_t banks, std::int64_t outputs, std::int64_t inputs, Precision precision,
            bool by_rows, WeightArena& arena) {
    const std::int64_t padded = round_up(inputs, kInputBlock);
    const std::int64_t wide = round_up(outputs, kRegister);
    const bool as_int8 = !by_rows && precision == Precision::kInt8 && outputs >= kTileOutputs;
    const std::int64_t unit = by_rows ? 1 : is_slim(outputs) && !as_int8 ? kSlimUnit : kTileOutputs;
    const auto elements = static_cast<std::size_t>((by_rows ? outputs : wide) * padded);
    Matrix m{.storage = Storage::kRows,
             .outputs = outputs,
             .inputs = padded,
             .units = (outputs + unit - 1) / unit,
             .bank_bytes = elements * sizeof(float),
             .weights = nullptr,
             .scales = {}};
    if (!by_rows && precision == Precision::kFloat32) m.storage = Storage::kTiles;
    if (!by_rows && !as_int8 && precision != Precision::kFloat32) {
        m.storage = Storage::kTilesBfloat16;
        m.bank_bytes = elements * sizeof(std::uint16_t);
    }
    if (as_int8) {
        m.storage = Storage::kTilesInt8;
        m.bank_bytes = elements;
        m.scales.resize(static_cast<std::size_t>(banks * 2 * outputs));
    }
    m.weights = arena.take(static_cast<std::size_t>(banks) * m.bank_bytes);
    for (std::int64_t bank = 0; bank < banks; ++bank) {
        const float* from = weights + bank * outputs * inputs;
        std::byte* to = m.weights + static_cast<std::size_t>(bank) * m.bank_bytes;
        switch (m.storage) {
            case Storage::kRows:
                for (std::int64_t o = 0; o < outputs; ++o) {
                    std::copy_n(from + o * inputs, inputs, reinterpret_cast<float*>(to) + o * padded);
                }
                break;
            case Storage::kTiles:
                fill_tiles(from, outputs, inputs, TilePlaces{outputs, padded, 1}, reinterpret_cast<float*>(to),
                           [](float w, std::int64_t) { return w; });
                break;
            case Storage::kTilesBfloat16:
                fill_tiles(from, outputs, inputs, TilePlaces{outputs, padded, 2}, reinterpret_cast<std::uint16_t*>(to),
                           [](float w, std::int64_t) { return to_bfloat16(w); });
                break;
            case Storage::kTilesInt8:
                quantise(from, outputs, inputs, TilePlaces{outputs, padded, 4}, reinterpret_cast<std::int8_t*>(to),
                         m.scales.data() + bank * 2 * outputs);
                break;
        }
    }
    return m;
}

}  // namespace fastar::cpu
