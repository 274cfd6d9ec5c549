// Known answers at compile time, and a program that prints the words and both uniforms of the draws it reads.
#include <cstdint>
#include <cstdio>

#include "common/philox.h"

namespace {

constexpr bool gives(const fastar::PhiloxWords& words, std::uint32_t w0, std::uint32_t w1, std::uint32_t w2,
                     std::uint32_t w3) {
    return words.word[0] == w0 && words.word[1] == w1 && words.word[2] == w2 && words.word[3] == w3;
}

constexpr std::uint32_t kOnes = 0xffffffffu;

static_assert(gives(fastar::philox_rounds({}, 0, 0), 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
static_assert(gives(fastar::philox_rounds({{kOnes, kOnes, kOnes, kOnes}}, kOnes, kOnes), 0x408f276d, 0x41c83b0e,
                    0xa20bc7c6, 0x6d5451fd));
static_assert(gives(fastar::philox(1234567890123u, 5, 7, 2), 0x2948897e, 0x5b4296e0, 0xa145375c, 0xc1a62288));
static_assert(fastar::discrete_uniform(fastar::philox(1234567890123u, 5, 7, 2)) == 0.16126304864883423);
static_assert(fastar::discrete_uniform({}) > 0 && fastar::discrete_uniform({{kOnes, kOnes, 0, 0}}) < 1);
static_assert(fastar::continuous_uniform({}) > 0 && fastar::continuous_uniform({{kOnes, kOnes, 0, 0}}) < 1);

}  // namespace

int main() {
    unsigned long long seed = 0, row = 0;
    unsigned position = 0, draw = 0;
    while (std::scanf("%llu %llu %u %u", &seed, &row, &position, &draw) == 4) {
        const fastar::PhiloxWords words = fastar::philox(seed, row, position, draw);
        std::printf("%u %u %u %u %a %a\n", words.word[0], words.word[1], words.word[2], words.word[3],
                    fastar::discrete_uniform(words), fastar::continuous_uniform(words));
    }
}
