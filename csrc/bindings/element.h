// Names of elements, as Python says them.
#pragma once

#include <stdexcept>
#include <string>

#include "cpu/element.h"

namespace fastar {

inline cpu::Element element_of(const std::string& dtype) {
    if (dtype == "float32") return cpu::Element::float32;
    if (dtype == "bfloat16") return cpu::Element::bfloat16;
    if (dtype == "float16") return cpu::Element::float16;
    throw std::invalid_argument("dtype: expected float32, bfloat16 or float16, got " + dtype);
}

}  // namespace fastar
