// The kernels on this machine's cards: their compiled image, loaded and launched through the CUDA driver. The driver is
// opened when somebody asks for a card, so fastar._core links nothing of CUDA and loads everywhere. csrc/twin is a
// driver of the same functions whose card is this process.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cuda/driver.h"
#include "cuda/run.h"

namespace fastar::cuda {

struct Card {
    std::string name;
    int major;
    int minor;
    int multiprocessors;
    int registers_per_multiprocessor;
    int shared_per_multiprocessor;  // bytes
    int shared_per_block;           // bytes, the most that a kernel can opt in to
    int max_cluster;                // blocks, non-portable sizes included; 1 on cards without clusters
    int l2_bytes;
    std::int64_t memory_bytes;
    int kernel_registers;  // of a thread of the sampling kernel
};

struct CloseLibrary {
    void operator()(void* handle) const;
};

// The shared library of a driver that is new enough; std::runtime_error where there is none.
struct OpenDriver {
    explicit OpenDriver(const std::string& path);

    std::unique_ptr<void, CloseLibrary> handle;
    int version = 0;  // 13000 is CUDA 13.0
};

// Everything throws std::runtime_error with the driver's own words.
class Library {
  public:
    // Opens the driver at `driver` (a file, or a name that the system finds) and loads `image`, what a compiler made of
    // kernels.cu.
    Library(const std::string& driver, std::string image);

    int driver_version() const { return opened_.version; }
    int device_count() const;
    Card describe(int device);
    std::int64_t free_bytes(int device);

    // How many blocks of the sampling kernel the card holds at once; of clusters, in whole ones.
    int resident(int device, const Launch& shape);
    // Enqueued on `stream`, as the run's schedule says. Nothing is allocated or waited for.
    void run(int device, const Run& run, driver::Stream stream);
    void fill_uniforms(int device, const Uniforms& uniforms, driver::Stream stream);

    // Whether all work on the stream has ended; throws where it ended in an error.
    bool is_done(int device, driver::Stream stream);
    void wait(int device, driver::Stream stream);

    // The twin has an order of threads to choose, and pretends to be a card of other properties.
    bool is_twin() const { return configure_ != nullptr; }
    void configure(std::uint64_t seed, std::uint32_t blocks) const;
    void pretend(const std::string& what, std::int64_t value) const;

  private:
    struct Place {
        driver::Device device;
        driver::Context context = nullptr;
    };
    class Current;

    void require(const char* what, driver::Status status) const;
    // The device with its context, the kernels made ready on it.
    Place place(int device);
    void launch(const Place& at, driver::Kernel kernel, const Launch& shape, void* argument, driver::Stream stream);
    int attribute(driver::DeviceAttribute which, driver::Device device) const;

    OpenDriver opened_;
    driver::Functions driver_{};
    std::string image_;
    driver::Image loaded_ = nullptr;
    driver::Kernel run_ = nullptr;
    driver::Kernel uniforms_ = nullptr;
    std::mutex mutex_;
    std::vector<Place> places_;
    void (*configure_)(std::uint64_t, std::uint32_t) = nullptr;
    void (*pretend_)(const char*, std::int64_t) = nullptr;
};

}  // namespace fastar::cuda
