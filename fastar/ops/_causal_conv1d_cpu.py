"""The causal convolution on the CPU: sums over delayed channels (csrc/cpu/delayed.h), nothing padded or unfolded.

Time stays the innermost dimension throughout. oneDNN, behind torch's own convolution, converts to channels-last order
and back, and takes a padded copy first.

Where each group has one input the work is bound by memory and done row by row; otherwise it is a product over tiles of
a few dozen times. The first kind saves nothing for its activation and recomputes it in the backward.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastar.native import core
from fastar.ops._causal_layer import Convolution, Gradients
from fastar.ops._native import address, name
from fastar.reference import activation as activations

NATIVE = frozenset({"none", "relu", "tanh", "sigmoid", "silu"})


def along_time(x: Tensor) -> Tensor:
    """x with consecutive times; a copy only where they are not."""
    return x if x.stride(2) == 1 or x.shape[2] <= 1 else x.contiguous()


def _source(x: Tensor, history: Tensor | None = None, index: Tensor | None = None) -> object:
    """x, along time, as native code takes it. The caller keeps the tensors."""
    if history is None:
        return core().Source(x.data_ptr(), x.stride()[:2], x.shape[2], index=address(index))
    return core().Source(
        x.data_ptr(), x.stride()[:2], x.shape[2], history.data_ptr(), history.stride()[:2], history.shape[2]
    )


def _float(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.detach().float().contiguous()


def _depthwise(x: Tensor, layer: Convolution, factors: Tensor, shift: Tensor | None, *out: int) -> object:
    """The native description of a depthwise sum, of float32 weights and bias; `out` are y's and z's addresses."""
    source = _source(x, layer.initial_state, layer.sequence_index)
    sizes = (x.shape[0], layer.groups, layer.outputs // layer.groups)
    return core().DepthwiseSum(
        name(x.dtype), sizes, source, layer.dilation, layer.taps, factors.data_ptr(), address(shift),
        layer.activation, *out,
    )  # fmt: skip


def forward(x: Tensor, layer: Convolution, keep_preactivation: bool) -> tuple[Tensor, Tensor]:
    """(y, z): z is the pre-activation, empty unless it is to be kept."""
    activation = layer.activation
    if activation not in NATIVE:
        y, _ = forward(x, layer._replace(activation="none"), False)
        return activations.APPLY[activation](y), y if keep_preactivation else y.new_empty(0)
    y = x.new_empty(x.shape[0], layer.outputs, x.shape[2])
    z = torch.empty_like(y) if keep_preactivation and activation != "none" else None
    x, layer, shift = along_time(x), layer.with_contiguous_past(), _float(layer.bias)
    threads = torch.get_num_threads()
    if layer.depthwise:
        factors = layer.weight.detach().float().contiguous()
        core().depthwise_sum(_depthwise(x, layer, factors, shift, y.data_ptr(), address(z)), threads)
    else:
        weight, outputs = layer.weight, layer.outputs // layer.groups
        strides = (outputs * weight.stride(0), *weight.stride())
        core().delayed_sum(
            name(x.dtype), (x.shape[0], layer.groups, weight.shape[1], outputs),
            _source(x, layer.initial_state, layer.sequence_index), layer.offsets, weight.data_ptr(), strides,
            address(shift), activation, y.data_ptr(), address(z), 0, x.shape[2], threads,
        )  # fmt: skip
    return y, x.new_empty(0) if z is None else z


def backward(grad: Tensor, x: Tensor, layer: Convolution, saved: Tensor | None, needs: Sequence[bool]) -> Gradients:
    """Gradients of x, weight, bias and the initial state, each None where it is not needed."""
    if saved is None and layer.activation not in NATIVE:
        z, _ = forward(x, layer._replace(activation="none"), False)
        saved = z if layer.activation in activations.NEEDS_PREACTIVATION else activations.APPLY[layer.activation](z)
    if saved is not None:
        grad, layer = activations.backward(layer.activation, grad, saved), layer._replace(activation="none")
    x, grad, layer = along_time(x), along_time(grad), layer.with_contiguous_past()
    if layer.depthwise:
        return _depthwise_backward(grad, x, layer, needs)
    need_x, need_weight, need_bias, need_state = needs
    state = layer.initial_state
    grad_x = x.new_empty(x.shape) if need_x else None
    grad_state = x.new_empty(state.shape) if need_state and state is not None else None
    if grad_x is not None:
        back(grad, layer, grad_x, 0)
    if grad_state is not None:
        back(grad, layer._replace(sequence_index=None), grad_state, -layer.reach)
    grad_weight = products(grad, x, layer) if need_weight else None
    return grad_x, grad_weight, grad.sum(2).sum(0) if need_bias else None, grad_state


def back(grad: Tensor, layer: Convolution, out: Tensor, first: int) -> None:
    """out[b, c, t] = the gradient of the convolution's input at times first, first + 1..."""
    weight, outputs = layer.weight, layer.outputs // layer.groups
    by_output, by_input, by_tap = weight.stride()
    ahead = [-one for one in layer.offsets]
    core().delayed_sum(
        name(grad.dtype), (out.shape[0], layer.groups, outputs, weight.shape[1]),
        _source(grad, None, layer.sequence_index), ahead, weight.data_ptr(),
        (outputs * by_output, by_input, by_output, by_tap), 0, "none", out.data_ptr(), 0, first, out.shape[2],
        torch.get_num_threads(),
    )  # fmt: skip


def products(grad: Tensor, x: Tensor, layer: Convolution) -> Tensor:
    """The gradient of the weight; grad and x along time."""
    weight = layer.weight
    out = weight.new_empty(weight.shape)
    sizes = (x.shape[0], layer.groups, weight.shape[1], layer.outputs // layer.groups)
    core().delayed_products(
        name(x.dtype), sizes, grad.data_ptr(), grad.stride()[:2],
        _source(x, layer.initial_state, layer.sequence_index), layer.offsets, out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return out


def _depthwise_backward(grad: Tensor, x: Tensor, layer: Convolution, needs: Sequence[bool]) -> Gradients:
    need_x, need_weight, need_bias, need_state = needs
    weight, state = layer.weight, layer.initial_state
    grad_x = x.new_empty(x.shape) if need_x else None
    grad_state = x.new_empty(state.shape) if need_state and state is not None else None
    grad_weight = torch.empty(weight.shape) if need_weight else None
    grad_bias = torch.empty(weight.shape[0]) if need_bias else None
    factors, shift = weight.detach().float().contiguous(), _float(layer.bias)
    core().depthwise_gradients(
        _depthwise(x, layer, factors, shift), grad.data_ptr(), grad.stride()[:2], address(grad_x),
        address(grad_state), address(grad_weight), address(grad_bias), torch.get_num_threads(),
    )  # fmt: skip
    return (
        grad_x,
        None if grad_weight is None else grad_weight.to(weight.dtype),
        None if grad_bias is None else grad_bias.to(weight.dtype),
        grad_state,
    )
