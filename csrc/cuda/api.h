// The entry points of the CUDA library: what csrc/bindings/cuda_library.cpp looks up by name. Plain C types only, so
// that the library and the extension may come from different compilers.
//
// Functions that can fail return nullptr, or a message that lives until the thread's next call. None of them needs a
// driver to be called: without one they return the runtime's message.
#pragma once

#include <cstdint>

#include "cuda/run.h"

// Raised whenever a declaration below changes; a library of another version is not used.
inline constexpr int kFastarCudaApi = 2;

struct FastarCudaVersions {
    std::int32_t driver;   // 13000 is CUDA 13.0; 0 where no driver is installed
    std::int32_t runtime;  // the runtime linked into this library
};

struct FastarCudaDevice {
    char name[256];
    std::int32_t major;
    std::int32_t minor;
    std::int32_t multiprocessors;
    std::int32_t registers_per_multiprocessor;
    std::int32_t shared_per_multiprocessor;  // bytes
    std::int32_t shared_per_block;           // bytes, the most that a kernel can opt in to
    std::int32_t max_cluster;                // blocks, non-portable sizes included; 1 on cards without clusters
    std::int32_t l2_bytes;
    std::int64_t memory_bytes;
};

#pragma GCC visibility push(default)
extern "C" {

int fastar_cuda_api();

// Hash of the sources that the library was built from.
const char* fastar_cuda_fingerprint();

// The cards that it was built for, in the form of FASTAR_CUDA_ARCHS.
const char* fastar_cuda_archs();

const char* fastar_cuda_versions(FastarCudaVersions* versions);

const char* fastar_cuda_device_count(std::int32_t* count);

// Takes a context on the device: the largest cluster is a question to a loaded kernel.
const char* fastar_cuda_describe(std::int32_t device, FastarCudaDevice* description);

// uniforms[row, position, draw] (contiguous, on the current device) of rows row_offset .. row_offset + rows - 1, for
// discrete or continuous draws, enqueued on `stream`.
const char* fastar_cuda_fill_uniforms(double* uniforms, std::uint64_t seed, std::uint64_t row_offset, std::int64_t rows,
                                      std::int64_t positions, std::int64_t draws, bool continuous, void* stream);

// Carries a run on to `run->target`, enqueued on `stream`, as its schedule says.
const char* fastar_cuda_run(const fastar::cuda::Run* run, void* stream);

#ifdef FASTAR_TWIN
// Of the twin alone: the order of threads in launches to come, and how many blocks run side by side (0: any number).
void fastar_twin_configure(std::uint64_t seed, std::uint32_t blocks);
#endif

}  // extern "C"
#pragma GCC visibility pop
