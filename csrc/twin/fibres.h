// A card's blocks and threads on one host thread: every device thread is a fibre that runs until it waits, and a seeded
// scheduler picks which goes on next, so that what only works in one order of threads fails in another.
//
// What it shows: a missing barrier, as a value from before or after its time; the read of an asynchronous copy that was
// not waited for; a missing release or acquire between blocks, as a value from before its time (twin/memory.h); use of
// fresh shared memory; threads that wait for ever.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "twin/memory.h"

namespace fastar::twin {

struct Shape {
    unsigned blocks;
    unsigned threads;  // a multiple of 32
    std::size_t shared;
    unsigned cluster;  // blocks of a cluster
    bool together;     // all blocks are under way at once
    std::vector<Region> exchanged = {};
    // Waits for a flag end in vain, rather than in an error, where nobody can go on.
    bool watchdog = false;
};

// Of launches to come: which order of threads, and how many blocks are under way at once (0: a number from the seed).
// Between blocks, an even seed shows every write at once, an odd one not before it was released and acquired: a write
// that comes too early is found by the one, a read that comes too early by the other.
void configure(std::uint64_t seed, unsigned blocks);

// Runs every thread of every block to its end. Throws std::runtime_error where threads wait for one another for ever,
// or use the vocabulary against its rules.
void launch(const Shape& shape, const std::function<void()>& kernel);

// Of the running fibre.
struct Place {
    unsigned thread;
    unsigned threads;
    unsigned block;
    unsigned blocks;
    unsigned rank;
    unsigned cluster;
    std::byte* shared;
};
const Place& place();

void barrier(int number, int threads);

// All lanes of a warp give `bytes` and see those of all: 32 stretches of kSlot bytes.
constexpr std::size_t kSlot = 64;
const std::byte* exchange(const char* what, const void* value, std::size_t bytes);

std::byte* in_block(std::byte* shared, unsigned rank);
void put_in_block(std::byte* shared, unsigned rank, const void* value, std::size_t bytes);
std::byte* exchanged(std::byte* global);
void cluster_arrive();
void cluster_wait();

// What is sent lands in any order, and no sooner than somebody waits for it, or chance has it.
void edge_begin(std::uint64_t* edge);
void edge_expect(std::uint64_t* edge, unsigned bytes);
void send(float* shared, unsigned rank, float value, std::uint64_t* edge);
void edge_wait(std::uint64_t* edge, unsigned times);

enum class Order { kRelaxed, kReleaseOrAcquire };
void add(unsigned* flag, unsigned value, Order order);
// Others may go first.
unsigned load(const unsigned* flag, Order order);
// False where the watchdog ended it.
bool await(const unsigned* flag, unsigned target, Order order);

void copy_async(void* to, const void* from, std::size_t bytes);
void copy_commit();
void copy_wait(int groups);

}  // namespace fastar::twin
