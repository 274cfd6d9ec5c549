#include "cpu/fingerprint.h"

#include <cstring>
#include <vector>

#include "common/workers.h"
#include "cpu/dispatch.h"

namespace fastar::cpu {
namespace {

// Pieces are hashed on their own and then folded in order, so the result is the same however threads share them.
constexpr std::size_t kPieceBytes = std::size_t{1} << 18;

std::uint64_t hash_bytes(const unsigned char* data, std::size_t bytes, std::uint64_t seed) {
    const std::size_t words = bytes / sizeof(std::uint64_t);
    std::uint64_t value = kernels().hash(reinterpret_cast<const std::uint64_t*>(data), words, seed ^ bytes);
    const std::size_t rest = bytes % sizeof(std::uint64_t);
    if (rest != 0) {
        std::uint64_t last = 0;
        std::memcpy(&last, data + words * sizeof(std::uint64_t), rest);
        value = kernels().hash(&last, 1, value);
    }
    return value;
}

}  // namespace

std::uint64_t fingerprint(const void* data, std::size_t bytes, int threads) {
    if (reinterpret_cast<std::uintptr_t>(data) % alignof(std::uint64_t) != 0) {
        std::vector<std::uint64_t> copy((bytes + 7) / 8);
        std::memcpy(copy.data(), data, bytes);
        return fingerprint(copy.data(), bytes, threads);
    }
    const auto* start = static_cast<const unsigned char*>(data);
    const std::size_t pieces = (bytes + kPieceBytes - 1) / kPieceBytes;
    std::vector<std::uint64_t> values(pieces);
    parallel_for(pieces, 4, threads, [&](std::size_t begin, std::size_t end) {
        for (std::size_t i = begin; i < end; ++i) {
            const std::size_t at = i * kPieceBytes;
            values[i] = hash_bytes(start + at, bytes - at < kPieceBytes ? bytes - at : kPieceBytes, i);
        }
    });
    return kernels().hash(values.data(), values.size(), bytes);
}

}  // namespace fastar::cpu
