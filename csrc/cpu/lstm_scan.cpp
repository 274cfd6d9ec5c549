#include "cpu/lstm_scan.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <vector>

#include "common/workers.h"
#include "cpu/conv.h"
#include "cpu/dispatch.h"

namespace fastar::cpu {
namespace {

// Pixels whose state one product takes: enough that the weight, read once for all of them from the second level, costs
// little, and few enough that their gates stay there as well.
constexpr std::int64_t kPixelsTogether = 2 * kPositions;

// The lanes that have a pixel at a step, and where those lie: lane n's at first_pixel + (n - first) * stride.
struct Step {
    std::int64_t first;
    std::int64_t count;
    std::int64_t first_pixel;
    std::int64_t stride;
};

class Path {
  public:
    explicit Path(const LstmScan& s) : s_(s) {}

    bool along_rows() const { return s_.along == ScanAlong::kRows; }
    std::int64_t lanes() const { return along_rows() ? s_.columns : s_.rows; }
    std::int64_t steps() const { return along_rows() ? s_.rows : s_.rows + s_.columns - 1; }

    Step at(std::int64_t step) const {
        if (along_rows()) return {0, s_.columns, step * s_.columns, 1};
        const std::int64_t first = std::max<std::int64_t>(0, step - s_.columns + 1);
        const std::int64_t count = std::min(s_.rows, step + 1) - first;
        const bool mirrored = s_.along == ScanAlong::kAntidiagonals;
        const std::int64_t column = mirrored ? s_.columns - 1 - (step - first) : step - first;
        return {first, count, first * s_.columns + column, s_.columns + (mirrored ? 1 : -1)};
    }

    // From a pixel to its lane's pixel of the step before.
    std::int64_t to_previous() const { return along_rows() ? -s_.columns : s_.along == ScanAlong::kDiagonals ? -1 : 1; }

    // How many of a step's lanes had a pixel in the step before; the others begin with it.
    std::int64_t begun(std::int64_t step, const Step& now) const {
        if (along_rows()) return step > 0 ? now.count : 0;
        return std::min(now.count, step - now.first);
    }

  private:
    const LstmScan& s_;
};

// W as the product takes it: forward [taps x hidden, 4 hidden], backward [taps x 4 hidden, hidden] with the taps the
// other way round, as a pixel's gradient comes from those that saw it.
std::vector<float> packed_weight(const LstmScan& s, bool backward, int threads) {
    std::vector<std::int64_t> taps(static_cast<std::size_t>(s.taps));
    std::iota(taps.begin(), taps.end(), 0);
    if (backward) std::reverse(taps.begin(), taps.end());
    const std::int64_t gates = 4 * s.hidden;
    const std::int64_t depth = s.taps * (backward ? gates : s.hidden);
    std::vector<float> packed(static_cast<std::size_t>(packed_elements(depth, backward ? s.hidden : gates)));
    pack_taps({.data = s.weight,
               .output_stride = s.hidden * s.taps,
               .input_stride = s.taps,
               .tap_stride = 1,
               .outputs = gates,
               .inputs = s.hidden,
               .taps = taps,
               .mask = nullptr,
               .masked = -1},
              backward, packed.data(), threads);
    return packed;
}

// What the lanes of a few images hand on from step to step, `channels` each, between lanes of zeros for what lies
// beside the image; and its product with the packed weight, of which lanes see `taps` neighbours in a row.
class Handed {
  public:
    Handed(const LstmScan& s, std::int64_t lanes, std::int64_t images, std::int64_t channels, std::int64_t left)
        : channels_(channels),
          left_(left),
          image_((lanes + s.taps - 1) * channels),
          images_(images),
          pieces_(pieces_of(std::array{TapRun{.offset = 0, .length = s.taps * channels}})),
          values_(static_cast<std::size_t>(images * image_), 0.0f) {}

    float* lane(std::int64_t image, std::int64_t n) {
        return values_.data() + image * image_ + (left_ + n) * channels_;
    }

    // out [images, count, columns], of the lanes from `first` on.
    void multiply(const std::vector<float>& packed, std::int64_t first, std::int64_t count, std::int64_t columns,
                  float* out) {
        TapSumArguments a{};
        a.source = values_.data() + first * channels_;
        a.source_image = image_;
        a.source_pixel = channels_;
        a.packed = packed.data();
        a.element = Element::float32;
        a.out = out;
        a.out_image = count * columns;
        a.out_pixel = columns;
        a.out_channel = 1;
        a.images = images_;
        a.height = 1;
        a.width = count;
        a.columns = columns;
        a.depth = pieces_.depth;
        a.pieces = pieces_.list.data();
        a.piece_count = static_cast<std::int64_t>(pieces_.list.size());
        kernels().tap_sum(a, 0, tap_sum_items(a));
    }

  private:
    std::int64_t channels_;
    std::int64_t left_;
    std::int64_t image_;
    std::int64_t images_;
    Pieces pieces_;
    std::vector<float> values_;
};

void forward_images(const LstmScan& s, const LstmForward& f, const std::vector<float>& packed, std::int64_t begin,
                    std::int64_t end) {
    const Path path(s);
    const std::int64_t H = s.hidden;
    const std::int64_t gates = 4 * H;
    const std::int64_t lanes = path.lanes();
    const std::int64_t pixels = s.rows * s.columns;
    Handed h(s, lanes, end - begin, H, s.taps / 2);
    std::vector<float> cell(static_cast<std::size_t>((end - begin) * lanes * H), 0.0f);
    std::vector<float> z(static_cast<std::size_t>((end - begin) * lanes * gates));
    if (f.h0) {
        for (std::int64_t b = begin; b < end; ++b) std::copy_n(f.h0 + b * lanes * H, lanes * H, h.lane(b - begin, 0));
        std::copy_n(f.c0 + begin * lanes * H, (end - begin) * lanes * H, cell.data());
    }
    for (std::int64_t step = 0; step < path.steps(); ++step) {
        const Step now = path.at(step);
        const bool sees = step > 0 || f.h0;
        if (sees) h.multiply(packed, now.first, now.count, gates, z.data());
        for (std::int64_t b = begin; b < end; ++b) {
            const std::int64_t pixel = b * pixels + now.first_pixel;
            kernels().lstm_gates({.hidden = H,
                                  .count = now.count,
                                  .stride = now.stride,
                                  .x = f.x + pixel * gates,
                                  .z = sees ? z.data() + (b - begin) * now.count * gates : nullptr,
                                  .cell = cell.data() + ((b - begin) * lanes + now.first) * H,
                                  .state = h.lane(b - begin, now.first),
                                  .h = f.h + pixel * H,
                                  .gates = f.gates ? f.gates + pixel * gates : nullptr,
                                  .cells = f.cells ? f.cells + pixel * H : nullptr});
        }
    }
    if (f.last_cell) std::copy_n(cell.data(), (end - begin) * lanes * H, f.last_cell + begin * lanes * H);
}

void backward_images(const LstmScan& s, const LstmBackward& g, const std::vector<float>& packed, std::int64_t begin,
                     std::int64_t end) {
    const Path path(s);
    const std::int64_t H = s.hidden;
    const std::int64_t gates = 4 * H;
    const std::int64_t lanes = path.lanes();
    const std::int64_t pixels = s.rows * s.columns;
    Handed dz(s, lanes, end - begin, gates, s.taps - 1 - s.taps / 2);
    std::vector<float> dcell(static_cast<std::size_t>((end - begin) * lanes * H), 0.0f);
    std::vector<float> dh(static_cast<std::size_t>((end - begin) * lanes * H));
    if (g.grad_last_cell) std::copy_n(g.grad_last_cell + begin * lanes * H, (end - begin) * lanes * H, dcell.data());
    for (std::int64_t step = path.steps() - 1; step >= 0; --step) {
        const Step now = path.at(step);
        const bool last = step + 1 == path.steps();
        if (!last) dz.multiply(packed, now.first, now.count, H, dh.data());
        const std::int64_t begun = path.begun(step, now);
        for (std::int64_t b = begin; b < end; ++b) {
            const std::int64_t pixel = b * pixels + now.first_pixel;
            const std::int64_t image = b - begin;
            const auto lanes_of = [&](std::int64_t from, std::int64_t count, const float* before,
                                      std::int64_t before_stride) {
                const std::int64_t at = pixel + from * now.stride;
                kernels().lstm_gates_backward({.hidden = H,
                                               .count = count,
                                               .stride = now.stride,
                                               .grad = g.grad ? g.grad + at * H : nullptr,
                                               .handed = last ? nullptr : dh.data() + (image * now.count + from) * H,
                                               .gates = g.gates + at * gates,
                                               .cells = g.cells + at * H,
                                               .before = before,
                                               .before_stride = before_stride,
                                               .cell_gradient = dcell.data() + (image * lanes + now.first + from) * H,
                                               .state_gradient = dz.lane(image, now.first + from),
                                               .x_gradient = g.grad_x + at * gates});
            };
            if (begun > 0) lanes_of(0, begun, g.cells + (pixel + path.to_previous()) * H, now.stride * H);
            const bool has_start = path.along_rows() && g.c0;
            if (begun < now.count) lanes_of(begun, now.count - begun, has_start ? g.c0 + b * lanes * H : nullptr, H);
        }
    }
    if (g.grad_h0) dz.multiply(packed, 0, lanes, H, g.grad_h0 + begin * lanes * H);
    if (g.grad_c0) std::copy_n(dcell.data(), (end - begin) * lanes * H, g.grad_c0 + begin * lanes * H);
}

// Images by groups: a group's steps follow one another on one thread, which waits for nobody.
template <typename Body>
void over_images(const LstmScan& s, int threads, Body body) {
    const std::int64_t together = std::max<std::int64_t>(1, kPixelsTogether / Path(s).lanes());
    const std::int64_t share = (s.batch + std::max(threads, 1) - 1) / std::max(threads, 1);
    const std::int64_t group = std::max<std::int64_t>(1, std::min(together, share));
    const std::int64_t groups = (s.batch + group - 1) / group;
    parallel_for(static_cast<std::size_t>(groups), 1, threads, [&](auto first, auto last) {
        for (auto n = static_cast<std::int64_t>(first); n < static_cast<std::int64_t>(last); ++n) {
            body(n * group, std::min(s.batch, (n + 1) * group));
        }
    });
}

}  // namespace

void lstm_forward(const LstmScan& scan, const LstmForward& f, int threads) {
    const std::vector<float> packed = packed_weight(scan, false, threads);
    over_images(scan, threads, [&](auto begin, auto end) { forward_images(scan, f, packed, begin, end); });
}

void lstm_backward(const LstmScan& scan, const LstmBackward& b, int threads) {
    const std::vector<float> packed = packed_weight(scan, true, threads);
    over_images(scan, threads, [&](auto begin, auto end) { backward_images(scan, b, packed, begin, end); });
}

}  // namespace fastar::cpu
