// The loop over a program: control flow by every thread alike, and between it blocks of commands.
#pragma once

#include <cstdint>

#include "cuda/attention.cuh"
#include "cuda/draw.cuh"
#include "cuda/flags.cuh"
#include "cuda/matrix.cuh"
#include "cuda/pointwise.cuh"
#include "cuda/team.cuh"

namespace fastar::cuda {

FASTAR_DEVICE void run_command(const Context& x, const Command& c) {
    switch (c.op) {
        case Op::kMatrix:
            return run_matrix(x, c);
        case Op::kGather:
            return run_gather(x, c);
        case Op::kAccumulate:
            return run_accumulate(x, c);
        case Op::kGate:
            return run_gate(x, c);
        case Op::kElementwise:
            return run_elementwise(x, c);
        case Op::kNorm:
            return run_norm(x, c);
        case Op::kAttention:
            return run_attention(x, c);
        case Op::kCell:
            return run_cell(x, c);
        case Op::kDraw:
            return run_draw(x, c);
        case Op::kStore:
            return run_store(x, c);
        case Op::kEmit:
            return run_emit(x, c);
    }
}

// Where every thread stands; all move alike.
struct Cursor {
    std::int32_t entry;
    std::int32_t done;
    std::int32_t variables[kMaxVariables];
};

class Interpreter {
  public:
    FASTAR_DEVICE Interpreter(const Run& run, const SharedLayout& layout)
        : run_(run), layout_(layout), team_(team_of(run)) {}

    FASTAR_DEVICE void operator()() {
        begin();
        fetch_residents();
        barrier();
        while (cursor_.done < run_.target) {
            const Entry& entry = entries()[cursor_.entry];
            if (entry.control == Control::kBlock) {
                if (!run_block(entry)) break;
            } else {
                steer(entry);
            }
            ++cursor_.entry;
        }
        copy_wait<0>();
        team_.meet();
        if (run_.where.part_count > 0) gather_parts();
        finish();
    }

  private:
    FASTAR_DEVICE static Team team_of(const Run& run) {
        const int size = run.blocks_per_team;
        const auto block = static_cast<int>(block_index());
        Progress& progress = run.progress[block / size];
        const bool grid = run.schedule == Schedule::kGrid;
        return {run.schedule,
                block / size,
                block % size,
                size,
                grid ? &progress.earliest_failure : Team::own_word(),
                &progress.arrivals[run.turn]};
    }

    FASTAR_DEVICE const Entry* entries() const {
        return reinterpret_cast<const Entry*>(run_.stretch + run_.where.entries);
    }
    FASTAR_DEVICE Spaces* spaces() const { return reinterpret_cast<Spaces*>(shared_memory() + layout_.spaces); }
    FASTAR_DEVICE double* sums() const { return reinterpret_cast<double*>(shared_memory() + layout_.sums); }
    FASTAR_DEVICE float* fast() const { return reinterpret_cast<float*>(shared_memory() + layout_.fast); }

    FASTAR_DEVICE void begin() {
        first_row_ = static_cast<std::int64_t>(team_.number) * run_.rows_per_team;
        const std::int64_t left = run_.rows - first_row_;
        rows_ = static_cast<int>(left < run_.rows_per_team ? left : run_.rows_per_team);
        const Progress& progress = run_.progress[team_.number];
        cursor_.entry = progress.entry;
        cursor_.done = progress.done;
        report_at_ = progress.done;
        for (int i = 0; i < kMaxVariables; ++i) cursor_.variables[i] = progress.variables[i];
        const auto thread = static_cast<int>(thread_index());
        const auto threads = static_cast<int>(thread_count());
        if (thread == 0) *Team::own_word() = kNoFailure;
        for (int i = thread; i < run_.where.edges; i += threads) {
            if (run_.schedule == Schedule::kGrid) {
                begin_flag(run_, layout_, team_.number, i);
            } else {
                edge_begin(reinterpret_cast<Edge*>(shared_memory() + layout_.edges) + i);
            }
        }
        edges_begun();
        for (int s = thread; s < kSpaces; s += threads) {
            float* base = fast();
            std::int64_t stride = run_.fast_stride;
            if (s >= kSlowSpace) {
                stride = run_.arena_stride;
                base = exchanged(run_.arena) + first_row_ * stride + run_.fast;
            }
            if (s >= kFirstInputSpace) {
                const int input = s - kFirstInputSpace;
                stride = run_.input_strides[input];
                base = const_cast<float*>(run_.inputs[input]) + first_row_ * stride;
            }
            spaces()->base[s] = base;
            spaces()->stride[s] = stride;
        }
        for (int i = thread; i < run_.where.next_row_bytes / kRowHeader; i += threads) {
            *reinterpret_cast<std::int32_t*>(shared_memory() + layout_.next_rows + i * kRowHeader) = -1;
        }
        for (int r = thread; r < rows_; r += threads) {
            sums()[2 * r] = run_.log_prob[first_row_ + r];
            sums()[2 * r + 1] = run_.log_weight[first_row_ + r];
        }
        for (int i = thread; i < rows_ * run_.fast; i += threads) {
            fast()[i / run_.fast * run_.fast_stride + i % run_.fast] = saved(i / run_.fast)[i % run_.fast];
        }
    }

    // The tiles that this block keeps in shared memory.
    FASTAR_DEVICE void fetch_residents() {
        const Resident* all = reinterpret_cast<const Resident*>(run_.stretch + run_.where.residents);
        for (int i = 0; i < run_.where.resident_count; ++i) {
            const Resident& m = all[i];
            const int own = (m.tiles + m.apart - 1) / m.apart;
            const int pieces = m.tile_bytes / 16;
            std::byte* to = shared_memory() + layout_.resident + m.to;
            for (int slot = 0; slot < own * m.banks; ++slot) {
                const int tile = slot % own * m.apart + (team_.rank + m.apart - m.first_block) % m.apart;
                if (tile >= m.tiles) continue;
                const std::int64_t number = static_cast<std::int64_t>(slot / own) * m.tiles + tile;
                const std::byte* from = run_.stretch + m.from + number * m.tile_bytes;
                for (int p = static_cast<int>(thread_index()); p < pieces; p += static_cast<int>(thread_count())) {
                    copy_async(to + static_cast<std::int64_t>(slot) * m.tile_bytes + 16 * p, from + 16 * p);
                }
            }
        }
        copy_commit();
        copy_wait<0>();
    }

    FASTAR_DEVICE float* saved(int r) const { return exchanged(run_.arena) + (first_row_ + r) * run_.arena_stride; }

    // Into the first block's copy what each block holds for itself.
    FASTAR_DEVICE void gather_parts() {
        const Part* all = reinterpret_cast<const Part*>(run_.stretch + run_.where.parts);
        for (int i = 0; i < run_.where.part_count; ++i) {
            const Part& part = all[i];
            for (int k = static_cast<int>(thread_index()); k < rows_ * part.width;
                 k += static_cast<int>(thread_count())) {
                const int o = k % part.width;
                if (o / part.tile_outputs % team_.size != team_.rank) continue;
                float* own = fast() + k / part.width * run_.fast_stride + part.base + o;
                put_in_block(own, 0, *own);
            }
        }
        team_.meet();
    }

    // What the next launch goes on from.
    FASTAR_DEVICE void finish() {
        const auto thread = static_cast<int>(thread_index());
        const auto threads = static_cast<int>(thread_count());
        for (int r = thread; r < rows_; r += threads) {
            if (r % team_.size != team_.rank) continue;
            run_.log_prob[first_row_ + r] = sums()[2 * r];
            run_.log_weight[first_row_ + r] = sums()[2 * r + 1];
        }
        if (team_.rank != 0) return;
        for (int i = thread; i < rows_ * run_.fast; i += threads) {
            saved(i / run_.fast)[i % run_.fast] = fast()[i / run_.fast * run_.fast_stride + i % run_.fast];
        }
        if (thread != 0) return;
        Progress& progress = run_.progress[team_.number];
        progress.arrivals[1 - run_.turn] = 0;
        progress.entry = cursor_.entry;
        progress.done = cursor_.done;
        for (int i = 0; i < kMaxVariables; ++i) progress.variables[i] = cursor_.variables[i];
        const unsigned long long word = *team_.failure;
        if ((word & 15) == static_cast<unsigned long long>(FailureKind::kCancelled)) {
            *team_.failure = kNoFailure;
        } else if (word == kNoFailure) {
            tell_host(run_.reached + team_.number, kAllReached);
        } else {
            progress.failure = static_cast<FailureKind>(word & 15);
            progress.failed_row = static_cast<std::int32_t>(first_row_) + static_cast<std::int32_t>(word >> 4 & 15);
            progress.failed_place = static_cast<std::int32_t>(word >> 8 & 0xffffff);
            progress.failed_position = static_cast<std::int32_t>(word >> 32);
        }
    }

    // Whether every row has ended, asked after a meeting: a row that ends from then on ends beyond what is complete, so
    // all threads get the same answer.
    FASTAR_DEVICE bool ended() const {
        const std::int64_t* lengths = exchanged(run_.lengths) + first_row_;
        for (int r = 0; r < rows_; ++r) {
            if (lengths[r] > cursor_.done) return false;
        }
        return true;
    }

    FASTAR_DEVICE void steer(const Entry& entry) {
        std::int32_t* variables = cursor_.variables;
        if (entry.control == Control::kLoop) {
            variables[entry.variable] = 0;
        } else if (entry.control == Control::kWhen) {
            const std::int32_t i = entry.index.at(variables);
            if (i < entry.start || i >= entry.stop || (i - entry.start) % entry.step != 0) cursor_.entry = entry.jump;
        } else {
            const Entry& opened = entries()[entry.jump];
            if (opened.control != Control::kLoop) return;
            const std::int32_t count = opened.count < 0 ? run_.length : opened.count;
            if (++variables[opened.variable] < count) cursor_.entry = entry.jump;
        }
    }

    // After a meeting, so all that came before is complete. A cancelled run ends at the meeting where every thread sees
    // that its position has failed.
    FASTAR_DEVICE void report(const Context& x) {
        report_at_ = cursor_.done + run_.report_every;
        if (thread_index() != 0 || team_.rank != 0) return;
        tell_host(run_.reached + team_.number, cursor_.done);
        if (ask_host(run_.cancel) != 0) x.fail(FailureKind::kCancelled, kLastPlace, 0);
    }

    // Asks for what earlier positions left in global memory, while other blocks may still draw this one's value.
    FASTAR_DEVICE void fetch(const Entry& entry, const std::int32_t* found) {
        // The addresses; and this block has read what was fetched before.
        barrier();
        constexpr int kPiece = 4;
        const Fetch* all = reinterpret_cast<const Fetch*>(run_.stretch + run_.where.fetches) + entry.fetch;
        const auto thread = static_cast<int>(thread_index());
        const int warps = static_cast<int>(thread_count()) / kLanes;
        const Spaces& from = *spaces();
        for (int i = thread / kLanes; i < entry.fetches; i += warps) {
            const int address = found[all[i].address];
            const int pieces = all[i].width / kPiece;
            for (int k = thread % kLanes; k < rows_ * pieces && address >= 0; k += kLanes) {
                const int at = k % pieces * kPiece;
                copy_async(fast() + k / pieces * run_.fast_stride + all[i].to + at,
                           from.base[kSlowSpace] + k / pieces * from.stride[kSlowSpace] + address + at);
            }
        }
        copy_commit();
    }

    // Of tables, for the next pass through this block of commands.
    FASTAR_DEVICE void fetch_rows(const Entry& entry, const std::int32_t* found) {
        const NextRow* all = reinterpret_cast<const NextRow*>(run_.stretch + run_.where.next_rows) + entry.next_row;
        const auto thread = static_cast<int>(thread_index());
        const auto threads = static_cast<int>(thread_count());
        for (int i = 0; i < entry.next_rows; ++i) {
            const int number = found[all[i].address] + all[i].step;
            const bool there = number >= 0 && number < all[i].rows;
            std::byte* to = shared_memory() + layout_.next_rows + all[i].to;
            if (thread == 0) *reinterpret_cast<std::int32_t*>(to) = there ? number : -1;
            const std::byte* from = run_.stretch + all[i].table + static_cast<std::int64_t>(number) * all[i].bytes;
            for (int at = 16 * thread; there && at < all[i].bytes; at += 16 * threads) {
                copy_async(to + kRowHeader + at, from + at);
            }
        }
        copy_commit();
    }

    // Before a command begins. False where some never came.
    FASTAR_DEVICE bool await_others(const Context& x, const Command& c, const Command& next) {
        if (run_.schedule == Schedule::kGrid && c.waits != 0 && x.has_share(c)) {
            fetch_ahead(x, c.op == Op::kMatrix ? c : next);
            return await_flags(x, c.waits);
        }
        for (std::uint64_t left = run_.schedule == Schedule::kCluster ? c.waits : 0; left != 0; left &= left - 1) {
            const int edge = lowest_bit(left);
            edge_wait(x.edge(edge), x.times(edge));
        }
        if (c.meeting == Meeting::kBlock) barrier();
        if (c.meeting != Meeting::kTeam) return true;
        if (team_.size > 1) fetch_ahead(x, c);
        return team_.meet();
    }

    // False where every row has ended, or a draw before this block has failed.
    FASTAR_DEVICE bool run_block(const Entry& entry) {
        std::int32_t* found = reinterpret_cast<std::int32_t*>(shared_memory() + layout_.addresses);
        if (turn_) found += run_.where.most_addresses;
        turn_ = !turn_;
        const Address* addresses =
            reinterpret_cast<const Address*>(run_.stretch + run_.where.addresses) + entry.address;
        for (int i = static_cast<int>(thread_index()); i < entry.addresses; i += static_cast<int>(thread_count())) {
            found[i] = addresses[i].find(cursor_.variables);
        }
        if (run_.where.stages > 0) {
            if (cursor_.entry != guess_) restart_ring(run_, layout_, team_, entry.streamed);
            guess_ = entry.follower;
        }
        if (entry.fetches > 0) fetch(entry, found);
        if (entry.next_rows > 0) copy_wait<0>();
        // The last block's results and this one's addresses.
        if (!team_.meet()) return false;
        if (entry.fetches > 0) {
            copy_wait<0>();
            barrier();
        }
        if (static_cast<std::int64_t>(*team_.failure >> 32) < cursor_.done || ended()) return false;
        const Context x{run_, layout_, team_, spaces(), found, edges_, rows_, first_row_, cursor_.done};
        if (cursor_.done >= report_at_) report(x);
        const Command* commands = reinterpret_cast<const Command*>(run_.stretch + run_.where.commands) + entry.command;
        for (int i = 0; i < entry.commands; ++i) {
            const Command& c = commands[i];
            if (!await_others(x, c, commands[i + 1 < entry.commands ? i + 1 : i])) return false;
            if (c.fetches_rows) fetch_rows(entry, found);
            const bool cluster = run_.schedule == Schedule::kCluster;
            if (cluster && c.edge >= 0 && thread_index() == 0) {
                edge_expect(x.edge(c.edge), 4u * rows_ * c.outputs);
            }
            run_command(x, c);
            if (!cluster && c.edge >= 0) arrive(x, c);
        }
        edges_ += entry.edges;
        cursor_.done += entry.completes;
        return true;
    }

    const Run& run_;
    const SharedLayout& layout_;
    Team team_;
    Cursor cursor_;
    std::int32_t report_at_;
    std::int64_t first_row_;
    int rows_;
    unsigned edges_ = 0;
    bool turn_ = false;
    std::int32_t guess_ = -1;  // the block of commands that the rings are filled for
};

}  // namespace fastar::cuda
