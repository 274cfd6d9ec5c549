// A pool of threads that splits one range of work at a time.
#pragma once

#include <cstddef>
#include <functional>

namespace fastar {

// Calls body(begin, end) over disjoint pieces of [0, count) on at most `threads` threads, the caller's among them, and
// returns when all are done. Pieces are at least `grain` long, so small ranges stay on the caller's thread. The split
// depends on count, grain and threads alone. Calls from several threads at once are taken one after another; body must
// not call parallel_for and must not throw.
void parallel_for(std::size_t count, std::size_t grain, int threads,
                  const std::function<void(std::size_t, std::size_t)>& body);

}  // namespace fastar
