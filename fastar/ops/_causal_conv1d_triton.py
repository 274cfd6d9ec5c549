"""The causal convolution on the GPU: what kernels/causal_conv1d.py is launched with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastar.ops import _triton
from fastar.ops._causal_layer import Convolution, Gradients
from fastar.reference import activation as activations


def forward(x: Tensor, layer: Convolution, keep_preactivation: bool) -> tuple[Tensor, Tensor]:
    """(y, z): z is the pre-activation, empty unless it is to be kept."""
    from fastar.kernels import causal_conv1d as kernels

    layer = layer.with_contiguous_past()
    given = (layer.initial_state, layer.sequence_index, layer.dilation, layer.groups)
    weight, bias, activation = layer.weight, layer.bias, layer.activation
    if layer.depthwise:
        y = kernels.depthwise_sum(x, weight, bias, *given, activation)
        if not keep_preactivation:
            return y, x.new_empty(0)
        return y, kernels.depthwise_sum(x, weight, bias, *given, "none")
    y = x.new_empty(x.shape[0], layer.outputs, x.shape[2])
    z = torch.empty_like(y) if keep_preactivation else None
    bias = None if bias is None else bias.contiguous()
    kernels.conv(x, weight, bias, *given, activation, y, z, allow_tf32=_triton.allow_tf32())
    return y, x.new_empty(0) if z is None else z


def backward(grad: Tensor, x: Tensor, layer: Convolution, saved: Tensor | None, needs: Sequence[bool]) -> Gradients:
    """Gradients of x, weight, bias and the initial state, each None where it is not needed."""
    from fastar.kernels import causal_conv1d as kernels

    need_x, need_weight, need_bias, need_state = needs
    layer = layer.with_contiguous_past()
    weight, state, index = layer.weight, layer.initial_state, layer.sequence_index
    if saved is None and layer.activation != "none":
        # What the derivative is written in: z for some activations, y for the others.
        kept = "none" if layer.activation in activations.NEEDS_PREACTIVATION else layer.activation
        saved, _ = forward(x, layer._replace(activation=kept), False)
    g, grad_bias = kernels.activation_gradient(grad, saved, layer.activation, need_sums=need_bias)
    grad_x = x.new_empty(x.shape) if need_x else None
    grad_state = x.new_empty(state.shape) if need_state and state is not None else None
    tf32 = _triton.allow_tf32()
    sizes = (layer.dilation, layer.groups)
    for out, first, numbers in ((grad_x, 0, index), (grad_state, 0 if state is None else -state.shape[2], None)):
        if out is None:
            continue
        if layer.depthwise:
            kernels.depthwise_adjoint(g, weight, numbers, *sizes, out, first)
        else:
            kernels.conv(
                g, weight, None, None, numbers, *sizes, "none", out, None, adjoint=True, first=first, allow_tf32=tf32
            )
    grad_weight = None
    if need_weight:
        if layer.depthwise:
            grad_weight = kernels.depthwise_weight_gradient(g, x, weight, state, index, *sizes)
        else:
            grad_weight = kernels.weight_gradient(g, x, weight, state, index, *sizes, tf32)
        grad_weight = grad_weight.contiguous()
    return grad_x, grad_weight, grad_bias, grad_state
