#pragma once

#include <cstdint>

namespace fastar {

// Python hands over a tensor's memory as a number.
template <typename T>
T* at(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

}  // namespace fastar
