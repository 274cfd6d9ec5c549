// A card's blocks and threads on one host thread: every device thread is a fibre that runs until it waits, and a seeded
// scheduler picks which goes on next, so that what only works in one order of threads fails in another.
//
// What it shows: a missing barrier, as a value from before or after its time; the read of an asynchronous copy that was
// not waited for; use of fresh shared memory; threads that wait for ever. What it cannot: a missing release or acquire,
// since the host's memory is read and written in the order of the program.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace fastar::twin {

struct Shape {
    unsigned blocks;
    unsigned threads;  // a multiple of 32
    std::size_t shared;
    unsigned cluster;  // blocks of a cluster
    bool together;     // all blocks are under way at once
};

// Of launches to come: which order of threads, and how many blocks are under way at once (0: a number from the seed).
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
void cluster_arrive();
void cluster_wait();

unsigned add(unsigned* flag, unsigned value);
void await(const unsigned* flag, unsigned target);
// Others may go first.
void yield();

void copy_async(void* to, const void* from, std::size_t bytes);
void copy_commit();
void copy_wait(int groups);

}  // namespace fastar::twin
