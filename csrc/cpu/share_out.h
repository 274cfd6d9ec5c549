// parallel_for with signed indices.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "common/workers.h"

namespace fastar::cpu {

template <typename Body>
void share_out(std::int64_t count, std::int64_t grain, int threads, Body body) {
    parallel_for(static_cast<std::size_t>(count), static_cast<std::size_t>(std::max<std::int64_t>(1, grain)), threads,
                 [&](auto begin, auto end) { body(static_cast<std::int64_t>(begin), static_cast<std::int64_t>(end)); });
}

// Below this many multiplications or moved elements a second thread costs more to wake than it saves.
inline constexpr std::int64_t kWorkPerPiece = 1 << 18;
inline constexpr std::int64_t kElementsPerPiece = 1 << 15;

}  // namespace fastar::cpu
