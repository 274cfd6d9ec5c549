// The OpenMP runtime that torch brought into the process, so that our parallel loops run on torch's own threads.
#pragma once

namespace fastar {

// Runs body(data) once on each of `threads` threads, the caller's among them (on fewer where the runtime has a limit),
// and returns when all are done. False, and nothing is run, where torch is not loaded or was built without OpenMP, and
// in a forked child.
bool run_on_openmp(void (*body)(void*), void* data, int threads);

}  // namespace fastar
