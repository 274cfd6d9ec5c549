// What fastar calls of the CUDA driver (libcuda), declared here, so that neither building nor loading fastar needs a
// toolkit. Numbers and structs are the driver's own; where there is a toolkit, a test holds them against its cuda.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastar::cuda::driver {

using Status = int;
using Device = int;
using Context = void*;
using Image = void*;
using Kernel = void*;
using Stream = void*;

constexpr Status kSuccess = 0;
constexpr Status kInvalidValue = 1;
constexpr Status kNotFound = 500;
constexpr Status kNotReady = 600;
constexpr Status kLaunchFailed = 719;

enum DeviceAttribute : int {
    kMultiprocessors = 16,
    kLevel2Bytes = 38,
    kMajor = 75,
    kMinor = 76,
    kSharedPerMultiprocessor = 81,
    kRegistersPerMultiprocessor = 82,
    kSharedPerBlock = 97,
    kClusterLaunch = 120,
};

enum KernelAttribute : int { kRegisters = 4, kMostDynamicShared = 8, kLargeClusters = 14 };

enum LaunchAttributeName : int { kCooperative = 2, kClusterSize = 4 };

struct LaunchAttribute {
    int name;
    std::uint32_t unused = 0;
    std::uint32_t value[16] = {};
};

struct LaunchConfig {
    std::uint32_t blocks[3];
    std::uint32_t threads[3];
    std::uint32_t shared_bytes;
    Stream stream;
    LaunchAttribute* attributes;
    std::uint32_t attribute_count;
};

// Names as the shared library exports them, with their parameters. All return a Status.
#define FASTAR_CUDA_DRIVER(X)                                                                   \
    X(cuInit, unsigned)                                                                         \
    X(cuDriverGetVersion, int*)                                                                 \
    X(cuGetErrorString, Status, const char**)                                                   \
    X(cuDeviceGetCount, int*)                                                                   \
    X(cuDeviceGet, Device*, int)                                                                \
    X(cuDeviceGetName, char*, int, Device)                                                      \
    X(cuDeviceGetAttribute, int*, DeviceAttribute, Device)                                      \
    X(cuDeviceTotalMem_v2, std::size_t*, Device)                                                \
    X(cuDevicePrimaryCtxRetain, Context*, Device)                                               \
    X(cuCtxPushCurrent_v2, Context)                                                             \
    X(cuCtxPopCurrent_v2, Context*)                                                             \
    X(cuMemGetInfo_v2, std::size_t*, std::size_t*)                                              \
    X(cuLibraryLoadData, Image*, const void*, void*, void**, unsigned, void*, void**, unsigned) \
    X(cuLibraryGetKernel, Kernel*, Image, const char*)                                          \
    X(cuKernelSetAttribute, KernelAttribute, int, Kernel, Device)                               \
    X(cuKernelGetAttribute, int*, KernelAttribute, Kernel, Device)                              \
    X(cuOccupancyMaxActiveBlocksPerMultiprocessor, int*, Kernel, int, std::size_t)              \
    X(cuOccupancyMaxPotentialClusterSize, int*, Kernel, const LaunchConfig*)                    \
    X(cuOccupancyMaxActiveClusters, int*, Kernel, const LaunchConfig*)                          \
    X(cuLaunchKernelEx, const LaunchConfig*, Kernel, void**, void**)                            \
    X(cuStreamQuery, Stream)                                                                    \
    X(cuStreamSynchronize, Stream)

struct Functions {
#define FASTAR_MEMBER(name, ...) Status (*name)(__VA_ARGS__);
    FASTAR_CUDA_DRIVER(FASTAR_MEMBER)
#undef FASTAR_MEMBER
};

}  // namespace fastar::cuda::driver
