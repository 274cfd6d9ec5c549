// What a tensor's elements are; sums are in float32.
#pragma once

namespace fastar::cpu {

enum class Element { float32, bfloat16, float16 };

}  // namespace fastar::cpu
