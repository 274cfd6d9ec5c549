"""The causal convolution on the GPU: what kernels/causal_conv1d.py is launched with."""

from __future__ import annotations

import torch
from torch import Tensor

from fastar.ops import _triton
from fastar.ops._causal_conv1d_cpu import depthwise
from fastar.ops._causal_conv1d_plain import Gradients
from fastar.reference import activation as activations


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
    from fastar.kernels import causal_conv1d as kernels

    state, index = _contiguous(initial_state), _contiguous(sequence_index)
    if depthwise(weight, groups):
        y = kernels.depthwise_sum(x, weight, bias, state, index, dilation, groups, activation)
        if not keep_preactivation:
            return y, x.new_empty(0)
        return y, kernels.depthwise_sum(x, weight, bias, state, index, dilation, groups, "none")
    y = x.new_empty(x.shape[0], weight.shape[0], x.shape[2])
    z = torch.empty_like(y) if keep_preactivation else None
    kernels.conv(
        x, weight, _contiguous(bias), state, index, dilation, groups, activation, y, z,
        allow_tf32=_triton.allow_tf32(),
    )  # fmt: skip
    return y, x.new_empty(0) if z is None else z


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


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
    from fastar.kernels import causal_conv1d as kernels

    need_x, need_weight, need_bias, need_state = needs
    state, index = _contiguous(initial_state), _contiguous(sequence_index)
    if saved is None and activation != "none":
        # What the derivative is written in: z for some activations, y for the others.
        kept = "none" if activation in activations.NEEDS_PREACTIVATION else activation
        saved, _ = forward(x, weight, bias, state, index, dilation, groups, kept, False)
    g, grad_bias = kernels.activation_gradient(grad, saved, activation, need_sums=need_bias)
    grad_x = x.new_empty(x.shape) if need_x else None
    grad_state = x.new_empty(state.shape) if need_state and state is not None else None
    tf32 = _triton.allow_tf32()
    one_input = depthwise(weight, groups)
    for out, first, numbers in ((grad_x, 0, index), (grad_state, 0 if state is None else -state.shape[2], None)):
        if out is None:
            continue
        if one_input:
            kernels.depthwise_adjoint(g, weight, numbers, dilation, groups, out, first)
        else:
            kernels.conv(
                g, weight, None, None, numbers, dilation, groups, "none", out, None, adjoint=True, first=first,
                allow_tf32=tf32,
            )  # fmt: skip
    grad_weight = None
    if need_weight:
        if one_input:
            grad_weight = kernels.depthwise_weight_gradient(g, x, weight, state, index, dilation, groups)
        else:
            grad_weight = kernels.weight_gradient(g, x, weight, state, index, dilation, groups, tf32)
        grad_weight = grad_weight.contiguous()
    return grad_x, grad_weight, grad_bias, grad_state
