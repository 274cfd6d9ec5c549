// A sigmoid state kept as odds, e^-a in the place of a, and the coins that are tossed with its readout.
//
// NADE's step is a <- a + x W, then sigmoid(a) . V, and of its fourteen multiplications per hidden unit eleven belong
// to the exponential. With x of 0 or 1 the odds are multiplied by e^-W, which is known beforehand, so that four are
// left: the update, the two of the reciprocal, and the readout. A product's relative error becomes an absolute one of
// a, about that of the sum that it replaces.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "common/philox.h"
#include "cpu/isa/executor.h"
#include "cpu/isa/functions.h"

namespace fastar::cpu::FASTAR_ISA {

namespace {

// The sum of weights / (1 + odds), in every lane, once the odds are multiplied by factors where `changes`. With kAhead
// what comes 4 KiB later in factors and weights is asked for: while the chain from a bit to the next one lasts, the
// processor itself does not look that far.
template <bool kAhead>
inline Lanes readout(float* odds, Mask changes, const float* factors, const float* weights, std::int64_t n) {
    constexpr std::int64_t kFloatsAhead = 1024;
    constexpr int kTogether = 4;
    static_assert(kTogether * kLanes == kOddsBlock);
    Lanes total[kTogether] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
    for (std::int64_t first = 0; first < n; first += kOddsBlock) {
#pragma GCC unroll 4
        for (int k = 0; k < kTogether; ++k) {
            const std::int64_t i = first + k * kLanes;
            if constexpr (kAhead) {
                __builtin_prefetch(factors + i + kFloatsAhead);
                __builtin_prefetch(weights + i + kFloatsAhead);
            }
            const Lanes old = load(odds + i);
            const Lanes now = pick(changes, old * load(factors + i), old);
            store(odds + i, now);
            total[k] = fma(reciprocal(now + splat(1.0f)), load(weights + i), total[k]);
        }
    }
    return sum_everywhere((total[0] + total[1]) + (total[2] + total[3]));
}

// A bit stays in a mask register from its logit to the odds that it changes, where there is one row.
template <typename Count>
inline void walk(OddsRow* rows, Count count, const TossArguments& a) {
    Mask changes[kOddsRows];
    for (std::int64_t r = 0; r < count; ++r) changes[r] = all_lanes(rows[r].last);
    for (std::int64_t i = 0; i < a.positions; ++i) {
        const float* factors = a.factors + i * a.width;
        const float* weights = a.weights + i * a.width;
        const Lanes bias = splat(a.bias ? a.bias[i] : 0.0f);
        for (std::int64_t r = 0; r < count; ++r) {
            const Lanes logit = bias + (r == 0 ? readout<true>(rows[r].odds, changes[r], factors, weights, a.width)
                                               : readout<false>(rows[r].odds, changes[r], factors, weights, a.width));
            changes[r] = splat(rows[r].bars[i]) < logit;
            store_first(rows[r].logits + i, logit, 1);
        }
    }
    for (std::int64_t r = 0; r < count; ++r) {
        rows[r].last = rows[r].logits[a.positions - 1] > rows[r].bars[a.positions - 1];
    }
}

}  // namespace

void toss(OddsRow* rows, std::int64_t count, const TossArguments& a) {
    if (count == 1) {
        walk(rows, std::integral_constant<std::int64_t, 1>{}, a);
    } else {
        walk(rows, count, a);
    }
}

void balance_odds(float* odds, float* powers, std::int64_t n) {
    constexpr std::int32_t kBias = 127;
    for (std::int64_t i = 0; i < n; ++i) {
        std::int32_t bits;
        std::memcpy(&bits, odds + i, sizeof bits);
        const std::int32_t power = (bits >> 23) - kBias + static_cast<std::int32_t>(powers[i]);
        const std::int32_t kept = std::min(std::max(power, -kOddsPower), kOddsPower);
        bits = (bits & 0x7fffff) | ((kept + kBias) << 23);
        std::memcpy(odds + i, &bits, sizeof bits);
        powers[i] = static_cast<float>(power - kept);
    }
}

namespace {

// So many at a time that the compiler keeps the loops over them, and makes vectors of them.
constexpr int kCoins = 64;

// The first words of the draws at kCoins positions in a row.
void first_words(std::uint64_t seed, std::uint64_t row, std::uint32_t position, std::uint32_t (&c0)[kCoins]) {
    std::uint32_t c1[kCoins];
    std::uint32_t c2[kCoins];
    std::uint32_t c3[kCoins];
    for (int i = 0; i < kCoins; ++i) {
        c0[i] = static_cast<std::uint32_t>(row);
        c1[i] = static_cast<std::uint32_t>(row >> 32);
        c2[i] = position + static_cast<std::uint32_t>(i);
        c3[i] = 0;
    }
    PhiloxKeys key{{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)}};
    for (int round = 0; round < kPhiloxRounds; ++round) {
        for (int i = 0; i < kCoins; ++i) philox_round(c0[i], c1[i], c2[i], c3[i], key);
        key = next_keys(key);
    }
}

// log(x) of normal x > 0, to about 1e-15: the exponent, and twice the artanh of (m - 1) / (m + 1).
inline double logarithm(double x) {
    constexpr std::int64_t kRootHalf = 0x3fe6a09e667f3bcd;
    std::int64_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const std::int64_t power = (bits - kRootHalf) >> 52;
    bits -= power << 52;
    double m;
    std::memcpy(&m, &bits, sizeof m);
    const double s = (m - 1.0) / (m + 1.0);
    const double z = s * s;
    double y = 1.0 / 17;
    y = y * z + 1.0 / 15;
    y = y * z + 1.0 / 13;
    y = y * z + 1.0 / 11;
    y = y * z + 1.0 / 9;
    y = y * z + 1.0 / 7;
    y = y * z + 1.0 / 5;
    y = y * z + 1.0 / 3;
    y = y * z + 1.0;
    return 2.0 * s * y + static_cast<double>(power) * 0.69314718055994530942;
}

}  // namespace

void coin_bars(std::uint64_t seed, std::uint64_t row, std::uint32_t position, double temperature, float* out,
               std::int64_t n) {
    for (std::int64_t k = 0; k < n; k += kCoins) {
        std::uint32_t words[kCoins];
        first_words(seed, row, position + static_cast<std::uint32_t>(k), words);
        float bars[kCoins];
        for (int i = 0; i < kCoins; ++i) {
            const double u = uniform_of_word(words[i]);
            bars[i] = static_cast<float>(temperature * logarithm(u / (1.0 - u)));
        }
        std::copy_n(bars, std::min<std::int64_t>(kCoins, n - k), out + k);
    }
}

void coins(const float* logits, const float* bars, double* values, float* log_probs, std::int64_t n) {
    for (std::int64_t k = 0; k < n; k += kLanes) {
        const Lanes z = load_first(logits + k, n - k);
        const Lanes against = pick(load_first(bars + k, n - k) < z, splat(0.0f) - z, z);
        store_first(log_probs + k, splat(0.0f) - softplus(against), n - k);
    }
    for (std::int64_t i = 0; i < n; ++i) values[i] = logits[i] > bars[i] ? 1.0 : 0.0;
}

}  // namespace fastar::cpu::FASTAR_ISA
