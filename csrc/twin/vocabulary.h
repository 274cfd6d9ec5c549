// The vocabulary of csrc/cuda/vocabulary.cuh, on the host.
#pragma once

#include <atomic>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "twin/fibres.h"

#define FASTAR_DEVICE inline
#define FASTAR_DEVICE_CALL inline
#define FASTAR_KERNEL(threads) inline void
#define FASTAR_ARGUMENT(type) const type

namespace fastar::cuda {

constexpr int kLanes = 32;

inline unsigned thread_index() {
    return twin::place().thread;
}
inline unsigned thread_count() {
    return twin::place().threads;
}
inline unsigned block_index() {
    return twin::place().block;
}
inline unsigned block_count() {
    return twin::place().blocks;
}
inline std::byte* shared_memory() {
    return twin::place().shared;
}

inline void barrier() {
    twin::barrier(0, static_cast<int>(twin::place().threads));
}
inline void named_barrier(int number, int threads) {
    twin::barrier(number, threads);
}
inline void warp_barrier() {
    twin::exchange("warp barrier", nullptr, 0);
}

inline int lane_index() {
    return static_cast<int>(twin::place().thread % kLanes);
}

template <typename T>
T from_lane(const std::byte* slots, int lane) {
    T value;
    std::memcpy(&value, slots + static_cast<std::size_t>(lane) * twin::kSlot, sizeof value);
    return value;
}

template <typename T>
T shuffle(T value, int lane) {
    return from_lane<T>(twin::exchange("shuffle", &value, sizeof value), lane);
}
template <typename T>
T shuffle_xor(T value, int mask) {
    return from_lane<T>(twin::exchange("shuffle", &value, sizeof value), lane_index() ^ mask);
}
template <typename T>
T shuffle_up(T value, int distance) {
    const std::byte* slots = twin::exchange("shuffle", &value, sizeof value);
    return lane_index() < distance ? value : from_lane<T>(slots, lane_index() - distance);
}
inline unsigned ballot(bool vote) {
    const std::byte* slots = twin::exchange("ballot", &vote, sizeof vote);
    unsigned votes = 0;
    for (int lane = 0; lane < kLanes; ++lane) votes |= static_cast<unsigned>(from_lane<bool>(slots, lane)) << lane;
    return votes;
}

inline unsigned cluster_rank() {
    return twin::place().rank;
}
inline unsigned cluster_size() {
    return twin::place().cluster;
}
template <typename T>
T* in_block(T* shared, unsigned rank) {
    return reinterpret_cast<T*>(twin::in_block(reinterpret_cast<std::byte*>(shared), rank));
}
template <typename T>
void put_in_block(T* shared, unsigned rank, T value) {
    twin::put_in_block(reinterpret_cast<std::byte*>(shared), rank, &value, sizeof value);
}
template <typename T>
T* exchanged(T* global) {
    using Byte = std::conditional_t<std::is_const_v<T>, const std::byte, std::byte>;
    return reinterpret_cast<T*>(twin::exchanged(const_cast<std::byte*>(reinterpret_cast<Byte*>(global))));
}
inline void cluster_arrive() {
    twin::cluster_arrive();
}
inline void cluster_wait() {
    twin::cluster_wait();
}

using Edge = std::uint64_t;
inline void edge_begin(Edge* edge) {
    twin::edge_begin(edge);
}
inline void edges_begun() {}
inline void edge_expect(Edge* edge, unsigned bytes) {
    twin::edge_expect(edge, bytes);
}
inline void send(float* shared, unsigned rank, float value, Edge* edge) {
    twin::send(shared, rank, value, edge);
}
inline void edge_wait(Edge* edge, unsigned times) {
    twin::edge_wait(edge, times);
}

inline int lowest_bit(std::uint64_t word) {
    return std::countr_zero(word);
}

inline void add_release(unsigned* flag, unsigned value) {
    twin::add(flag, value, twin::Order::kReleaseOrAcquire);
}
inline unsigned load_acquire(const unsigned* flag) {
    return twin::load(flag, twin::Order::kReleaseOrAcquire);
}
inline bool await(const unsigned* flag, unsigned target) {
    return twin::await(flag, target, twin::Order::kReleaseOrAcquire);
}
inline void tell_host(std::int32_t* word, std::int32_t value) {
    std::atomic_ref(*word).store(value, std::memory_order_release);
}
inline std::int32_t ask_host(const std::int32_t* word) {
    return std::atomic_ref(*const_cast<std::int32_t*>(word)).load(std::memory_order_relaxed);
}
inline void atomic_min(unsigned long long* at, unsigned long long value) {
    if (value < *at) *at = value;
}

template <int kBytes = 16>
void copy_async(void* shared, const void* global) {
    twin::copy_async(shared, global, kBytes);
}
inline void copy_commit() {
    twin::copy_commit();
}
template <int kGroups>
void copy_wait() {
    twin::copy_wait(kGroups);
}

// Reads, so that an address outside of what is allocated shows under a sanitizer.
inline void prefetch(const void* global) {
    [[maybe_unused]] const volatile char one = *static_cast<const char*>(global);
}

inline std::uint32_t bits_of(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}
inline float float_of(std::uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline std::uint32_t round_bfloat16(float x) {
    const std::uint32_t bits = bits_of(x);
    if (x != x) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline float widen_bfloat16(std::uint32_t half) {
    return float_of(half << 16);
}
inline std::uint32_t round_float16(float x) {
    const auto half = static_cast<_Float16>(x);
    std::uint16_t bits;
    std::memcpy(&bits, &half, sizeof bits);
    return bits;
}
inline float widen_float16(std::uint32_t half) {
    const auto bits = static_cast<std::uint16_t>(half);
    _Float16 x;
    std::memcpy(&x, &bits, sizeof x);
    return static_cast<float>(x);
}

inline std::uint32_t pack_bfloat16(float low, float high) {
    return round_bfloat16(high) << 16 | round_bfloat16(low);
}
inline std::uint32_t pack_float16(float low, float high) {
    return round_float16(high) << 16 | round_float16(low);
}

template <float (*kWiden)(std::uint32_t)>
void multiply_fragments(const char* what, float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
    struct Words {
        std::uint32_t a[4];
        std::uint32_t b[2];
    } mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    const std::byte* slots = twin::exchange(what, &mine, sizeof mine);
    const int lane = lane_index();
    const auto half = [](std::uint32_t word, int k) { return kWiden(k % 2 == 0 ? word & 0xffff : word >> 16); };
    for (int k = 0; k < 16; ++k) {
        const int word = k / 8;
        const int holder = k % 8 / 2;
        for (int i = 0; i < 4; ++i) {
            const int row = lane / 4;
            const int column = 2 * (lane % 4) + i % 2;
            const auto left = from_lane<Words>(slots, 4 * row + holder);
            const auto right = from_lane<Words>(slots, 4 * column + holder);
            d[i] += half(left.a[2 * word + i / 2], k) * half(right.b[word], k);
        }
    }
}
inline void multiply_bfloat16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
    multiply_fragments<widen_bfloat16>("bfloat16 product", d, a, b);
}
inline void multiply_float16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
    multiply_fragments<widen_float16>("float16 product", d, a, b);
}

}  // namespace fastar::cuda
