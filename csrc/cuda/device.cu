// What this library is, and what the cards of this machine offer to the kernels in it.
#include <cuda_runtime.h>

#include <cstring>

#include "cuda/api.h"
#include "cuda/error.cuh"

namespace fastar::cuda {
namespace {

__global__ void probe() {}

// Makes a device current and, at the end of the scope, the previous one again.
class CurrentDevice {
  public:
    explicit CurrentDevice(int device) {
        check(cudaGetDevice(&previous_));
        check(cudaSetDevice(device));
    }
    ~CurrentDevice() { cudaSetDevice(previous_); }
    CurrentDevice(const CurrentDevice&) = delete;
    CurrentDevice& operator=(const CurrentDevice&) = delete;

  private:
    int previous_ = 0;
};

int attribute(cudaDeviceAttr which, int device) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, device));
    return value;
}

int max_cluster(int device) {
    if (attribute(cudaDevAttrClusterLaunch, device) == 0) return 1;
    const CurrentDevice current(device);
    check(cudaFuncSetAttribute(probe, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(16);
    config.blockDim = dim3(128);
    int blocks = 1;
    check(cudaOccupancyMaxPotentialClusterSize(&blocks, probe, &config));
    return blocks;
}

FastarCudaDevice describe(int device) {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, device));
    FastarCudaDevice description{};
    static_assert(sizeof(description.name) >= sizeof(properties.name));
    std::memcpy(description.name, properties.name, sizeof(properties.name));
    description.major = properties.major;
    description.minor = properties.minor;
    description.multiprocessors = properties.multiProcessorCount;
    description.registers_per_multiprocessor = properties.regsPerMultiprocessor;
    description.shared_per_multiprocessor = static_cast<std::int32_t>(properties.sharedMemPerMultiprocessor);
    description.shared_per_block = static_cast<std::int32_t>(properties.sharedMemPerBlockOptin);
    description.max_cluster = max_cluster(device);
    description.l2_bytes = properties.l2CacheSize;
    description.memory_bytes = static_cast<std::int64_t>(properties.totalGlobalMem);
    return description;
}

}  // namespace
}  // namespace fastar::cuda

extern "C" {

int fastar_cuda_api() {
    return kFastarCudaApi;
}

const char* fastar_cuda_fingerprint() {
    return FASTAR_FINGERPRINT;
}

const char* fastar_cuda_archs() {
    return FASTAR_ARCHS;
}

const char* fastar_cuda_versions(FastarCudaVersions* versions) {
    return fastar::cuda::guarded([&] {
        fastar::cuda::check(cudaDriverGetVersion(&versions->driver));
        fastar::cuda::check(cudaRuntimeGetVersion(&versions->runtime));
    });
}

const char* fastar_cuda_device_count(std::int32_t* count) {
    return fastar::cuda::guarded([&] { fastar::cuda::check(cudaGetDeviceCount(count)); });
}

const char* fastar_cuda_describe(std::int32_t device, FastarCudaDevice* description) {
    return fastar::cuda::guarded([&] { *description = fastar::cuda::describe(device); });
}

}  // extern "C"
