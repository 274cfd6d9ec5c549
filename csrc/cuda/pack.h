// Matrices in the order in which the kernels' lanes read them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/commands.h"

namespace fastar::cuda {

struct MatrixShape {
    std::int64_t banks;
    std::int64_t outputs;
    std::int64_t taps;
    std::int64_t inputs;  // of a tap
};

struct Packed {
    std::vector<std::byte> weights;
    std::vector<float> scales;  // int8: [banks, outputs]
};

// Bytes of all that one tile of outputs needs, and of a bank's tiles.
std::int64_t tile_bytes(const MatrixShape& shape, Storage storage);
std::int64_t bank_bytes(const MatrixShape& shape, Storage storage);

// Weights [banks, outputs, taps, inputs], inputs padded to whole steps of 16 and outputs to whole tiles.
Packed pack(const float* weights, const MatrixShape& shape, Storage storage);

}  // namespace fastar::cuda
