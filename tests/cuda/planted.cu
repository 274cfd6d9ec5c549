// Kernels that are right, and the same with one mistake each, to see that the twin finds it.
#include "cuda/flags.cuh"
#include "twin/launch.h"

namespace fastar::cuda {
namespace {

// out[i] = in[i] reversed within the block, through shared memory.
template <bool kBarrier>
FASTAR_KERNEL(64)
reverse(const float* in, float* out) {
    float* shared = reinterpret_cast<float*>(shared_memory());
    const unsigned i = thread_index();
    shared[i] = in[block_index() * 64 + i];
    if (kBarrier) barrier();
    out[block_index() * 64 + i] = shared[63 - i];
}

// Twice the input, copied asynchronously in two groups.
template <int kPending>
FASTAR_KERNEL(32)
copy(const float* in, float* out) {
    float* shared = reinterpret_cast<float*>(shared_memory());
    const unsigned i = thread_index();
    for (int half = 0; half < 2; ++half) {
        copy_async(shared + 128 * half + 4 * i, in + 128 * half + 4 * i);
        copy_commit();
    }
    copy_wait<1>();
    for (int k = 0; k < 4; ++k) out[4 * i + k] = 2 * shared[4 * i + k];
    copy_wait<kPending>();
    for (int k = 0; k < 4; ++k) out[128 + 4 * i + k] = 2 * shared[128 + 4 * i + k];
}

// Twice the input through a ring of two stages, each lane's own, refilled as they are read.
template <int kPending>
FASTAR_KERNEL(32)
ring(const float* in, float* out) {
    constexpr int kTurns = 4;
    float* own = reinterpret_cast<float*>(shared_memory()) + 4 * thread_index();
    const unsigned i = 2 * thread_index();
    for (int turn = -2; turn < kTurns; ++turn) {
        if (turn >= 0) {
            copy_wait<kPending>();
            for (int k = 0; k < 2; ++k) out[64 * turn + i + k] = 2 * own[turn % 2 * 2 + k];
        }
        if (turn + 2 < kTurns) copy_async<8>(own + (turn + 2) % 2 * 2, in + 64 * (turn + 2) + i);
        copy_commit();
    }
}

// A sum over the blocks of a cluster, gathered in the first.
template <bool kWait>
FASTAR_KERNEL(32)
gather(const float* in, float* out) {
    float* shared = reinterpret_cast<float*>(shared_memory());
    const unsigned i = thread_index();
    in_block(shared, 0)[cluster_rank() * 32 + i] = in[block_index() * 32 + i];
    cluster_arrive();
    if (kWait) cluster_wait();
    if (cluster_rank() != 0) return;
    float sum = 0;
    for (unsigned b = 0; b < cluster_size(); ++b) sum += shared[b * 32 + i];
    out[block_index() / cluster_size() * 32 + i] = sum;
}

// Four rounds in which every block of a cluster sends eight numbers to all, and goes on with a sum of what came. Of two
// places, each is written again only after all have sent what they made of it.
template <bool kWait>
FASTAR_KERNEL(32)
pass_round(const float* in, float* out) {
    float* shared = reinterpret_cast<float*>(shared_memory());
    Edge* edges = reinterpret_cast<Edge*>(shared_memory() + 256);
    const int i = static_cast<int>(thread_index());
    if (i < 2) edge_begin(edges + i);
    edges_begun();
    cluster_arrive();
    cluster_wait();
    float mine = in[block_index() * 32 + i];
    for (unsigned round = 0; round < 4; ++round) {
        float* place = shared + round % 2 * 32;
        Edge* edge = edges + round % 2;
        if (i == 0) edge_expect(edge, 128);
        if (i < 8) {
            for (unsigned b = 0; b < 4; ++b) send(place + cluster_rank() * 8 + i, b, mine, edge);
        }
        if (kWait) edge_wait(edge, round / 2);
        mine = 0.5f * (place[i] + place[(i + 9) % 32]);
        warp_barrier();
    }
    out[block_index() * 32 + i] = mine;
    cluster_arrive();
    cluster_wait();
}

// Block 0 waits for what the others add to a flag.
FASTAR_KERNEL(32) wait_for(unsigned* flag, unsigned target) {
    if (block_index() != 0 && thread_index() == 0) add_release(flag, 1);
    if (block_index() == 0) await(flag, target);
}

// Block 1 hands what it read to block 0 through global memory and a flag.
template <twin::Order kRelease, twin::Order kAcquire>
FASTAR_KERNEL(32)
hand_over(const float* in, float* out, unsigned* flag) {
    const unsigned i = thread_index();
    float* box = exchanged(out) + 32;
    if (block_index() == 1) {
        box[i] = in[i];
        warp_barrier();
        if (i == 0) twin::add(flag, 1, kRelease);
    } else {
        twin::await(flag, 1, kAcquire);
        exchanged(out)[i] = box[i];
    }
}

// Along edges of a grid, three of four blocks write 96 numbers in each of three rounds, from those of the round before;
// then all have met.
enum class Mistake { kNone, kEarlyArrival, kNoWait, kNoArrival };
template <Mistake kMistake>
FASTAR_KERNEL(64)
relay(const float* in, float* out, unsigned* flags) {
    unsigned long long failure = kNoFailure;
    Run run{};
    run.flags = flags + kFlagStride;
    run.where.edges = kMaxEdges;
    const SharedLayout layout(run.where, 1, 64, 0);
    const auto rank = static_cast<int>(block_index());
    Team team{Schedule::kGrid, 0, rank, 4, &failure, flags};
    const Context x{run, layout, team, nullptr, nullptr, 0, 1, 0, 0};
    const auto i = static_cast<int>(thread_index());
    if (i == 0) *Team::own_word() = kNoFailure;
    begin_flag(run, layout, 0, i);
    barrier();
    team.meet();
    Command c;
    c.shared_out = true;
    c.items = 3;
    c.arrives = true;
    for (c.edge = 0; c.edge < 3; ++c.edge) {
        const float* from = c.edge == 0 ? in : exchanged(out) + 96 * (c.edge - 1);
        const bool waits = c.edge > 0 && x.has_share(c) && kMistake != Mistake::kNoWait;
        if (waits && !await_flags(x, std::uint64_t{1} << (c.edge - 1))) return;
        if (kMistake == Mistake::kEarlyArrival) arrive(x, c);
        const int k = 32 * rank + i - 32;
        if (i >= 32 && x.has_share(c)) exchanged(out)[96 * c.edge + k] = 0.5f * (from[k] + from[(k + 41) % 96]);
        if (kMistake != Mistake::kEarlyArrival && (kMistake != Mistake::kNoArrival || rank != 1)) arrive(x, c);
    }
    team.meet();
}

FASTAR_KERNEL(64) half_at_a_barrier() {
    if (thread_index() < 32) barrier();
}

// Both factors from their plain forms, the product back to one.
FASTAR_KERNEL(32) multiply(const float* a, const float* b, float* d, bool half) {
    const int row = static_cast<int>(thread_index()) / 4;
    const int pair = static_cast<int>(thread_index()) % 4 * 2;
    std::uint32_t left[4];
    std::uint32_t right[2];
    const auto pack = [&](float low, float high) { return half ? pack_float16(low, high) : pack_bfloat16(low, high); };
    for (int w = 0; w < 4; ++w) {
        const float* from = a + (row + w % 2 * 8) * 16 + pair + w / 2 * 8;
        left[w] = pack(from[0], from[1]);
    }
    for (int w = 0; w < 2; ++w) right[w] = pack(b[(pair + 8 * w) * 8 + row], b[(pair + 8 * w + 1) * 8 + row]);
    float sums[4] = {};
    if (half) {
        multiply_float16(sums, left, right);
    } else {
        multiply_bfloat16(sums, left, right);
    }
    for (int i = 0; i < 4; ++i) d[(row + i / 2 * 8) * 8 + pair + i % 2] = sums[i];
}

}  // namespace
}  // namespace fastar::cuda

#pragma GCC visibility push(default)
extern "C" const char* run(const char* name, std::uint64_t seed, float* in, float* out, unsigned* flag) {
    using namespace fastar;
    twin::configure(seed, 0);
    return cuda::guarded([&] {
        const std::string which = name;
        if (which == "reverse") cuda::launch({4, 64, 256}, nullptr, cuda::reverse<true>, in, out);
        if (which == "reverse without barrier") cuda::launch({4, 64, 256}, nullptr, cuda::reverse<false>, in, out);
        if (which == "copy") cuda::launch({1, 32, 1024}, nullptr, cuda::copy<0>, in, out);
        if (which == "copy read early") cuda::launch({1, 32, 1024}, nullptr, cuda::copy<1>, in, out);
        if (which == "ring") cuda::launch({1, 32, 512}, nullptr, cuda::ring<1>, in, out);
        if (which == "ring read early") cuda::launch({1, 32, 512}, nullptr, cuda::ring<2>, in, out);
        if (which == "gather") cuda::launch({8, 32, 512, 4}, nullptr, cuda::gather<true>, in, out);
        if (which == "gather without wait") cuda::launch({8, 32, 512, 4}, nullptr, cuda::gather<false>, in, out);
        if (which == "pass round") cuda::launch({8, 32, 512, 4}, nullptr, cuda::pass_round<true>, in, out);
        if (which == "pass round without wait")
            cuda::launch({8, 32, 512, 4}, nullptr, cuda::pass_round<false>, in, out);
        if (which == "flag") cuda::launch({4, 32, 0, 1, true}, nullptr, cuda::wait_for, flag, 3u);
        if (which == "flag never raised") cuda::launch({4, 32, 0, 1, true}, nullptr, cuda::wait_for, flag, 4u);
        constexpr auto kOrdered = twin::Order::kReleaseOrAcquire;
        constexpr auto kRelaxed = twin::Order::kRelaxed;
        const cuda::Exchanged exchanged[] = {{out, 64 * sizeof *out}};
        const cuda::Grid two{.blocks = 2, .threads = 32, .together = true, .exchanged = exchanged};
        if (which == "hand over") cuda::launch(two, nullptr, cuda::hand_over<kOrdered, kOrdered>, in, out, flag);
        if (which == "no release") cuda::launch(two, nullptr, cuda::hand_over<kRelaxed, kOrdered>, in, out, flag);
        if (which == "no acquire") cuda::launch(two, nullptr, cuda::hand_over<kOrdered, kRelaxed>, in, out, flag);
        const cuda::Exchanged boxes[] = {{out, 288 * sizeof *out}};
        const cuda::Grid four{.blocks = 4, .threads = 64, .shared = 4096, .together = true, .exchanged = boxes};
        const auto relay = [&](const char* kind, auto kernel) {
            if (which == kind) cuda::launch(four, nullptr, kernel, in, out, flag);
        };
        relay("relay", cuda::relay<cuda::Mistake::kNone>);
        relay("relay with early arrivals", cuda::relay<cuda::Mistake::kEarlyArrival>);
        relay("relay without waits", cuda::relay<cuda::Mistake::kNoWait>);
        relay("relay without an arrival", cuda::relay<cuda::Mistake::kNoArrival>);
        if (which == "half at a barrier") cuda::launch({1, 64}, nullptr, cuda::half_at_a_barrier);
        if (which == "bfloat16") cuda::launch({1, 32}, nullptr, cuda::multiply, in, in + 256, out, false);
        if (which == "float16") cuda::launch({1, 32}, nullptr, cuda::multiply, in, in + 256, out, true);
    });
}
#pragma GCC visibility pop
