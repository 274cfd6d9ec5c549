// Advice to the operating system about large buffers.
#pragma once

#include <cstddef>

namespace fastar {

// Asks for 2 MiB pages behind the whole pages of [data, data + bytes). A fresh buffer of 64 MiB is otherwise faulted in
// by 16,384 interruptions, which took longer than filling it. Where the system refuses, nothing changes.
void prefer_huge_pages(void* data, std::size_t bytes);

}  // namespace fastar
