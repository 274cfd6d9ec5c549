#include "bindings/cuda_library.h"

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "bindings/address.h"
#include "cuda/library.h"

namespace py = pybind11;

namespace fastar {

// Addresses travel as integers: a tensor's data_ptr() and a stream's cuda_stream.
void bind_cuda_library(py::module_& module) {
    using cuda::Card;
    using cuda::Library;
    const auto unlocked = py::call_guard<py::gil_scoped_release>();
    py::class_<Card>(module, "CudaCard")
        .def_readonly("name", &Card::name)
        .def_readonly("major", &Card::major)
        .def_readonly("minor", &Card::minor)
        .def_readonly("multiprocessors", &Card::multiprocessors)
        .def_readonly("registers_per_multiprocessor", &Card::registers_per_multiprocessor)
        .def_readonly("shared_per_multiprocessor", &Card::shared_per_multiprocessor)
        .def_readonly("shared_per_block", &Card::shared_per_block)
        .def_readonly("max_cluster", &Card::max_cluster)
        .def_readonly("l2_bytes", &Card::l2_bytes)
        .def_readonly("memory_bytes", &Card::memory_bytes)
        .def_readonly("kernel_registers", &Card::kernel_registers);
    module.def(
        "cuda_driver_version", [](const std::string& driver) { return cuda::OpenDriver(driver).version; },
        py::arg("driver"), unlocked);
    py::class_<Library>(module, "CudaLibrary", "The kernels, loaded through a CUDA driver.")
        .def(py::init([](const std::string& driver, const py::bytes& image) {
                 std::string held(image);
                 const py::gil_scoped_release release;
                 return std::make_unique<Library>(driver, std::move(held));
             }),
             py::arg("driver"), py::arg("image"))
        .def_property_readonly("driver_version", &Library::driver_version)
        .def("device_count", &Library::device_count, unlocked)
        .def("describe", &Library::describe, py::arg("device"), unlocked)
        .def(
            "resident",
            [](Library& self, int device, std::uint32_t threads, std::uint32_t shared, std::uint32_t cluster) {
                return self.resident(device,
                                     {.blocks = cluster, .threads = threads, .shared = shared, .cluster = cluster});
            },
            py::arg("device"), py::kw_only(), py::arg("threads"), py::arg("shared"), py::arg("cluster"), unlocked)
        .def("free_bytes", &Library::free_bytes, py::arg("device"), unlocked)
        .def(
            "is_done",
            [](Library& self, int device, std::uintptr_t stream) {
                return self.is_done(device, reinterpret_cast<void*>(stream));
            },
            py::arg("device"), py::arg("stream"), unlocked)
        .def(
            "wait",
            [](Library& self, int device, std::uintptr_t stream) {
                self.wait(device, reinterpret_cast<void*>(stream));
            },
            py::arg("device"), py::arg("stream"), unlocked)
        .def(
            "fill_uniforms",
            [](Library& self, int device, std::uintptr_t uniforms, std::uint64_t seed, std::uint64_t row_offset,
               std::int64_t rows, std::int64_t positions, std::int64_t draws, bool continuous, std::uintptr_t stream) {
                const cuda::Uniforms all{
                    reinterpret_cast<double*>(uniforms), seed, row_offset, rows, positions, draws, continuous ? 1 : 0};
                self.fill_uniforms(device, all, reinterpret_cast<void*>(stream));
            },
            py::kw_only(), py::arg("device"), py::arg("uniforms"), py::arg("seed"), py::arg("row_offset"),
            py::arg("rows"), py::arg("positions"), py::arg("draws"), py::arg("continuous"), py::arg("stream"), unlocked)
        .def_property_readonly("is_twin", &Library::is_twin)
        .def("configure", &Library::configure, py::arg("seed"), py::arg("blocks") = 0)
        .def("pretend", &Library::pretend, py::arg("what"), py::arg("value"));
}

}  // namespace fastar
