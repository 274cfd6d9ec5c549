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
namespace avx512 {
extern const KernelTable table;
}
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

const std::vector<Level>& levels() {
#ifdef FASTAR_HAS_AVX2
    static const auto has_avx2 = [] {
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    };
    static const auto has_avx512 = [] {
        return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    };
    static const auto has_avx512_bf16 = [] {
        return has_avx512() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
    };
    static const std::vector<Level> all{
        {"baseline", &baseline::table, true},
        {"avx2", &avx2::table, has_avx2()},
        {"avx512", &avx512::table, has_avx512()},
        {"avx512_bf16", &avx512_bf16::table, has_avx512_bf16()},
    };
#else
    static const std::vector<Level> all{{"baseline", &baseline::table, true}};
#endif
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
