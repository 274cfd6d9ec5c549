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

struct Job {
    const std::function<void(std::size_t, std::size_t)>* body = nullptr;
    std::size_t count = 0;
    std::size_t pieces = 0;
};

// A job whose pieces several threads take by turns.
struct Shared {
    const std::function<void(std::size_t, std::size_t)>* body;
    std::size_t count;
    std::size_t pieces;
    std::atomic<std::size_t> next{0};

    void take() {
        for (std::size_t i = next.fetch_add(1); i < pieces; i = next.fetch_add(1)) {
            (*body)(count* i / pieces, count * (i + 1) / pieces);
        }
    }
};

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
        for (std::size_t i = next_.fetch_add(1); i < job.pieces; i = next_.fetch_add(1)) {
            (*job.body)(job.count* i / job.pieces, job.count * (i + 1) / job.pieces);
        }
    }

    void serve() {
        std::unique_lock lock(mutex_);
        while (true) {
            wake_.wait(lock, [this] { return stopping_ || (open_ && next_.load() < job_.pieces); });
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
    // Four pieces a worker: one that starts late, or shares its core with a spinning thread of another pool, takes
    // fewer.
    const std::size_t pieces = std::min(most, workers * 4);
    // Torch's threads first: they spin for milliseconds after each of torch's own loops, and a pool beside them would
    // get half of every core meanwhile. The team is always the whole one, which the runtime keeps from call to call.
    Shared shared{&body, count, pieces};
    const auto take = [](void* data) { static_cast<Shared*>(data)->take(); };
    if (run_on_openmp(take, &shared, threads)) return;
    pool().run({&body, count, pieces}, static_cast<int>(workers) - 1);
}

}  // namespace fastar
