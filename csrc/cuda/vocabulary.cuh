// The words in which kernels are written. On the device each is the intrinsic itself; under FASTAR_TWIN the same names
// are functions of csrc/twin, where a block's threads are fibres of one host thread, and the kernels run without a
// card.
//
// A kernel uses nothing else of CUDA: no other intrinsic, no assembly, no __shared__ variable.
#pragma once

#ifdef FASTAR_TWIN

#include "twin/vocabulary.h"

#else

// NVRTC knows the intrinsics without it.
#ifndef __CUDACC_RTC__
#include <cuda_runtime.h>
#endif

#include <cstddef>
#include <cstdint>

#define FASTAR_DEVICE __device__ __forceinline__
// For what is called from many places: a copy in each would only cost instruction cache.
#define FASTAR_DEVICE_CALL __device__ __noinline__
#define FASTAR_KERNEL(threads) __global__ void __launch_bounds__(threads, 1)
// A kernel's argument whose address may be taken without a copy of it per thread.
#define FASTAR_ARGUMENT(type) const __grid_constant__ type

namespace fastar::cuda {

constexpr int kLanes = 32;

FASTAR_DEVICE unsigned thread_index() {
    return threadIdx.x;
}
FASTAR_DEVICE unsigned thread_count() {
    return blockDim.x;
}
FASTAR_DEVICE unsigned block_index() {
    return blockIdx.x;
}
FASTAR_DEVICE unsigned block_count() {
    return gridDim.x;
}

// The block's dynamic shared memory, aligned to 16 bytes.
FASTAR_DEVICE std::byte* shared_memory() {
    extern __shared__ __align__(16) std::byte fastar_shared[];
    return fastar_shared;
}

// Every thread of the block.
FASTAR_DEVICE void barrier() {
    __syncthreads();
}
// As many threads of the block as said, in whole warps; number 0 is that of barrier().
FASTAR_DEVICE void named_barrier(int number, int threads) {
    asm volatile("barrier.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}
FASTAR_DEVICE void warp_barrier() {
    __syncwarp();
}

// Among all 32 lanes of a warp.
template <typename T>
FASTAR_DEVICE T shuffle(T value, int lane) {
    return __shfl_sync(0xffffffffu, value, lane);
}
template <typename T>
FASTAR_DEVICE T shuffle_xor(T value, int mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}
// A lane below `distance` keeps its own value.
template <typename T>
FASTAR_DEVICE T shuffle_up(T value, int distance) {
    return __shfl_up_sync(0xffffffffu, value, distance);
}
FASTAR_DEVICE unsigned ballot(bool vote) {
    return __ballot_sync(0xffffffffu, vote);
}

// Clusters. Cards before sm_90 have none: a block is then alone in its own.
FASTAR_DEVICE unsigned cluster_rank() {
#if __CUDA_ARCH__ >= 900
    unsigned rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
#else
    return 0;
#endif
}
FASTAR_DEVICE unsigned cluster_size() {
#if __CUDA_ARCH__ >= 900
    unsigned size;
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    return size;
#else
    return 1;
#endif
}
// The same place in the shared memory of another block of the cluster.
template <typename T>
FASTAR_DEVICE T* in_block(T* shared, [[maybe_unused]] unsigned rank) {
#if __CUDA_ARCH__ >= 900
    T* there;
    asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(shared), "r"(rank));
    return there;
#else
    return shared;
#endif
}
// A number for that place.
template <typename T>
FASTAR_DEVICE void put_in_block(T* shared, unsigned rank, T value) {
    *in_block(shared, rank) = value;
}
// Global memory that blocks of the launch write for one another, named so by the launch. The twin gives each block a
// view of its own, which others' writes reach by release and acquire alone.
template <typename T>
FASTAR_DEVICE T* exchanged(T* global) {
    return global;
}
// Every thread of the cluster. What was written before the arrival is seen after the wait.
FASTAR_DEVICE void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}
FASTAR_DEVICE void cluster_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#else
    __syncthreads();
#endif
}

// An edge between blocks of a cluster: a place in each one's shared memory that counts the bytes that others send it.
// It is done, and begins anew, once one thread of its block has said how many it expects and all of them have landed.
// Cards before sm_90 have none.
using Edge = std::uint64_t;
FASTAR_DEVICE void edge_begin([[maybe_unused]] Edge* edge) {
#if __CUDA_ARCH__ >= 900
    const auto at = static_cast<unsigned>(__cvta_generic_to_shared(edge));
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(at) : "memory");
#endif
}
// Between the beginnings and a meeting of the cluster behind which others may send.
FASTAR_DEVICE void edges_begun() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
FASTAR_DEVICE void edge_expect([[maybe_unused]] Edge* edge, [[maybe_unused]] unsigned bytes) {
#if __CUDA_ARCH__ >= 900
    const auto at = static_cast<unsigned>(__cvta_generic_to_shared(edge));
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
#endif
}
// A number for the same place in the shared memory of another block (or of this one), counted by that block's edge.
FASTAR_DEVICE void send([[maybe_unused]] float* shared, [[maybe_unused]] unsigned rank, [[maybe_unused]] float value,
                        [[maybe_unused]] Edge* edge) {
#if __CUDA_ARCH__ >= 900
    unsigned to;
    unsigned counted;
    asm("mapa.shared::cluster.u32 %0, %1, %2;"
        : "=r"(to)
        : "r"(static_cast<unsigned>(__cvta_generic_to_shared(shared))), "r"(rank));
    asm("mapa.shared::cluster.u32 %0, %1, %2;"
        : "=r"(counted)
        : "r"(static_cast<unsigned>(__cvta_generic_to_shared(edge))), "r"(rank));
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to),
                 "r"(__float_as_uint(value)), "r"(counted)
                 : "memory");
#endif
}
// Until this block's edge, which was done at least `times` times, has been done once more; what was sent is seen then.
FASTAR_DEVICE void edge_wait([[maybe_unused]] Edge* edge, [[maybe_unused]] unsigned times) {
#if __CUDA_ARCH__ >= 900
    const auto at = static_cast<unsigned>(__cvta_generic_to_shared(edge));
    unsigned done = 0;
    while (done == 0) {
        asm volatile(
            "{\n.reg .pred p;\n"
            "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n}"
            : "=r"(done)
            : "r"(at), "r"(times % 2)
            : "memory");
    }
#endif
}

// The number of the lowest bit of a word that is not 0.
FASTAR_DEVICE int lowest_bit(std::uint64_t word) {
    return __ffsll(static_cast<long long>(word)) - 1;
}

// Flags in global memory, between blocks.
FASTAR_DEVICE void add_release(unsigned* flag, unsigned value) {
    asm volatile("red.release.gpu.add.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
FASTAR_DEVICE unsigned load_acquire(const unsigned* flag) {
    unsigned value;
    asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
    return value;
}
// Until the flag, which only ever rises (and may wrap), has reached the target. False after about ten seconds: what it
// waits for is stuck.
FASTAR_DEVICE bool await(const unsigned* flag, unsigned target) {
    constexpr long long kPatience = 20'000'000'000;
    const long long begin = clock64();
    while (static_cast<int>(load_acquire(flag) - target) < 0) {
        if (clock64() - begin > kPatience) return false;
    }
    return true;
}

// Words of the host's memory, read and written while it runs: what was written before the store is seen with it.
FASTAR_DEVICE void tell_host(std::int32_t* word, std::int32_t value) {
    asm volatile("st.release.sys.s32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}
FASTAR_DEVICE std::int32_t ask_host(const std::int32_t* word) {
    std::int32_t value;
    asm volatile("ld.relaxed.sys.s32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
    return value;
}

FASTAR_DEVICE void atomic_min(unsigned long long* at, unsigned long long value) {
    atomicMin(at, value);
}

// Sixteen bytes or eight into shared memory, both ends aligned to as many. They are there after the wait for their
// group, and for other threads after a barrier behind it.
template <int kBytes = 16>
FASTAR_DEVICE void copy_async(void* shared, const void* global) {
    static_assert(kBytes == 8 || kBytes == 16);
    const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    if constexpr (kBytes == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(global) : "memory");
    }
}
// Ends a group of the copies that this thread has begun.
FASTAR_DEVICE void copy_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until all but the newest `kGroups` groups of this thread have landed.
template <int kGroups>
FASTAR_DEVICE void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// Asks for the line of global memory at an address to be brought into the second cache level.
FASTAR_DEVICE void prefetch(const void* global) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}

// Two numbers rounded to a word's halves, the first in the lower.
FASTAR_DEVICE std::uint32_t pack_bfloat16(float low, float high) {
    std::uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}
FASTAR_DEVICE std::uint32_t pack_float16(float low, float high) {
    std::uint32_t word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

// d += a b for a of 16 x 16, b of 16 x 8, in the fragments of mma.m16n8k16: a warp's lane l holds, of a, rows l / 4 and
// 8 more, columns 2 (l % 4) + {0, 1} and 8 more (words in the order row, row + 8, then columns + 8); of b, those
// columns as rows, column l / 4; of d, rows l / 4 and 8 more, columns 2 (l % 4) + {0, 1}.
FASTAR_DEVICE void multiply_bfloat16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
FASTAR_DEVICE void multiply_float16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace fastar::cuda

#endif
