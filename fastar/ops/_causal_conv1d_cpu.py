"""The causal convolution on the CPU: sums over delayed channels (csrc/cpu/delayed.h), nothing padded or unfolded.

Time stays the innermost dimension throughout. oneDNN, behind torch's own convolution, converts to channels-last order
and back, and takes a padded copy first.

Where each group has one input the work is bound by memory and done row by row; otherwise it is a product over tiles of
a few dozen times. The first kind saves nothing for its activation and recomputes it in the backward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastar.native import core
from fastar.ops._causal_conv1d_plain import Gradients
from fastar.ops._native import address, name
from fastar.reference import activation as activations

NATIVE = frozenset({"none", "relu", "tanh", "sigmoid", "silu"})


def depthwise(weight: Tensor, groups: int) -> bool:
    """Whether each group has one input, and few outputs."""
    return weight.shape[1] == 1 and weight.shape[0] <= 4 * groups


def along_time(x: Tensor) -> Tensor:
    """x with consecutive times; a copy only where they are not."""
    return x if x.stride(2) == 1 or x.shape[2] <= 1 else x.contiguous()


def offsets(taps: int, dilation: int) -> list[int]:
    """Where each tap looks, relative to its output."""
    return [(k + 1 - taps) * dilation for k in range(taps)]


def _source(x: Tensor, history: Tensor | None = None, index: Tensor | None = None) -> object:
    """x, along time, as native code takes it. The caller keeps the tensors."""
    if history is None:
        return core().Source(x.data_ptr(), x.stride()[:2], x.shape[2], index=address(index))
    return core().Source(
        x.data_ptr(), x.stride()[:2], x.shape[2], history.data_ptr(), history.stride()[:2], history.shape[2]
    )


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    sequence_index: Tensor | None,
    dilation: int,
    groups: int,
    activation: str,
    keep_preactivation: bool,
) -> tuple[Tensor, Tensor]:
    """(y, z): z is the pre-activation, empty unless it is to be kept."""
    y = x.new_empty(x.shape[0], weight.shape[0], x.shape[2])
    fused = activation if activation in NATIVE else "none"
    z = torch.empty_like(y) if keep_preactivation and fused != "none" else None
    x = along_time(x)
    state = None if initial_state is None else initial_state.contiguous()
    index = None if sequence_index is None else sequence_index.contiguous()
    source = _source(x, state, index)
    shift = None if bias is None else bias.detach().float().contiguous()
    threads = torch.get_num_threads()
    if depthwise(weight, groups):
        factors = weight.detach().float().contiguous()
        sizes = (x.shape[0], groups, weight.shape[0] // groups)
        core().depthwise_sum(
            core().DepthwiseSum(
                name(x.dtype), sizes, source, dilation, weight.shape[2], factors.data_ptr(), address(shift), fused,
                y.data_ptr(), address(z),
            ),
            threads,
        )  # fmt: skip
    else:
        outputs = weight.shape[0] // groups
        strides = (outputs * weight.stride(0), *weight.stride())
        core().delayed_sum(
            name(x.dtype), (x.shape[0], groups, weight.shape[1], outputs), source, offsets(weight.shape[2], dilation),
            weight.data_ptr(), strides, address(shift), fused, y.data_ptr(), address(z), 0, x.shape[2], threads,
        )  # fmt: skip
    if fused == activation:
        return y, x.new_empty(0) if z is None else z
    return activations.APPLY[activation](y), y if keep_preactivation else y.new_empty(0)


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    saved: Tensor | None,
    initial_state: Tensor | None,
    sequence_index: Tensor | None,
    dilation: int,
    groups: int,
    activation: str,
    needs: tuple[bool, bool, bool, bool],
) -> Gradients:
    """Gradients of x, weight, bias and the initial state, each None where it is not needed."""
    given = (initial_state, sequence_index, dilation, groups)
    if saved is None and activation not in NATIVE:
        z, _ = forward(x, weight, bias, *given, "none", False)
        saved = z if activation in activations.NEEDS_PREACTIVATION else activations.APPLY[activation](z)
    if saved is not None:
        grad, activation = activations.backward(activation, grad, saved), "none"
    x, grad = along_time(x), along_time(grad)
    state = None if initial_state is None else initial_state.contiguous()
    index = None if sequence_index is None else sequence_index.contiguous()
    if depthwise(weight, groups):
        return _depthwise_backward(grad, x, weight, bias, state, index, dilation, groups, activation, needs)
    need_x, need_weight, need_bias, need_state = needs
    grad_x = x.new_empty(x.shape) if need_x else None
    grad_state = x.new_empty(state.shape) if need_state and state is not None else None
    if grad_x is not None:
        back(grad, weight, index, dilation, groups, grad_x, 0)
    if grad_state is not None:
        back(grad, weight, None, dilation, groups, grad_state, -grad_state.shape[2])
    grad_weight = products(grad, x, weight, state, index, dilation, groups) if need_weight else None
    return grad_x, grad_weight, grad.sum(2).sum(0) if need_bias else None, grad_state


def back(
    grad: Tensor, weight: Tensor, index: Tensor | None, dilation: int, groups: int, out: Tensor, first: int
) -> None:
    """out[b, c, t] = the gradient of the convolution's input at times first, first + 1..."""
    outputs = weight.shape[0] // groups
    by_output, by_input, by_tap = weight.stride()
    ahead = [-one for one in offsets(weight.shape[2], dilation)]
    core().delayed_sum(
        name(grad.dtype), (out.shape[0], groups, outputs, weight.shape[1]), _source(grad, None, index), ahead,
        weight.data_ptr(), (outputs * by_output, by_input, by_output, by_tap), 0, "none", out.data_ptr(), 0, first,
        out.shape[2], torch.get_num_threads(),
    )  # fmt: skip


def products(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    state: Tensor | None,
    index: Tensor | None,
    dilation: int,
    groups: int,
) -> Tensor:
    """The gradient of the weight; grad and x along time."""
    out = weight.new_empty(weight.shape)
    sizes = (x.shape[0], groups, weight.shape[1], weight.shape[0] // groups)
    core().delayed_products(
        name(x.dtype), sizes, grad.data_ptr(), grad.stride()[:2], _source(x, state, index),
        offsets(weight.shape[2], dilation), out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return out


def _depthwise_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    index: Tensor | None,
    dilation: int,
    groups: int,
    activation: str,
    needs: tuple[bool, bool, bool, bool],
) -> Gradients:
    need_x, need_weight, need_bias, need_state = needs
    grad_x = x.new_empty(x.shape) if need_x else None
    grad_state = x.new_empty(state.shape) if need_state and state is not None else None
    grad_weight = torch.empty(weight.shape) if need_weight else None
    grad_bias = torch.empty(weight.shape[0]) if need_bias else None
    factors = weight.detach().float().contiguous()
    shift = None if bias is None else bias.detach().float().contiguous()
    sizes = (x.shape[0], groups, weight.shape[0] // groups)
    convolution = core().DepthwiseSum(
        name(x.dtype), sizes, _source(x, state, index), dilation, weight.shape[2], factors.data_ptr(), address(shift),
        activation,
    )  # fmt: skip
    core().depthwise_gradients(
        convolution, grad.data_ptr(), grad.stride()[:2], address(grad_x), address(grad_state), address(grad_weight),
        address(grad_bias), torch.get_num_threads(),
    )  # fmt: skip
    return (
        grad_x,
        None if grad_weight is None else grad_weight.to(weight.dtype),
        None if grad_bias is None else grad_bias.to(weight.dtype),
        grad_state,
    )
