// The table of this vector level. Only dispatch.cpp refers to it.
#include "cpu/isa/conv.h"
#include "cpu/isa/delayed.h"
#include "cpu/isa/executor.h"
#include "cpu/isa/gather.h"
#include "cpu/isa/heads.h"
#include "cpu/isa/lstm_scan.h"
#include "cpu/isa/nade.h"
#include "cpu/isa/tanh_gate.h"
#include "cpu/isa/wavenet.h"
#include "cpu/kernel_table.h"

namespace fastar::cpu::FASTAR_ISA {

extern const KernelTable table;

const KernelTable table{
    .gather_16 = gather<std::uint16_t>,
    .gather_32 = gather<std::uint32_t>,
    .masked_copy_16 = masked_copy<std::uint16_t>,
    .masked_copy_32 = masked_copy<std::uint32_t>,
    .nade_forward = nade_forward,
    .nade_logit_gradient = nade_logit_gradient,
    .nade_backward = nade_backward,
    .heads_forward = heads_forward,
    .heads_backward = heads_backward,
    .lstm_gates = lstm_gates,
    .lstm_gates_backward = lstm_gates_backward,
    .hash = hash,
    .pad = pad,
    .tap_sum = tap_sum,
    .delayed_extent = delayed_extent,
    .pack_delayed = pack_delayed,
    .delayed_sum = delayed_sum,
    .products_extent = products_extent,
    .delayed_products = delayed_products,
    .sum_products = sum_products,
    .wavenet_extent = wavenet_extent,
    .pack_wavenet = pack_wavenet,
    .wavenet_forward = wavenet_forward,
    .wavenet_backward = wavenet_backward,
    .depthwise_sum = depthwise_sum,
    .depthwise_gradients = depthwise_gradients,
    .tanh_gate = tanh_gate,
    .executor =
        {
            .matrix = matrix,
            .unary = unary,
            .clamp = clamp,
            .add = add,
            .multiply = multiply,
            .gate = gate,
            .norm = norm,
            .cell = cell,
            .attention = attention,
            .accumulate = accumulate,
            .accumulate_dot = accumulate_dot,
            .toss = toss,
            .balance_odds = balance_odds,
            .coin_bars = coin_bars,
            .coins = coins,
            .largest = largest,
            .exponentials = exponentials,
        },
};

}  // namespace fastar::cpu::FASTAR_ISA
