// A CUDA driver whose only card is this process: the functions of csrc/cuda/driver.h, and behind them the kernels, run
// by fibres. What a stream is given runs on a thread of its own, beside the host as on a card.
#include "cuda/driver.h"

#include <chrono>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cuda/kernels.cu"
#include "twin/fibres.h"

namespace fastar::twin {
namespace {

using namespace cuda::driver;

struct Work {
    std::thread thread;
    bool ended = false;
    std::string error;
};

// Never destroyed: a stream may be at work until the process ends.
struct State {
    std::mutex mutex;
    std::map<Stream, Work> streams;
    std::string error;
    std::uint64_t seed = 0;
    std::uint32_t blocks = 0;
    // What the card is, as far as a test may want it otherwise. "clusters" and "blocks": that fit at once, the latter
    // on a multiprocessor. "image" and "launch": the status of loading and of launching. "stall": whether launches
    // hang. "watchdog": whether waits between blocks end in vain where a deadlock is found, as on a card after a while.
    std::map<std::string, std::int64_t> card{
        {"driver", 13000},
        {"devices", 1},
        {"major", 9},
        {"minor", 0},
        {"shared", 232448},
        {"multiprocessors", 16},
        {"largest cluster", 16},
        {"clusters", 8},
        {"blocks", 1},
        {"free", std::int64_t{1} << 40},
        {"image", 0},
        {"launch", 0},
        {"stall", 0},
        {"watchdog", 0},
    };

    static State& get() {
        static auto* const one = new State;
        return *one;
    }
    static std::int64_t card_is(const char* what) {
        State& state = get();
        const std::scoped_lock lock(state.mutex);
        return state.card.at(what);
    }
};

// Global memory that blocks of a launch write for one another.
std::vector<Region> exchanged(const cuda::Run& run) {
    const auto region = [](auto* begin, std::int64_t count) {
        return Region{reinterpret_cast<std::byte*>(begin), static_cast<std::size_t>(count) * sizeof *begin};
    };
    return {region(run.arena, run.rows * run.arena_stride), region(run.values, run.rows * run.length * run.channels),
            region(run.lengths, run.rows)};
}

std::vector<Region> exchanged(const cuda::Uniforms&) {
    return {};
}

struct Call {
    std::function<void()> kernel;
    std::vector<Region> exchanged;
};

// A kernel by name, and with it what makes a call of it that outlives the arguments.
struct Named {
    const char* name;
    Call (*bind)(void* const* arguments);
};

template <auto kKernel, typename Argument>
Call bind(void* const* arguments) {
    const auto& argument = *static_cast<const Argument*>(arguments[0]);
    return {[argument] { kKernel(argument); }, exchanged(argument)};
}

Named kernels[] = {{"fastar_run", bind<cuda::fastar_run, cuda::Run>},
                   {"fastar_uniforms", bind<cuda::fastar_uniforms, cuda::Uniforms>}};

void work(Stream stream, const Shape& shape, const std::function<void()>& kernel) {
    State& state = State::get();
    std::string error;
    try {
        configure(state.seed, state.blocks);
        while (State::card_is("stall") != 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        launch(shape, kernel);
    } catch (const std::exception& caught) {
        error = caught.what();
    }
    const std::scoped_lock lock(state.mutex);
    state.streams[stream].error = error;
    state.streams[stream].ended = true;
}

Status finish(Stream stream) {
    State& state = State::get();
    std::unique_lock lock(state.mutex);
    const auto found = state.streams.find(stream);
    if (found == state.streams.end()) return kSuccess;
    Work& one = found->second;
    std::thread thread = std::move(one.thread);
    lock.unlock();
    if (thread.joinable()) thread.join();
    lock.lock();
    const std::string error = std::move(one.error);
    state.streams.erase(stream);
    if (error.empty()) return kSuccess;
    state.error = error;
    return kLaunchFailed;
}

}  // namespace
}  // namespace fastar::twin

using namespace fastar::cuda::driver;
using fastar::twin::State;

#pragma GCC visibility push(default)
extern "C" {

#define FASTAR_DECLARE(name, ...) Status name(__VA_ARGS__);
FASTAR_CUDA_DRIVER(FASTAR_DECLARE)
#undef FASTAR_DECLARE

// Of launches to come: the order of threads, and how many blocks run side by side (0: any number).
void fastar_twin_configure(std::uint64_t seed, std::uint32_t blocks) {
    State& state = State::get();
    const std::scoped_lock lock(state.mutex);
    state.seed = seed;
    state.blocks = blocks;
}

void fastar_twin_pretend(const char* what, std::int64_t value) {
    State& state = State::get();
    const std::scoped_lock lock(state.mutex);
    state.card[what] = value;
}

Status cuInit(unsigned) {
    return kSuccess;
}

Status cuDriverGetVersion(int* version) {
    *version = static_cast<int>(State::card_is("driver"));
    return kSuccess;
}

Status cuGetErrorString(Status status, const char** text) {
    thread_local std::string words;
    const std::scoped_lock lock(State::get().mutex);
    words = status == kLaunchFailed ? State::get().error : "the host twin was told to refuse";
    *text = words.c_str();
    return kSuccess;
}

Status cuDeviceGetCount(int* count) {
    *count = static_cast<int>(State::card_is("devices"));
    return kSuccess;
}

Status cuDeviceGet(Device* device, int number) {
    *device = number;
    return kSuccess;
}

Status cuDeviceGetName(char* name, int size, Device) {
    std::strncpy(name, "host twin", static_cast<std::size_t>(size));
    return kSuccess;
}

Status cuDeviceGetAttribute(int* value, DeviceAttribute which, Device) {
    switch (which) {
        case kMultiprocessors:
            *value = static_cast<int>(State::card_is("multiprocessors"));
            return kSuccess;
        case kLevel2Bytes:
            *value = 0;
            return kSuccess;
        case kMajor:
            *value = static_cast<int>(State::card_is("major"));
            return kSuccess;
        case kMinor:
            *value = static_cast<int>(State::card_is("minor"));
            return kSuccess;
        case kSharedPerMultiprocessor:
            *value = static_cast<int>(State::card_is("shared")) + 1024;
            return kSuccess;
        case kRegistersPerMultiprocessor:
            *value = 65536;
            return kSuccess;
        case kSharedPerBlock:
            *value = static_cast<int>(State::card_is("shared"));
            return kSuccess;
        case kClusterLaunch:
            *value = State::card_is("largest cluster") > 1 ? 1 : 0;
            return kSuccess;
    }
    return kInvalidValue;
}

Status cuDeviceTotalMem_v2(std::size_t* bytes, Device) {
    *bytes = static_cast<std::size_t>(State::card_is("free"));
    return kSuccess;
}

Status cuDevicePrimaryCtxRetain(Context* context, Device) {
    *context = &State::get();
    return kSuccess;
}

Status cuCtxPushCurrent_v2(Context) {
    return kSuccess;
}

Status cuCtxPopCurrent_v2(Context*) {
    return kSuccess;
}

Status cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
    *free = *total = static_cast<std::size_t>(State::card_is("free"));
    return kSuccess;
}

Status cuLibraryLoadData(Image* image, const void*, void*, void**, unsigned, void*, void**, unsigned) {
    *image = fastar::twin::kernels;
    return static_cast<Status>(State::card_is("image"));
}

Status cuLibraryGetKernel(Kernel* kernel, Image, const char* name) {
    for (auto& one : fastar::twin::kernels) {
        if (std::strcmp(one.name, name) == 0) {
            *kernel = &one;
            return kSuccess;
        }
    }
    return kNotFound;
}

Status cuKernelSetAttribute(KernelAttribute, int, Kernel, Device) {
    return kSuccess;
}

Status cuKernelGetAttribute(int* value, KernelAttribute, Kernel, Device) {
    *value = 0;
    return kSuccess;
}

Status cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, std::size_t shared) {
    *blocks =
        static_cast<std::int64_t>(shared) > State::card_is("shared") ? 0 : static_cast<int>(State::card_is("blocks"));
    return kSuccess;
}

Status cuOccupancyMaxPotentialClusterSize(int* blocks, Kernel, const LaunchConfig*) {
    *blocks = static_cast<int>(State::card_is("largest cluster"));
    return kSuccess;
}

Status cuOccupancyMaxActiveClusters(int* clusters, Kernel, const LaunchConfig*) {
    *clusters = static_cast<int>(State::card_is("clusters"));
    return kSuccess;
}

Status cuLaunchKernelEx(const LaunchConfig* config, Kernel kernel, void** arguments, void**) {
    fastar::twin::Call call = static_cast<fastar::twin::Named*>(kernel)->bind(arguments);
    fastar::twin::Shape shape{config->blocks[0], config->threads[0], config->shared_bytes, 1, false, call.exchanged};
    for (std::uint32_t i = 0; i < config->attribute_count; ++i) {
        const LaunchAttribute& one = config->attributes[i];
        if (one.name == kClusterSize) shape.cluster = one.value[0];
        if (one.name == kCooperative) shape.together = one.value[0] != 0;
    }
    shape.watchdog = State::card_is("watchdog") != 0;
    const auto status = static_cast<Status>(State::card_is("launch"));
    if (status != kSuccess) return status;
    // Work of the same stream comes one after another; its error is then told.
    const Status before = fastar::twin::finish(config->stream);
    if (before != kSuccess) return before;
    State& state = State::get();
    const std::scoped_lock lock(state.mutex);
    state.streams[config->stream].thread =
        std::thread(fastar::twin::work, config->stream, shape, std::move(call.kernel));
    return kSuccess;
}

Status cuStreamQuery(Stream stream) {
    State& state = State::get();
    {
        const std::scoped_lock lock(state.mutex);
        const auto found = state.streams.find(stream);
        if (found != state.streams.end() && !found->second.ended) return kNotReady;
    }
    return fastar::twin::finish(stream);
}

Status cuStreamSynchronize(Stream stream) {
    return fastar::twin::finish(stream);
}

}  // extern "C"
#pragma GCC visibility pop
