// The CUDA library (csrc/cuda), a plain shared library that is opened when somebody asks for a GPU: fastar._core itself
// links nothing of CUDA and loads everywhere.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <string>

#include "cuda/api.h"

namespace fastar {

class CudaLibrary {
  public:
    // Throws std::runtime_error where the file cannot be opened or speaks another version of csrc/cuda/api.h.
    explicit CudaLibrary(const std::string& path);

    std::string fingerprint() const { return fingerprint_(); }
    std::string archs() const { return archs_(); }

    // These throw std::runtime_error with the CUDA runtime's message.
    FastarCudaVersions versions() const;
    int device_count() const;
    FastarCudaDevice describe(int device) const;
    void fill_uniforms(double* uniforms, std::uint64_t seed, std::uint64_t row_offset, std::int64_t rows,
                       std::int64_t positions, std::int64_t draws, bool continuous, void* stream) const;
    void run(const cuda::Run& run, void* stream) const;

    // The host twin of the kernels has an order of threads to choose; std::runtime_error for a library of a card.
    bool is_twin() const { return configure_ != nullptr; }
    void configure(std::uint64_t seed, std::uint32_t blocks) const;

  private:
    struct Close {
        void operator()(void* handle) const;
    };

    template <typename Function>
    Function* symbol(const char* name) const;

    std::unique_ptr<void, Close> handle_;
    decltype(&fastar_cuda_fingerprint) fingerprint_;
    decltype(&fastar_cuda_archs) archs_;
    decltype(&fastar_cuda_versions) versions_;
    decltype(&fastar_cuda_device_count) device_count_;
    decltype(&fastar_cuda_describe) describe_;
    decltype(&fastar_cuda_fill_uniforms) fill_uniforms_;
    decltype(&fastar_cuda_run) run_;
    void (*configure_)(std::uint64_t, std::uint32_t);
};

void bind_cuda_library(pybind11::module_& module);

}  // namespace fastar
