// What the CUDA library tells of a card, told of the twin: one with clusters and few multiprocessors.
#include <cstdint>
#include <cstring>

#include "cuda/api.h"
#include "twin/fibres.h"

extern "C" {

int fastar_cuda_api() {
    return kFastarCudaApi;
}

const char* fastar_cuda_fingerprint() {
    return FASTAR_FINGERPRINT;
}

const char* fastar_cuda_archs() {
    return "twin";
}

const char* fastar_cuda_versions(FastarCudaVersions* versions) {
    *versions = {};
    return nullptr;
}

const char* fastar_cuda_device_count(std::int32_t* count) {
    *count = 1;
    return nullptr;
}

const char* fastar_cuda_describe(std::int32_t, FastarCudaDevice* description) {
    *description = {};
    std::strcpy(description->name, "host twin");
    description->major = 9;
    description->multiprocessors = 16;
    description->shared_per_multiprocessor = 233472;
    description->shared_per_block = 232448;
    description->max_cluster = 16;
    return nullptr;
}

void fastar_twin_configure(std::uint64_t seed, std::uint32_t blocks) {
    fastar::twin::configure(seed, blocks);
}

}  // extern "C"
