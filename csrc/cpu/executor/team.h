// The executor's own threads: they spin while a run is under way and sleep between runs.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace fastar::cpu {

// Tells the core that this is a waiting loop; gives the core away after a while, since whoever is waited for may need
// it: on a machine with more threads than cores, spinning on would hold up the very thread that is waited for.
class Spin {
  public:
    void operator()() {
        if (++turns_ < kTurnsBeforeYield) {
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        } else {
            std::this_thread::yield();
        }
    }

    int turns() const { return turns_; }

  private:
    static constexpr int kTurnsBeforeYield = 4000;
    int turns_ = 0;
};

class Team {
  public:
    explicit Team(int threads);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return static_cast<int>(workers_.size()) + 1; }

    // Calls body(i) for i in [0, size()), each on its own thread, 0 on the caller's, and returns when all are done.
    // body must not throw.
    void run(const std::function<void(int)>& body);

    // Nanoseconds until another thread of the team sees what one has written, as a mean over a fraction of a
    // millisecond; for teams of two or more. It is no constant: two virtual cores may be moved apart, and where others
    // use them it can be milliseconds.
    double ns_to_hear();

  private:
    void serve(int number);
    void keep_apart();

    std::vector<std::thread> workers_;
    int caller_core_ = -1;  // which the workers keep off
    const std::function<void(int)>* body_ = nullptr;
    alignas(64) std::atomic<std::uint64_t> started_{0};
    alignas(64) std::atomic<int> busy_{0};
    std::atomic<bool> stopping_{false};
    std::mutex mutex_;
    std::condition_variable wake_;
};

// Teams that outlive the runs that borrow them: starting threads takes longer than many a run.
class TeamPool {
  public:
    explicit TeamPool(int threads) : threads_(threads) {}
    ~TeamPool();

    // A team that nobody else uses until it is given back.
    std::unique_ptr<Team> take();
    void give_back(std::unique_ptr<Team> team);

    double ns_to_hear();

  private:
    int threads_;
    std::mutex mutex_;
    std::vector<std::unique_ptr<Team>> idle_;
    pid_t owner_ = 0;
};

}  // namespace fastar::cpu
