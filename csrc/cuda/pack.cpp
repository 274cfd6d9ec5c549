#include "cuda/pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace fastar::cuda {
namespace {

std::uint16_t to_bfloat16(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

std::uint16_t to_float16(float x) {
    const auto half = static_cast<_Float16>(x);
    std::uint16_t bits;
    std::memcpy(&bits, &half, sizeof bits);
    return bits;
}

// Where an element lies within its step: float32 tiles of 8 outputs give lane (output, quarter of the inputs) four
// numbers; fragments of 16 outputs follow the matrix instruction, see multiply_bfloat16.
std::int64_t in_tile(std::int64_t output, std::int64_t input) {
    return (output * 4 + input / 4) * 4 + input % 4;
}

std::int64_t in_fragment(std::int64_t output, std::int64_t input) {
    const std::int64_t lane = output % 8 * 4 + input % 8 / 2;
    const std::int64_t word = input / 8 * 2 + output / 8;
    return lane * 8 + word * 2 + input % 2;
}

template <typename T, typename Convert>
void fill(const float* from, const MatrixShape& shape, std::int64_t tile_outputs,
          std::int64_t (*place)(std::int64_t, std::int64_t), T* to, Convert convert) {
    const std::int64_t steps = (shape.inputs + kStep - 1) / kStep;
    const std::int64_t step_elements = tile_outputs * kStep;
    for (std::int64_t o = 0; o < shape.outputs; ++o) {
        for (std::int64_t t = 0; t < shape.taps; ++t) {
            for (std::int64_t k = 0; k < shape.inputs; ++k) {
                const std::int64_t step = (o / tile_outputs * shape.taps + t) * steps + k / kStep;
                to[step * step_elements + place(o % tile_outputs, k % kStep)] =
                    convert(from[(o * shape.taps + t) * shape.inputs + k], o);
            }
        }
    }
}

}  // namespace

std::int64_t tile_bytes(const MatrixShape& shape, Storage storage) {
    const std::int64_t element = storage == Storage::kFloat32 ? 4 : storage == Storage::kInt8 ? 1 : 2;
    return shape.taps * ((shape.inputs + kStep - 1) / kStep) * kStep * outputs_of_tile(storage) * element;
}

std::int64_t bank_bytes(const MatrixShape& shape, Storage storage) {
    const std::int64_t outputs = outputs_of_tile(storage);
    return (shape.outputs + outputs - 1) / outputs * tile_bytes(shape, storage);
}

Packed pack(const float* weights, const MatrixShape& shape, Storage storage) {
    const bool tiles = storage == Storage::kFloat32;
    const std::int64_t tile_outputs = outputs_of_tile(storage);
    const std::int64_t bytes = bank_bytes(shape, storage);
    Packed packed{.weights = std::vector<std::byte>(static_cast<std::size_t>(shape.banks * bytes)), .scales = {}};
    if (storage == Storage::kInt8) packed.scales.resize(static_cast<std::size_t>(shape.banks * shape.outputs));
    for (std::int64_t bank = 0; bank < shape.banks; ++bank) {
        const std::int64_t row = shape.taps * shape.inputs;
        const float* from = weights + bank * shape.outputs * row;
        std::byte* to = packed.weights.data() + bank * bytes;
        if (tiles) {
            fill(from, shape, tile_outputs, in_tile, reinterpret_cast<float*>(to),
                 [](float w, std::int64_t) { return w; });
        } else if (storage == Storage::kInt8) {
            float* scales = packed.scales.data() + bank * shape.outputs;
            for (std::int64_t o = 0; o < shape.outputs; ++o) {
                float top = 0.0f;
                for (std::int64_t k = 0; k < row; ++k) top = std::max(top, std::fabs(from[o * row + k]));
                scales[o] = top / 127.0f;
            }
            fill(from, shape, tile_outputs, in_fragment, reinterpret_cast<std::int8_t*>(to),
                 [&](float w, std::int64_t o) {
                     return static_cast<std::int8_t>(scales[o] > 0.0f ? std::nearbyint(w / scales[o]) : 0.0f);
                 });
        } else {
            const auto convert = storage == Storage::kBfloat16 ? to_bfloat16 : to_float16;
            fill(from, shape, tile_outputs, in_fragment, reinterpret_cast<std::uint16_t*>(to),
                 [&](float w, std::int64_t) { return convert(w); });
        }
    }
    return packed;
}

}  // namespace fastar::cuda
