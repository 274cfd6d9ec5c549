// A 64-bit fingerprint of a block of memory, by which a packed copy of a weight is known to be current.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastar::cpu {

// Reads at the speed of memory on up to `threads` threads. The value does not depend on their number, but it does on
// the machine's byte order: it is meant for comparison within one process. `data` is aligned to 8 bytes or copied to
// be.
std::uint64_t fingerprint(const void* data, std::size_t bytes, int threads);

}  // namespace fastar::cpu
