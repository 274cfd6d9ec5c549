#include "common/openmp.h"

#include <dlfcn.h>
#include <unistd.h>

#include <initializer_list>

namespace fastar {
namespace {

// What compilers turn a parallel region into; GNU's runtime and LLVM's both have it.
using Parallel = void(void (*)(void*), void*, unsigned, unsigned);

// GNU's runtime hangs in a child that was forked after its parent had used it.
const pid_t kOwner = getpid();

Parallel* find() {
    // A lookup by handle also searches what the library depends on, so this is the very runtime that torch uses,
    // however its file is called and whatever other copies the process holds.
    for (const char* library : {"libtorch_cpu.so", "libtorch_cpu.dylib"}) {
        if (void* handle = dlopen(library, RTLD_LAZY | RTLD_NOLOAD)) {
            if (void* symbol = dlsym(handle, "GOMP_parallel")) return reinterpret_cast<Parallel*>(symbol);
            dlclose(handle);
        }
    }
    return nullptr;
}

}  // namespace

bool run_on_openmp(void (*body)(void*), void* data, int threads) {
    static Parallel* const parallel = find();
    if (!parallel || getpid() != kOwner) return false;
    parallel(body, data, static_cast<unsigned>(threads), 0);
    return true;
}

}  // namespace fastar
