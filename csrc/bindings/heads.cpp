#include "bindings/heads.h"

#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "bindings/address.h"
#include "cpu/heads.h"

namespace py = pybind11;

namespace fastar {
namespace {

template <typename Value, std::size_t kCount>
Value named(const char* what, const std::string& name, const std::array<std::pair<const char*, Value>, kCount>& known) {
    for (const auto& [key, value] : known) {
        if (name == key) return value;
    }
    throw std::invalid_argument(std::string(what) + ": nothing is called '" + name + "'");
}

cpu::LogProbKind kind_of(const std::string& name) {
    using enum cpu::LogProbKind;
    return named<cpu::LogProbKind, 5>("kind", name,
                                      {{{"bernoulli", kBernoulli},
                                        {"categorical", kCategorical},
                                        {"gaussian", kGaussian},
                                        {"laplace", kLaplace},
                                        {"logistic", kLogistic}}});
}

cpu::HeadElement head_element_of(const std::string& name) {
    using enum cpu::HeadElement;
    return named<cpu::HeadElement, 5>("dtype", name,
                                      {{{"float32", kFloat32},
                                        {"bfloat16", kBFloat16},
                                        {"float16", kFloat16},
                                        {"int64", kInt64},
                                        {"uint8", kUInt8}}});
}

using Sizes = std::array<std::int64_t, 3>;

cpu::HeadParams params_of(std::uintptr_t data, const Sizes& strides) {
    return {.data = at<void>(data), .stride_outer = strides[0], .stride_size = strides[1], .stride_inner = strides[2]};
}

// A description, which serves all calls with tensors of the same shapes, over these.
cpu::Heads over(cpu::Heads heads, std::uintptr_t params, std::uintptr_t x) {
    heads.params.data = at<void>(params);
    heads.x = at<const void>(x);
    return heads;
}

}  // namespace

void bind_heads(py::module_& module) {
    py::class_<cpu::Heads>(module, "Heads")
        .def(py::init([](const std::string& kind, const std::string& dtype, const Sizes& sizes, const Sizes& strides,
                         const std::string& x_dtype, std::int64_t components, std::int64_t channels) {
                 cpu::Heads heads{};
                 heads.kind = kind_of(kind);
                 heads.type = head_element_of(dtype);
                 heads.x_type = head_element_of(x_dtype);
                 heads.outer = sizes[0];
                 heads.size = sizes[1];
                 heads.inner = sizes[2];
                 heads.params = params_of(0, strides);
                 heads.components = components;
                 heads.channels = channels;
                 return heads;
             }),
             py::arg("kind"), py::arg("dtype"), py::arg("sizes"), py::arg("strides"), py::arg("x_dtype"),
             py::arg("components"), py::arg("channels"))
        .def_readwrite("x_scale", &cpu::Heads::x_scale)
        .def_readwrite("x_offset", &cpu::Heads::x_offset)
        .def_readwrite("x_low", &cpu::Heads::x_low)
        .def_readwrite("x_high", &cpu::Heads::x_high)
        .def_readwrite("half_bin", &cpu::Heads::half_bin)
        .def_readwrite("min_log_scale", &cpu::Heads::min_log_scale)
        .def_readwrite("branch", &cpu::Heads::branch);
    module.def(
        "heads_forward",
        [](const cpu::Heads& heads, std::uintptr_t params, std::uintptr_t x, std::uintptr_t log_prob, int threads) {
            return cpu::heads_forward({.heads = over(heads, params, x), .log_prob = at<float>(log_prob)}, threads);
        },
        py::call_guard<py::gil_scoped_release>(), py::arg("heads"), py::arg("params"), py::arg("x"),
        py::arg("log_prob"), py::arg("threads"), "False if an entry of x is outside what the head can take.");
    module.def(
        "heads_backward",
        [](const cpu::Heads& heads, std::uintptr_t params, std::uintptr_t x, std::uintptr_t grad,
           std::uintptr_t grad_params, const Sizes& strides, std::uintptr_t grad_x, int threads) {
            cpu::heads_backward({.heads = over(heads, params, x),
                                 .grad = at<const float>(grad),
                                 .grad_params = params_of(grad_params, strides),
                                 .grad_x = at<float>(grad_x)},
                                threads);
        },
        py::call_guard<py::gil_scoped_release>(), py::arg("heads"), py::arg("params"), py::arg("x"), py::arg("grad"),
        py::arg("grad_params"), py::arg("strides"), py::arg("grad_x"), py::arg("threads"));
}

}  // namespace fastar
