#include "common/workers.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "common/openmp.h"

namespace fastar {
namespace {

// A range in pieces, [edges[i], edges[i + 1]).
struct Job {
    const std::function<void(std::size_t, std::size_t)>* body = nullptr;
    const std::vector<std::size_t>* edges = nullptr;

    std::size_t pieces() const { return edges->size() - 1; }
    void run(std::size_t i) const { (*body)((*edges)[i], (*edges)[i + 1]); }
};

// A job whose pieces several threads take by turns.
struct Shared {
    Job job;
    std::atomic<std::size_t> next{0};

    void take() {
        for (std::size_t i = next.fetch_add(1); i < job.pieces(); i = next.fetch_add(1)) job.run(i);
    }
};

// Pieces of a worker's half of what is left, down to a 32nd of its share: a thread that starts late, or has to share
// its core, takes fewer, and in the end nobody waits long for the other's last one.
std::vector<std::size_t> edges_of(std::size_t count, std::size_t grain, std::size_t workers) {
    const std::size_t least = std::max(grain, count / (32 * workers));
    std::vector<std::size_t> edges{0};
    while (edges.back() < count) {
        const std::size_t left = count - edges.back();
        const std::size_t size = std::max(least, left / (2 * workers));
        // What would be less than the least goes with the last piece.
        edges.push_back(left < size + least ? count : edges.back() + size);
    }
    return edges;
}

class Pool {
  public:
    ~Pool() {
        {
            std::lock_guard lock(mutex_);
            stopping_ = true;
        }
        wake_.notify_all();
        for (auto& thread : threads_) thread.join();
    }

    void run(const Job& job, int helpers) {
        std::lock_guard one_at_a_time(run_mutex_);
        {
            std::lock_guard lock(mutex_);
            while (threads_.size() < static_cast<std::size_t>(helpers)) threads_.emplace_back([this] { serve(); });
            job_ = job;
            next_ = 0;
            open_ = true;
        }
        wake_.notify_all();
        take_pieces(job);
        std::unique_lock lock(mutex_);
        // Whoever wakes from here on finds nothing left; those inside still hold a piece.
        open_ = false;
        done_.wait(lock, [this] { return inside_ == 0; });
    }

  private:
    void take_pieces(const Job& job) {
        for (std::size_t i = next_.fetch_add(1); i < job.pieces(); i = next_.fetch_add(1)) job.run(i);
    }

    void serve() {
        std::unique_lock lock(mutex_);
        while (true) {
            wake_.wait(lock, [this] { return stopping_ || (open_ && next_.load() < job_.pieces()); });
            if (stopping_) return;
            const Job job = job_;
            ++inside_;
            lock.unlock();
            take_pieces(job);
            lock.lock();
            if (--inside_ == 0) done_.notify_all();
        }
    }

    std::mutex run_mutex_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::condition_variable done_;
    std::vector<std::thread> threads_;
    Job job_;
    std::atomic<std::size_t> next_{0};
    int inside_ = 0;
    bool open_ = false;
    bool stopping_ = false;
};

// A fork leaves the child without the pool's threads and perhaps with its locks held; the child gets a pool of its own,
// and the parent's is never destroyed there. The last process to exit cleans up through the operating system.
Pool& pool() {
    static std::mutex guard;
    static Pool* current = nullptr;
    static pid_t owner = 0;
    const std::lock_guard lock(guard);
    if (current == nullptr || owner != getpid()) {
        owner = getpid();
        current = std::make_unique<Pool>().release();
    }
    return *current;
}

}  // namespace

void parallel_for(std::size_t count, std::size_t grain, int threads,
                  const std::function<void(std::size_t, std::size_t)>& body) {
    if (count == 0) return;
    const std::size_t most = std::max<std::size_t>(1, count / std::max<std::size_t>(1, grain));
    const std::size_t workers = std::min<std::size_t>(most, static_cast<std::size_t>(std::max(1, threads)));
    if (workers == 1) {
        body(0, count);
        return;
    }
    const std::vector<std::size_t> edges = edges_of(count, std::max<std::size_t>(1, grain), workers);
    const Job job{&body, &edges};
    // Torch's threads first: they spin for milliseconds after each of torch's own loops, and a pool beside them would
    // get half of every core meanwhile. The team is always the whole one, which the runtime keeps from call to call.
    Shared shared{job};
    const auto take = [](void* data) { static_cast<Shared*>(data)->take(); };
    if (run_on_openmp(take, &shared, threads)) return;
    pool().run(job, static_cast<int>(workers) - 1);
}

}  // namespace fastar
