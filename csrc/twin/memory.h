// Memory as blocks see it: what one of them writes reaches another once the writer has released it and the reader has
// acquired that, no sooner. A block works on a view of its own of the global memory that blocks exchange numbers
// through; a release publishes what its view has become since the last one, an acquire takes in what was published.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fastar::twin {

// Global memory that blocks of a launch write for one another.
struct Region {
    std::byte* begin;
    std::size_t bytes;
};

// How much a block, or whoever acquires from it, has seen: of each block the number of its releases.
using Stamp = std::vector<std::size_t>;

void join(Stamp& into, const Stamp& other);

class Memory {
  public:
    Memory(std::vector<Region> regions, unsigned blocks);

    // A block's view begins as the memory is.
    void begin(unsigned block);
    // Where a block sees an address; addresses outside of the regions are everybody's.
    std::byte* view(unsigned block, std::byte* address);
    // A number of at most eight bytes for another block's shared memory.
    void store(unsigned writer, unsigned reader, std::byte* to, const void* value, std::size_t bytes);

    const Stamp& release(unsigned block);
    void acquire(unsigned block, const Stamp& stamp);

  private:
    struct Write {
        std::byte* to;
        int reader;  // the block in whose shared memory that is, -1 for global memory
        std::size_t bytes;
        std::uint64_t value;
    };
    struct Published {
        std::size_t number;  // among those of all blocks
        std::vector<Write> writes;
    };
    struct View {
        std::vector<std::byte> now;
        std::vector<std::byte> known;  // without what this block wrote since its last release
    };
    struct Block {
        std::vector<View> views;  // of the regions
        std::vector<Write> stores;
        std::vector<Published> releases;
        Stamp seen;
    };

    static Write write(std::byte* to, int reader, const void* value, std::size_t bytes);
    static void find_changes(const View& view, const Region& region, std::vector<Write>& changes);
    void take(Block& block, unsigned number, const Write& write);

    std::vector<Region> regions_;
    std::vector<Block> blocks_;
    std::size_t published_ = 0;
};

}  // namespace fastar::twin
