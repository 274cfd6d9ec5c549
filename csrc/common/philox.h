// Philox-4x32-10: every random number is a pure function of (seed, row, position, draw), so any of them can be had in
// any order, on any thread and device, and a run can stop and resume without a generator's state.
//
// constexpr instead of __host__ __device__: nvcc's relaxed constexpr lets device code call these, and the host compiler
// needs no macro.
#pragma once

#include <cstdint>

namespace fastar {

struct PhiloxWords {
    std::uint32_t word[4];
};

struct PhiloxKeys {
    std::uint32_t word[2];
};

inline constexpr int kPhiloxRounds = 10;

// One round over the four words of a counter.
constexpr void philox_round(std::uint32_t& c0, std::uint32_t& c1, std::uint32_t& c2, std::uint32_t& c3,
                            const PhiloxKeys& key) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53u} * c0;
    const std::uint64_t product1 = std::uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<std::uint32_t>(product1 >> 32) ^ c1 ^ key.word[0];
    c2 = static_cast<std::uint32_t>(product0 >> 32) ^ c3 ^ key.word[1];
    c1 = static_cast<std::uint32_t>(product1);
    c3 = static_cast<std::uint32_t>(product0);
}

constexpr PhiloxKeys next_keys(const PhiloxKeys& key) {
    return {{key.word[0] + 0x9E3779B9u, key.word[1] + 0xBB67AE85u}};
}

// The ten rounds over any counter and key.
constexpr PhiloxWords philox_rounds(PhiloxWords counter, std::uint32_t key0, std::uint32_t key1) {
    PhiloxKeys key{{key0, key1}};
    for (int round = 0; round < kPhiloxRounds; ++round) {
        philox_round(counter.word[0], counter.word[1], counter.word[2], counter.word[3], key);
        key = next_keys(key);
    }
    return counter;
}

// The four words of one draw.
constexpr PhiloxWords philox(std::uint64_t seed, std::uint64_t row, std::uint32_t position, std::uint32_t draw) {
    const PhiloxWords counter{{static_cast<std::uint32_t>(row), static_cast<std::uint32_t>(row >> 32), position, draw}};
    return philox_rounds(counter, static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32));
}

// (floor(w0 / 2^9) + 1/2) / 2^23, for discrete draws: 24 significant bits, so float holds it exactly; never 0 or 1.
constexpr float uniform_of_word(std::uint32_t word0) {
    return (static_cast<float>(static_cast<std::int32_t>(word0 >> 9)) + 0.5f) * 0x1p-23f;
}

constexpr float discrete_uniform(const PhiloxWords& words) {
    return uniform_of_word(words.word[0]);
}

// (floor(w0 / 2^6) * 2^26 + floor(w1 / 2^6) + 1/2) / 2^52, for continuous draws: 53 significant bits, exact in double.
constexpr double continuous_uniform(const PhiloxWords& words) {
    const std::uint64_t bits = (std::uint64_t{words.word[0] >> 6} << 26) | (words.word[1] >> 6);
    return (static_cast<double>(bits) + 0.5) * 0x1p-52;
}

}  // namespace fastar
