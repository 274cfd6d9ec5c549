// y_h = softmax_j(scale q_h . K[j, h]) V[j, h] over the cached slots: a warp for each head of each row.
#pragma once

#include <cstdint>

#include "common/seen.h"
#include "cuda/context.cuh"

namespace fastar::cuda {

FASTAR_DEVICE void run_attention(const Context& x, const Command& c) {
    const Crew crew = x.crew(c);
    const Seen<std::int32_t> positions = seen(static_cast<std::int32_t>(x.index(c.index)), c.window, c.local);
    const int count = positions.count;
    const int key_width = c.source.width / c.heads;
    const int value_width = c.out.width / c.heads;
    const Crew block = x.block_crew();
    float* scores = x.layout.scores < 0
                        ? x.run.scores + static_cast<std::int64_t>(block_index()) * block.warps * x.run.where.most_slots
                        : reinterpret_cast<float*>(shared_memory() + x.layout.scores);
    scores += static_cast<std::int64_t>(block.warp) * x.run.where.most_slots;
    const int group = crew.lane / 4;
    const int quarter = crew.lane % 4;
    for (int item = crew.warp; item < x.rows * c.heads; item += crew.warps) {
        const int r = item / c.heads;
        const int head = item % c.heads;
        const int kv = head / (c.heads / c.kv_heads);
        const float* query = x.row(c.source, r) + head * key_width;
        const float* keys = x.row(c.keys, r) + kv * key_width;
        const float* values = x.row(c.values, r) + kv * value_width;
        float* out = x.row(c.out, r) + head * value_width;
        // Eight slots at a time, four lanes to each: neighbouring lanes read neighbouring numbers, and two exchanges
        // make a score.
        float top = -INFINITY;
        for (int first = 0; first < count; first += 8) {
            const int j = first + group;
            float sum = 0.0f;
            if (j < count) {
                const float* key = keys + static_cast<std::int64_t>(positions.at(j) % c.slots) * c.keys.width;
                for (int k = quarter; k < key_width; k += 4) sum += query[k] * key[k];
            }
            sum += shuffle_xor(sum, 1);
            sum += shuffle_xor(sum, 2);
            sum *= c.scale;
            if (j < count) {
                if (quarter == 0) scores[j] = sum;
                top = sum > top || sum != sum ? sum : top;
            }
        }
        top = warp_max(top);
        warp_barrier();
        float total = 0.0f;
        for (int j = crew.lane; j < count; j += kLanes) {
            const float e = expf(scores[j] - top);
            scores[j] = e;
            total += e;
        }
        total = warp_sum(total);
        warp_barrier();
        for (int o = crew.lane; o < value_width; o += kLanes) {
            float sum = 0.0f;
            for (int j = 0; j < count; ++j) {
                sum += scores[j] * values[static_cast<std::int64_t>(positions.at(j) % c.slots) * c.values.width + o];
            }
            x.put(c, c.out, out + o, sum / total);
        }
        // The next head's scores take the place of these.
        warp_barrier();
    }
}

}  // namespace fastar::cuda
