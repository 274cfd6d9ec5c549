#include "bindings/cuda_library.h"

#include <dlfcn.h>

#include <stdexcept>

namespace py = pybind11;

namespace fastar {
namespace {

void require(const char* what, const char* error) {
    if (error != nullptr) throw std::runtime_error(std::string(what) + ": " + error);
}

}  // namespace

void CudaLibrary::Close::operator()(void* handle) const {
    dlclose(handle);
}

template <typename Function>
Function* CudaLibrary::symbol(const char* name) const {
    void* const address = dlsym(handle_.get(), name);
    if (address == nullptr) throw std::runtime_error(std::string("CUDA library: ") + dlerror());
    return reinterpret_cast<Function*>(address);
}

// RTLD_NODELETE: the CUDA runtime inside registers exit handlers, so its code has to stay mapped.
CudaLibrary::CudaLibrary(const std::string& path)
    : handle_(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE)) {
    if (handle_ == nullptr) throw std::runtime_error(std::string("CUDA library: ") + dlerror());
    const int api = symbol<decltype(fastar_cuda_api)>("fastar_cuda_api")();
    if (api != kFastarCudaApi) {
        throw std::runtime_error("CUDA library: " + path + " has version " + std::to_string(api) +
                                 " of the entry points, fastar._core expects " + std::to_string(kFastarCudaApi));
    }
    fingerprint_ = symbol<decltype(fastar_cuda_fingerprint)>("fastar_cuda_fingerprint");
    archs_ = symbol<decltype(fastar_cuda_archs)>("fastar_cuda_archs");
    versions_ = symbol<decltype(fastar_cuda_versions)>("fastar_cuda_versions");
    device_count_ = symbol<decltype(fastar_cuda_device_count)>("fastar_cuda_device_count");
    describe_ = symbol<decltype(fastar_cuda_describe)>("fastar_cuda_describe");
    fill_uniforms_ = symbol<decltype(fastar_cuda_fill_uniforms)>("fastar_cuda_fill_uniforms");
    run_ = symbol<decltype(fastar_cuda_run)>("fastar_cuda_run");
    configure_ = reinterpret_cast<decltype(configure_)>(dlsym(handle_.get(), "fastar_twin_configure"));
}

FastarCudaVersions CudaLibrary::versions() const {
    FastarCudaVersions versions{};
    require("CUDA versions", versions_(&versions));
    return versions;
}

int CudaLibrary::device_count() const {
    std::int32_t count = 0;
    require("CUDA devices", device_count_(&count));
    return count;
}

FastarCudaDevice CudaLibrary::describe(int device) const {
    FastarCudaDevice description{};
    require("CUDA device", describe_(device, &description));
    return description;
}

void CudaLibrary::fill_uniforms(double* uniforms, std::uint64_t seed, std::uint64_t row_offset, std::int64_t rows,
                                std::int64_t positions, std::int64_t draws, bool continuous, void* stream) const {
    require("CUDA uniforms", fill_uniforms_(uniforms, seed, row_offset, rows, positions, draws, continuous, stream));
}

void CudaLibrary::run(const cuda::Run& run, void* stream) const {
    require("CUDA run", run_(&run, stream));
}

void CudaLibrary::configure(std::uint64_t seed, std::uint32_t blocks) const {
    if (!is_twin()) throw std::runtime_error("CUDA library: only the host twin has an order of threads to choose");
    configure_(seed, blocks);
}

void bind_cuda_library(py::module_& module) {
    const auto unlocked = py::call_guard<py::gil_scoped_release>();
    py::class_<FastarCudaVersions>(module, "CudaVersions")
        .def_readonly("driver", &FastarCudaVersions::driver)
        .def_readonly("runtime", &FastarCudaVersions::runtime);
    py::class_<FastarCudaDevice>(module, "CudaDevice")
        .def_property_readonly("name", [](const FastarCudaDevice& self) { return std::string(self.name); })
        .def_readonly("major", &FastarCudaDevice::major)
        .def_readonly("minor", &FastarCudaDevice::minor)
        .def_readonly("multiprocessors", &FastarCudaDevice::multiprocessors)
        .def_readonly("registers_per_multiprocessor", &FastarCudaDevice::registers_per_multiprocessor)
        .def_readonly("shared_per_multiprocessor", &FastarCudaDevice::shared_per_multiprocessor)
        .def_readonly("shared_per_block", &FastarCudaDevice::shared_per_block)
        .def_readonly("max_cluster", &FastarCudaDevice::max_cluster)
        .def_readonly("l2_bytes", &FastarCudaDevice::l2_bytes)
        .def_readonly("memory_bytes", &FastarCudaDevice::memory_bytes);
    py::class_<CudaLibrary>(module, "CudaLibrary")
        .def(py::init<const std::string&>(), py::arg("path"), unlocked)
        .def_property_readonly("fingerprint", &CudaLibrary::fingerprint)
        .def_property_readonly("archs", &CudaLibrary::archs)
        .def("versions", &CudaLibrary::versions, unlocked)
        .def("device_count", &CudaLibrary::device_count, unlocked)
        .def("describe", &CudaLibrary::describe, py::arg("device"), unlocked)
        .def(
            "fill_uniforms",
            // Addresses travel as integers: a tensor's data_ptr() and a stream's cuda_stream.
            [](const CudaLibrary& self, std::uintptr_t uniforms, std::uint64_t seed, std::uint64_t row_offset,
               std::int64_t rows, std::int64_t positions, std::int64_t draws, bool continuous, std::uintptr_t stream) {
                self.fill_uniforms(reinterpret_cast<double*>(uniforms), seed, row_offset, rows, positions, draws,
                                   continuous, reinterpret_cast<void*>(stream));
            },
            py::kw_only(), py::arg("uniforms"), py::arg("seed"), py::arg("row_offset"), py::arg("rows"),
            py::arg("positions"), py::arg("draws"), py::arg("continuous"), py::arg("stream"), unlocked)
        .def_property_readonly("is_twin", &CudaLibrary::is_twin)
        .def("configure", &CudaLibrary::configure, py::arg("seed"), py::arg("blocks") = 0);
}

}  // namespace fastar
