#include "cuda/library.h"

#include <dlfcn.h>

#include <stdexcept>
#include <utility>

namespace fastar::cuda {
namespace {

// The first whose images belong to no context, which launches with attributes came before.
constexpr int kOldestDriver = 12000;

std::string version_name(int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// A launch as the driver wants it.
struct Config {
    driver::LaunchAttribute attributes[2];
    driver::LaunchConfig config;

    Config(const Launch& shape, driver::Stream stream)
        : config{{shape.blocks, 1, 1}, {shape.threads, 1, 1}, shape.shared, stream, attributes, 0} {
        if (shape.cluster > 1) {
            attributes[config.attribute_count++] = {driver::kClusterSize, 0, {shape.cluster, 1, 1}};
        }
        if (shape.together) attributes[config.attribute_count++] = {driver::kCooperative, 0, {1}};
    }
    Config(const Config&) = delete;
    Config& operator=(const Config&) = delete;
};

}  // namespace

// Makes a device's context the thread's own for a scope, whatever it had before.
class Library::Current {
  public:
    Current(const Library& library, const Place& place) : library_(library) {
        library.require("context", library.driver_.cuCtxPushCurrent_v2(place.context));
    }
    ~Current() {
        driver::Context popped = nullptr;
        library_.driver_.cuCtxPopCurrent_v2(&popped);
    }
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;

  private:
    const Library& library_;
};

void CloseLibrary::operator()(void* handle) const {
    dlclose(handle);
}

// RTLD_NODELETE: the driver has threads of its own, whose code has to stay mapped.
OpenDriver::OpenDriver(const std::string& path) : handle(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE)) {
    if (handle == nullptr) {
        throw std::runtime_error(std::string("CUDA driver: ") + dlerror() + "; install NVIDIA's driver");
    }
    driver::Functions driver{};
    driver.cuDriverGetVersion =
        reinterpret_cast<decltype(driver.cuDriverGetVersion)>(dlsym(handle.get(), "cuDriverGetVersion"));
    if (driver.cuDriverGetVersion == nullptr) throw std::runtime_error("CUDA driver: " + path + " is none");
    if (driver.cuDriverGetVersion(&version) != driver::kSuccess || version < kOldestDriver) {
        throw std::runtime_error("CUDA driver: it supports CUDA " + version_name(version) + ", and " +
                                 version_name(kOldestDriver) + " or newer is needed; update the driver");
    }
}

Library::Library(const std::string& driver, std::string image) : opened_(driver), image_(std::move(image)) {
    const auto find = [&](const char* name) { return dlsym(opened_.handle.get(), name); };
#define FASTAR_FIND(name, ...)                                            \
    driver_.name = reinterpret_cast<decltype(driver_.name)>(find(#name)); \
    if (driver_.name == nullptr) throw std::runtime_error("CUDA driver: no " #name);
    FASTAR_CUDA_DRIVER(FASTAR_FIND)
#undef FASTAR_FIND
    configure_ = reinterpret_cast<decltype(configure_)>(find("fastar_twin_configure"));
    pretend_ = reinterpret_cast<decltype(pretend_)>(find("fastar_twin_pretend"));
    require("start", driver_.cuInit(0));
    require("kernels", driver_.cuLibraryLoadData(&loaded_, image_.data(), nullptr, nullptr, 0, nullptr, nullptr, 0));
    require("kernel", driver_.cuLibraryGetKernel(&run_, loaded_, "fastar_run"));
    require("kernel", driver_.cuLibraryGetKernel(&uniforms_, loaded_, "fastar_uniforms"));
}

void Library::require(const char* what, driver::Status status) const {
    if (status == driver::kSuccess) return;
    const char* text = nullptr;
    driver_.cuGetErrorString(status, &text);
    throw std::runtime_error(std::string("CUDA ") + what + ": " + (text == nullptr ? "unknown error" : text) +
                             " (error " + std::to_string(status) + ")");
}

int Library::device_count() const {
    int count = 0;
    require("devices", driver_.cuDeviceGetCount(&count));
    return count;
}

int Library::attribute(driver::DeviceAttribute which, driver::Device device) const {
    int value = 0;
    require("device", driver_.cuDeviceGetAttribute(&value, which, device));
    return value;
}

Library::Place Library::place(int number) {
    const std::scoped_lock lock(mutex_);
    if (number < 0 || number >= device_count()) {
        throw std::runtime_error("CUDA device: there is no device " + std::to_string(number));
    }
    if (places_.size() <= static_cast<std::size_t>(number)) places_.resize(static_cast<std::size_t>(number) + 1);
    Place& here = places_[static_cast<std::size_t>(number)];
    if (here.context != nullptr) return here;
    Place found{};
    require("device", driver_.cuDeviceGet(&found.device, number));
    const int shared = attribute(driver::kSharedPerBlock, found.device);
    require("kernel", driver_.cuKernelSetAttribute(driver::kMostDynamicShared, shared, run_, found.device));
    if (attribute(driver::kClusterLaunch, found.device) != 0) {
        require("kernel", driver_.cuKernelSetAttribute(driver::kLargeClusters, 1, run_, found.device));
    }
    // The context that torch uses as well; it is kept until the process ends.
    require("context", driver_.cuDevicePrimaryCtxRetain(&found.context, found.device));
    here = found;
    return here;
}

Card Library::describe(int number) {
    const Place at = place(number);
    char name[256] = {};
    std::size_t memory = 0;
    require("device", driver_.cuDeviceGetName(name, sizeof name, at.device));
    require("device", driver_.cuDeviceTotalMem_v2(&memory, at.device));
    Card card{};
    card.name = name;
    card.major = attribute(driver::kMajor, at.device);
    card.minor = attribute(driver::kMinor, at.device);
    card.multiprocessors = attribute(driver::kMultiprocessors, at.device);
    card.registers_per_multiprocessor = attribute(driver::kRegistersPerMultiprocessor, at.device);
    card.shared_per_multiprocessor = attribute(driver::kSharedPerMultiprocessor, at.device);
    card.shared_per_block = attribute(driver::kSharedPerBlock, at.device);
    card.l2_bytes = attribute(driver::kLevel2Bytes, at.device);
    card.memory_bytes = static_cast<std::int64_t>(memory);
    card.max_cluster = 1;
    const Current current(*this, at);
    if (attribute(driver::kClusterLaunch, at.device) != 0) {
        const Config whole({.blocks = kLargestCluster, .threads = kMostThreads}, nullptr);
        require("clusters", driver_.cuOccupancyMaxPotentialClusterSize(&card.max_cluster, run_, &whole.config));
    }
    require("kernel", driver_.cuKernelGetAttribute(&card.kernel_registers, driver::kRegisters, run_, at.device));
    return card;
}

std::int64_t Library::free_bytes(int device) {
    const Place at = place(device);
    const Current current(*this, at);
    std::size_t free = 0;
    std::size_t total = 0;
    require("memory", driver_.cuMemGetInfo_v2(&free, &total));
    return static_cast<std::int64_t>(free);
}

int Library::resident(int device, const Launch& shape) {
    const Place at = place(device);
    const Current current(*this, at);
    int resident = 0;
    if (shape.cluster > 1) {
        const Config config(shape, nullptr);
        require("clusters", driver_.cuOccupancyMaxActiveClusters(&resident, run_, &config.config));
        return resident * static_cast<int>(shape.cluster);
    }
    require("blocks", driver_.cuOccupancyMaxActiveBlocksPerMultiprocessor(
                          &resident, run_, static_cast<int>(shape.threads), shape.shared));
    return resident * attribute(driver::kMultiprocessors, at.device);
}

void Library::launch(const Place& at, driver::Kernel kernel, const Launch& shape, void* argument,
                     driver::Stream stream) {
    if (shape.blocks == 0) return;
    const Current current(*this, at);
    const Config config(shape, stream);
    void* arguments[] = {argument};
    require("launch", driver_.cuLaunchKernelEx(&config.config, kernel, arguments, nullptr));
}

void Library::run(int device, const Run& run, driver::Stream stream) {
    Run argument = run;
    launch(place(device), run_, launch_of(run), &argument, stream);
}

void Library::fill_uniforms(int device, const Uniforms& uniforms, driver::Stream stream) {
    Uniforms argument = uniforms;
    launch(place(device), uniforms_, launch_of(uniforms), &argument, stream);
}

bool Library::is_done(int device, driver::Stream stream) {
    const Place at = place(device);
    const Current current(*this, at);
    const driver::Status status = driver_.cuStreamQuery(stream);
    if (status == driver::kNotReady) return false;
    require("run", status);
    return true;
}

void Library::wait(int device, driver::Stream stream) {
    const Place at = place(device);
    const Current current(*this, at);
    require("run", driver_.cuStreamSynchronize(stream));
}

void Library::configure(std::uint64_t seed, std::uint32_t blocks) const {
    if (!is_twin()) throw std::runtime_error("CUDA driver: only the host twin has an order of threads to choose");
    configure_(seed, blocks);
}

void Library::pretend(const std::string& what, std::int64_t value) const {
    if (!is_twin()) throw std::runtime_error("CUDA driver: only the host twin pretends to be another card");
    pretend_(what.c_str(), value);
}

}  // namespace fastar::cuda
