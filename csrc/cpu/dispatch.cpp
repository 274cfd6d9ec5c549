#include "cpu/dispatch.h"

#include <atomic>
#include <stdexcept>

namespace fastar::cpu {

namespace baseline {
extern const KernelTable table;
}
#ifdef FASTAR_HAS_AVX2
namespace avx2 {
extern const KernelTable table;
}
#endif
#ifdef FASTAR_HAS_AVX512
namespace avx512 {
extern const KernelTable table;
}
#endif
#ifdef FASTAR_HAS_AVX512_BF16
namespace avx512_bf16 {
extern const KernelTable table;
}
#endif

namespace {

struct Level {
    std::string name;
    const KernelTable* table;
    bool usable;
};

#ifdef FASTAR_HAS_AVX2
bool has_avx2() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif
#ifdef FASTAR_HAS_AVX512
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif
#ifdef FASTAR_HAS_AVX512_BF16
bool has_avx512_bf16() {
    return has_avx512() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
}
#endif

// Lowest first. A build may end at any of them.
const std::vector<Level>& levels() {
    static const std::vector<Level> all{
        {"baseline", &baseline::table, true},
#ifdef FASTAR_HAS_AVX2
        {"avx2", &avx2::table, has_avx2()},
#endif
#ifdef FASTAR_HAS_AVX512
        {"avx512", &avx512::table, has_avx512()},
#endif
#ifdef FASTAR_HAS_AVX512_BF16
        {"avx512_bf16", &avx512_bf16::table, has_avx512_bf16()},
#endif
    };
    return all;
}

std::atomic<const Level*>& chosen() {
    static std::atomic<const Level*> current = [] {
        const Level* best = nullptr;
        for (const Level& one : levels()) {
            if (one.usable) best = &one;
        }
        return best;
    }();
    return current;
}

}  // namespace

std::vector<std::string> levels_built() {
    std::vector<std::string> names;
    for (const Level& one : levels()) names.push_back(one.name);
    return names;
}

std::vector<std::string> levels_usable() {
    std::vector<std::string> names;
    for (const Level& one : levels()) {
        if (one.usable) names.push_back(one.name);
    }
    return names;
}

std::string missing_extensions() {
    std::string missing;
#if defined(__x86_64__) || defined(__i386__)
    __builtin_cpu_init();
    [[maybe_unused]] const auto need = [&missing](bool supported, const char* name) {
        if (!supported) missing += (missing.empty() ? "" : ", ") + std::string(name);
    };
#ifdef __SSE4_2__
    need(__builtin_cpu_supports("sse4.2"), "sse4.2");
#endif
#ifdef __AVX__
    need(__builtin_cpu_supports("avx"), "avx");
#endif
#ifdef __AVX2__
    need(__builtin_cpu_supports("avx2"), "avx2");
#endif
#ifdef __FMA__
    need(__builtin_cpu_supports("fma"), "fma");
#endif
#ifdef __AVX512F__
    need(__builtin_cpu_supports("avx512f"), "avx512f");
#endif
#endif
    return missing;
}

std::string vendor() {
#ifdef FASTAR_HAS_AVX2
    __builtin_cpu_init();
    if (__builtin_cpu_is("intel")) return "intel";
    if (__builtin_cpu_is("amd")) return "amd";
#endif
    return "other";
}

const std::string& level() {
    return chosen().load()->name;
}

void select_level(const std::string& name) {
    std::string usable;
    for (const Level& one : levels()) {
        if (!one.usable) continue;
        if (one.name == name) {
            chosen().store(&one);
            return;
        }
        usable += (usable.empty() ? "" : ", ") + one.name;
    }
    throw std::invalid_argument("level: expected one of " + usable + ", got '" + name + "'");
}

const KernelTable& kernels() {
    return *chosen().load()->table;
}

}  // namespace fastar::cpu
