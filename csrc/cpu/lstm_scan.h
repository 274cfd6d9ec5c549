// An LSTM scanned over the rows or diagonals of images, and its gradients. The state of a few images at a time stays in
// cache: per step one product of all their hidden units with the packed weight, then all their gates.
#pragma once

#include <cstdint>

namespace fastar::cpu {

enum class ScanAlong { kRows, kDiagonals, kAntidiagonals };

// Images are [batch, rows, columns, channels], states [batch, columns, hidden], all contiguous. The weight is
// [4 hidden, hidden, taps], contiguous as well.
struct LstmScan {
    ScanAlong along;
    std::int64_t batch;
    std::int64_t rows;
    std::int64_t columns;
    std::int64_t hidden;
    std::int64_t taps;
    const float* weight;
};

// The states h0 and c0 lie above the first row; both or neither is null, as are gates (activated) and cells. last_cell
// may be null.
struct LstmForward {
    const float* x;
    const float* h0;
    const float* c0;
    float* h;
    float* gates;
    float* cells;
    float* last_cell;
};

void lstm_forward(const LstmScan& scan, const LstmForward& f, int threads);

// Gradients of the gates before their activation and, where they are asked for, of the initial states.
struct LstmBackward {
    const float* grad;            // of h, or null
    const float* grad_last_cell;  // or null
    const float* gates;
    const float* cells;
    const float* c0;  // or null
    float* grad_x;
    float* grad_h0;  // or null
    float* grad_c0;  // or null
};

void lstm_backward(const LstmScan& scan, const LstmBackward& b, int threads);

}  // namespace fastar::cpu
