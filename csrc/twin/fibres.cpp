#include "twin/fibres.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace fastar::twin {
namespace {

constexpr unsigned kLanes = 32;
constexpr std::size_t kStack = 128 * 1024;
constexpr int kBarriers = 16;
// Of every four-byte word a float that is not a number, and of every index one that is far outside.
constexpr int kPoison = 0xff;

struct Cluster;
struct Block;

struct Copy {
    std::byte* to;
    const std::byte* from;
    std::size_t bytes;
};

// A number on its way to a block of the cluster.
struct Sent {
    Block* to;
    float* at;
    float value;
    std::uint64_t* edge;
};

enum class State { kReady, kBarrier, kWarp, kCluster, kEdge, kFlag, kEnded };

struct Fibre {
    Place place{};
    Block* block = nullptr;
    State state = State::kReady;
    int number = 0;         // of the barrier it waits at
    const char* what = "";  // the warp's operation it waits at
    const unsigned* flag = nullptr;
    unsigned target = 0;
    bool in_vain = false;
    const std::uint64_t* edge = nullptr;
    unsigned phase = 0;  // of the cluster's barrier at which it arrived
    std::vector<std::vector<Copy>> groups{1};
    bool started = false;
    std::unique_ptr<std::byte[]> stack{new std::byte[kStack]};
    ucontext_t entry{};
    jmp_buf here{};
};

struct Barrier {
    unsigned threads = 0;
    std::vector<Fibre*> waiting;
};

struct Edge {
    unsigned done = 0;
    bool expecting = false;
    std::int64_t missing = 0;  // bytes; below zero where they came before they were expected
    std::vector<Fibre*> waiting;
};

struct Warp {
    const char* what = nullptr;
    unsigned generation = 0;
    std::vector<Fibre*> waiting;
    // A lane that goes on may reach the next exchange before others have read this one, never the one after.
    alignas(64) std::array<std::array<std::byte, kLanes * kSlot>, 2> slots;
};

struct Block {
    Cluster* cluster = nullptr;
    unsigned index = 0;
    unsigned ended = 0;
    unsigned arrived = 0;  // at the cluster's barrier
    std::vector<std::byte> memory;
    std::byte* shared = nullptr;
    std::array<Barrier, kBarriers> barriers;
    std::map<const std::uint64_t*, Edge> edges;
    std::vector<Warp> warps;
    std::vector<std::unique_ptr<Fibre>> fibres;
};

struct Cluster {
    std::vector<std::unique_ptr<Block>> blocks;
    unsigned arrived = 0;
    unsigned phase = 0;
    unsigned ended = 0;
    std::vector<Fibre*> waiting;
    Stamp arriving;  // what those who have arrived released
    Stamp released;
};

struct Options {
    std::uint64_t seed = 0;
    unsigned blocks = 0;
};
thread_local Options options;

class Scheduler {
  public:
    Scheduler(const Shape& shape, const std::function<void()>& kernel) : shape_(shape), kernel_(kernel) {
        random_.seed(options.seed);
        const bool alone = shape.cluster == 1 && !shape.together;
        if (!alone && options.seed % 2 == 1) memory_.emplace(shape.exchanged, shape.blocks);
    }

    void run();

    Fibre& current() { return *current_; }
    bool coin(unsigned of) { return random_() % of == 0; }
    // Leaves the running fibre; it goes on when somebody puts it back.
    void leave() {
        if (_setjmp(current_->here) == 0) _longjmp(home_, 1);
    }
    void wake(Fibre* fibre) {
        fibre->state = State::kReady;
        ready_.push_back(fibre);
    }
    void wake_all(std::vector<Fibre*>& fibres) {
        for (Fibre* one : fibres) wake(one);
        fibres.clear();
    }
    void poll(Fibre* fibre) { polling_.push_back(fibre); }
    void send(const Sent& one) { sent_.push_back(one); }
    void look_at(Edge& edge);
    // Where writes do not show at once.
    std::optional<Memory>& memory() { return memory_; }
    // What was released through a flag.
    Stamp& released(const unsigned* flag) { return released_[flag]; }
    void wrote(const unsigned* flag) { writers_[flag] = {current_->block->index, current_->place.thread}; }
    [[noreturn]] void fail(const std::string& message) {
        const Place& at = current_->place;
        error_ = "block " + std::to_string(at.block) + ", thread " + std::to_string(at.thread) + ": " + message;
        _longjmp(home_, 1);
    }

  private:
    static void enter();
    void start_cluster();
    void step(Fibre* fibre);
    void end(Fibre* fibre);
    bool look_at_flags();
    void give_up();
    void land_one();
    std::string who_waits() const;
    std::string reason(const Fibre& fibre) const;

    const Shape& shape_;
    const std::function<void()>& kernel_;
    std::mt19937_64 random_;
    jmp_buf home_{};
    Fibre* current_ = nullptr;
    std::string error_;
    unsigned started_ = 0;
    std::vector<std::unique_ptr<Cluster>> clusters_;
    std::vector<Fibre*> ready_;
    std::vector<Fibre*> polling_;
    std::vector<std::unique_ptr<Fibre>> spare_;
    std::map<const unsigned*, std::pair<unsigned, unsigned>> writers_;
    std::vector<Sent> sent_;
    std::optional<Memory> memory_;
    std::map<const unsigned*, Stamp> released_;
};

thread_local Scheduler* scheduler = nullptr;

void Scheduler::enter() {
    scheduler->kernel_();
    scheduler->current_->state = State::kEnded;
    _longjmp(scheduler->home_, 1);
}

void Scheduler::start_cluster() {
    auto cluster = std::make_unique<Cluster>();
    for (unsigned rank = 0; rank < shape_.cluster; ++rank) {
        auto block = std::make_unique<Block>();
        block->cluster = cluster.get();
        block->index = started_++;
        if (memory_) memory_->begin(block->index);
        block->memory.resize(shape_.shared + 128, std::byte{kPoison});
        const auto address = reinterpret_cast<std::uintptr_t>(block->memory.data());
        block->shared = block->memory.data() + (128 - address % 128) % 128;
        block->warps.resize(shape_.threads / kLanes);
        for (unsigned t = 0; t < shape_.threads; ++t) {
            std::unique_ptr<Fibre> fibre;
            if (spare_.empty()) {
                fibre = std::make_unique<Fibre>();
            } else {
                fibre = std::move(spare_.back());
                spare_.pop_back();
                fibre->started = false;
                fibre->phase = 0;
                fibre->groups.assign(1, {});
            }
            fibre->block = block.get();
            fibre->place = {t, shape_.threads, block->index, shape_.blocks, rank, shape_.cluster, block->shared};
            wake(fibre.get());
            block->fibres.push_back(std::move(fibre));
        }
        cluster->blocks.push_back(std::move(block));
    }
    clusters_.push_back(std::move(cluster));
}

void Scheduler::step(Fibre* fibre) {
    current_ = fibre;
    if (_setjmp(home_) != 0) return;
    if (fibre->started) _longjmp(fibre->here, 1);
    // A context of its own is only needed to begin: changing between contexts asks the system about signals each time.
    fibre->started = true;
    getcontext(&fibre->entry);
    fibre->entry.uc_stack.ss_sp = fibre->stack.get();
    fibre->entry.uc_stack.ss_size = kStack;
    fibre->entry.uc_link = nullptr;
    makecontext(&fibre->entry, &Scheduler::enter, 0);
    setcontext(&fibre->entry);
}

void Scheduler::end(Fibre* fibre) {
    Block& block = *fibre->block;
    Cluster& cluster = *block.cluster;
    if (++block.ended == shape_.threads && memory_) memory_->release(block.index);
    if (++cluster.ended < shape_.cluster * shape_.threads) return;
    for (const Sent& one : sent_) {
        if (one.to->cluster == &cluster) {
            error_ = "block " + std::to_string(one.to->index) + " has ended before all that was sent to it has landed";
        }
    }
    for (auto& one : cluster.blocks) {
        std::move(one->fibres.begin(), one->fibres.end(), std::back_inserter(spare_));
    }
    std::erase_if(clusters_, [&](const auto& one) { return one.get() == &cluster; });
}

// Whether this round of the edge is done.
void Scheduler::look_at(Edge& edge) {
    if (!edge.expecting || edge.missing != 0) return;
    edge.expecting = false;
    ++edge.done;
    wake_all(edge.waiting);
}

void Scheduler::land_one() {
    std::swap(sent_[random_() % sent_.size()], sent_.back());
    const Sent one = sent_.back();
    sent_.pop_back();
    *one.at = one.value;
    Edge& edge = one.to->edges[one.edge];
    edge.missing -= static_cast<std::int64_t>(sizeof one.value);
    look_at(edge);
}

bool Scheduler::look_at_flags() {
    const auto reached = [](const Fibre* f) { return static_cast<int>(*f->flag - f->target) >= 0; };
    const auto first = std::partition(polling_.begin(), polling_.end(), [&](const Fibre* f) { return !reached(f); });
    const bool any = first != polling_.end();
    for (auto it = first; it != polling_.end(); ++it) wake(*it);
    polling_.erase(first, polling_.end());
    return any;
}

void Scheduler::give_up() {
    for (Fibre* one : polling_) one->in_vain = true;
    wake_all(polling_);
}

void Scheduler::run() {
    const unsigned clusters = shape_.blocks / shape_.cluster;
    unsigned at_once =
        options.blocks != 0 ? std::max(1u, options.blocks / shape_.cluster) : 1 + static_cast<unsigned>(random_() % 4);
    if (shape_.together) at_once = clusters;
    while (true) {
        while (started_ < shape_.blocks && clusters_.size() < at_once) start_cluster();
        if (clusters_.empty()) return;
        if (ready_.empty() || coin(64)) look_at_flags();
        while (!sent_.empty() && (ready_.empty() || coin(4))) land_one();
        if (ready_.empty() && shape_.watchdog) give_up();
        if (ready_.empty()) throw std::runtime_error("deadlock: no thread can go on\n" + who_waits());
        const std::size_t next = random_() % ready_.size();
        std::swap(ready_[next], ready_.back());
        Fibre* const fibre = ready_.back();
        ready_.pop_back();
        step(fibre);
        if (!error_.empty()) throw std::runtime_error(error_);
        if (fibre->state == State::kEnded) end(fibre);
    }
}

std::string Scheduler::reason(const Fibre& fibre) const {
    const Block& block = *fibre.block;
    std::ostringstream text;
    switch (fibre.state) {
        case State::kBarrier: {
            const Barrier& b = block.barriers[static_cast<std::size_t>(fibre.number)];
            text << "waits at barrier " << fibre.number << ", where " << b.waiting.size() << " of " << b.threads
                 << " threads are";
            break;
        }
        case State::kWarp:
            text << "waits in a " << fibre.what << ", where " << block.warps[fibre.place.thread / kLanes].waiting.size()
                 << " of 32 lanes are";
            break;
        case State::kCluster:
            text << "waits at the cluster's barrier, where " << block.cluster->arrived << " of "
                 << shape_.cluster * shape_.threads << " threads have arrived";
            break;
        case State::kEdge: {
            const Edge& edge = block.edges.at(fibre.edge);
            text << "waits for an edge, " << (edge.expecting ? "which misses " : "which expects nothing and misses ")
                 << edge.missing << " bytes";
            break;
        }
        case State::kFlag: {
            text << "waits for the flag at " << fibre.flag << " to reach " << fibre.target << ", it is " << *fibre.flag;
            const auto writer = writers_.find(fibre.flag);
            if (writer != writers_.end()) {
                text << ", last written by block " << writer->second.first << ", thread " << writer->second.second;
            }
            break;
        }
        case State::kEnded:
            text << "has ended";
            break;
        case State::kReady:
            text << "can go on";
            break;
    }
    return text.str();
}

std::string Scheduler::who_waits() const {
    std::ostringstream text;
    for (const auto& cluster : clusters_) {
        for (const auto& block : cluster->blocks) {
            const auto& fibres = block->fibres;
            for (std::size_t begin = 0; begin < fibres.size();) {
                const std::string why = reason(*fibres[begin]);
                std::size_t end = begin + 1;
                while (end < fibres.size() && reason(*fibres[end]) == why) ++end;
                text << "  block " << block->index << ", thread " << begin;
                if (end > begin + 1) text << " to " << end - 1 << ": each";
                text << (end > begin + 1 ? " " : ": ") << why << '\n';
                begin = end;
            }
        }
    }
    return text.str();
}

void land(const Copy& copy) {
    std::memcpy(copy.to, copy.from, copy.bytes);
}

}  // namespace

void configure(std::uint64_t seed, unsigned blocks) {
    options = {seed, blocks};
}

void launch(const Shape& shape, const std::function<void()>& kernel) {
    if (shape.threads == 0 || shape.threads % kLanes != 0 || shape.threads > 1024) {
        throw std::runtime_error("launch: " + std::to_string(shape.threads) + " threads are no whole number of warps");
    }
    if (shape.cluster == 0 || shape.blocks % shape.cluster != 0) {
        throw std::runtime_error("launch: " + std::to_string(shape.blocks) + " blocks are no whole number of clusters");
    }
    Scheduler one(shape, kernel);
    scheduler = &one;
    try {
        one.run();
    } catch (...) {
        scheduler = nullptr;
        throw;
    }
    scheduler = nullptr;
}

const Place& place() {
    return scheduler->current().place;
}

void barrier(int number, int threads) {
    Fibre& me = scheduler->current();
    if (number < 0 || number >= kBarriers) scheduler->fail("barrier " + std::to_string(number) + " does not exist");
    Barrier& b = me.block->barriers[static_cast<std::size_t>(number)];
    if (!b.waiting.empty() && b.threads != static_cast<unsigned>(threads)) {
        scheduler->fail("barrier " + std::to_string(number) + " of " + std::to_string(threads) +
                        " threads, where others wait for " + std::to_string(b.threads));
    }
    b.threads = static_cast<unsigned>(threads);
    b.waiting.push_back(&me);
    me.state = State::kBarrier;
    me.number = number;
    if (b.waiting.size() == b.threads) scheduler->wake_all(b.waiting);
    scheduler->leave();
}

const std::byte* exchange(const char* what, const void* value, std::size_t bytes) {
    Fibre& me = scheduler->current();
    Warp& warp = me.block->warps[me.place.thread / kLanes];
    if (!warp.waiting.empty() && std::strcmp(warp.what, what) != 0) {
        scheduler->fail(std::string("lanes of one warp meet in a ") + warp.what + " and in a " + what);
    }
    warp.what = what;
    auto& slots = warp.slots[warp.generation % 2];
    std::memcpy(slots.data() + me.place.thread % kLanes * kSlot, value, bytes);
    warp.waiting.push_back(&me);
    me.state = State::kWarp;
    me.what = what;
    if (warp.waiting.size() == kLanes) {
        ++warp.generation;
        warp.waiting.pop_back();
        scheduler->wake_all(warp.waiting);
        me.state = State::kReady;
    } else {
        scheduler->leave();
    }
    return slots.data();
}

std::byte* exchanged(std::byte* global) {
    auto& memory = scheduler->memory();
    return memory ? memory->view(scheduler->current().block->index, global) : global;
}

void put_in_block(std::byte* shared, unsigned rank, const void* value, std::size_t bytes) {
    std::byte* const there = in_block(shared, rank);
    const Fibre& me = scheduler->current();
    auto& memory = scheduler->memory();
    if (memory && rank != me.place.rank) {
        memory->store(me.block->index, me.block->cluster->blocks[rank]->index, there, value, bytes);
    } else {
        std::memcpy(there, value, bytes);
    }
}

std::byte* in_block(std::byte* shared, unsigned rank) {
    const Fibre& me = scheduler->current();
    const std::ptrdiff_t offset = shared - me.block->shared;
    if (offset < 0 || static_cast<std::size_t>(offset) >= me.block->memory.size()) {
        scheduler->fail("in_block: the address is not in this block's shared memory");
    }
    if (rank >= me.place.cluster) scheduler->fail("in_block: there is no block " + std::to_string(rank));
    const Block& there = *me.block->cluster->blocks[rank];
    if (there.ended > 0) scheduler->fail("in_block: threads of block " + std::to_string(there.index) + " have ended");
    return there.shared + offset;
}

void cluster_arrive() {
    Fibre& me = scheduler->current();
    Cluster& cluster = *me.block->cluster;
    if (me.phase != cluster.phase) scheduler->fail("cluster_arrive: no wait since the last arrival");
    ++me.phase;
    if (++me.block->arrived == me.place.threads) {
        me.block->arrived = 0;
        if (auto& memory = scheduler->memory()) join(cluster.arriving, memory->release(me.block->index));
    }
    if (++cluster.arrived == me.place.cluster * me.place.threads) {
        cluster.arrived = 0;
        ++cluster.phase;
        cluster.released = cluster.arriving;
        scheduler->wake_all(cluster.waiting);
    }
}

void cluster_wait() {
    Fibre& me = scheduler->current();
    Cluster& cluster = *me.block->cluster;
    if (me.phase != cluster.phase) {
        me.state = State::kCluster;
        cluster.waiting.push_back(&me);
        scheduler->leave();
    }
    if (auto& memory = scheduler->memory()) memory->acquire(me.block->index, cluster.released);
}

void edge_begin(std::uint64_t* edge) {
    scheduler->current().block->edges[edge] = {};
}

namespace {
Edge& own_edge(const std::uint64_t* edge) {
    auto& edges = scheduler->current().block->edges;
    const auto found = edges.find(edge);
    if (found == edges.end()) scheduler->fail("an edge that has not begun");
    return found->second;
}
}  // namespace

void edge_expect(std::uint64_t* edge, unsigned bytes) {
    Edge& one = own_edge(edge);
    if (one.expecting) scheduler->fail("edge_expect: the edge expects something already");
    one.expecting = true;
    one.missing += bytes;
    scheduler->look_at(one);
}

void send(float* shared, unsigned rank, float value, std::uint64_t* edge) {
    auto* const to = reinterpret_cast<float*>(in_block(reinterpret_cast<std::byte*>(shared), rank));
    auto* const there = reinterpret_cast<std::uint64_t*>(in_block(reinterpret_cast<std::byte*>(edge), rank));
    Block& block = *scheduler->current().block->cluster->blocks[rank];
    if (!block.edges.contains(there)) scheduler->fail("send: the edge has not begun");
    scheduler->send({&block, to, value, there});
}

void edge_wait(std::uint64_t* edge, unsigned times) {
    Edge& one = own_edge(edge);
    if ((one.done - times) % 2 != 0) return;
    Fibre& me = scheduler->current();
    me.state = State::kEdge;
    me.edge = edge;
    one.waiting.push_back(&me);
    scheduler->leave();
}

void add(unsigned* flag, unsigned value, Order order) {
    auto& memory = scheduler->memory();
    if (memory && order == Order::kReleaseOrAcquire) {
        join(scheduler->released(flag), memory->release(scheduler->current().block->index));
    }
    *flag += value;
    scheduler->wrote(flag);
}

unsigned load(const unsigned* flag, Order order) {
    Fibre& me = scheduler->current();
    scheduler->wake(&me);
    scheduler->leave();
    auto& memory = scheduler->memory();
    if (memory && order == Order::kReleaseOrAcquire) memory->acquire(me.block->index, scheduler->released(flag));
    return *flag;
}

bool await(const unsigned* flag, unsigned target, Order order) {
    Fibre& me = scheduler->current();
    if (static_cast<int>(*flag - target) < 0) {
        me.state = State::kFlag;
        me.flag = flag;
        me.target = target;
        scheduler->poll(&me);
        scheduler->leave();
    }
    auto& memory = scheduler->memory();
    if (memory && order == Order::kReleaseOrAcquire) memory->acquire(me.block->index, scheduler->released(flag));
    return !std::exchange(me.in_vain, false);
}

void copy_async(void* to, const void* from, std::size_t bytes) {
    const Copy copy{static_cast<std::byte*>(to), static_cast<const std::byte*>(from), bytes};
    if (scheduler->coin(8)) {
        land(copy);
        return;
    }
    std::memset(to, kPoison, bytes);
    scheduler->current().groups.back().push_back(copy);
}

void copy_commit() {
    scheduler->current().groups.emplace_back();
}

void copy_wait(int groups) {
    auto& pending = scheduler->current().groups;
    // The last one is still open.
    while (pending.size() > static_cast<std::size_t>(groups) + 1) {
        for (const Copy& copy : pending.front()) land(copy);
        pending.erase(pending.begin());
    }
}

}  // namespace fastar::twin
