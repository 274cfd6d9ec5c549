#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace fastar {

// Python hands over a tensor's memory as a number.
template <typename T>
T* at(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

// The same of what may be None.
template <typename T>
T* address(const pybind11::handle& value) {
    return value.is_none() ? nullptr : reinterpret_cast<T*>(value.cast<std::uintptr_t>());
}

}  // namespace fastar
