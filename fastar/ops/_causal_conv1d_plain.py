"""The causal convolution by the reference; its gradients by torch's own convolution over the padded input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastar.ops._causal_layer import Convolution, Gradients
from fastar.reference import activation as activations
from fastar.reference.causal_conv1d import causal_conv1d as reference


def forward(x: Tensor, layer: Convolution, keep_preactivation: bool) -> tuple[Tensor, Tensor]:
    """(y, z): z is the pre-activation, empty unless it is to be kept."""
    z = reference(x, **layer._replace(activation="none")._asdict())
    y = activations.APPLY[layer.activation](z).contiguous()
    return y, z.contiguous() if keep_preactivation else z.new_empty(0)


def backward(grad: Tensor, x: Tensor, layer: Convolution, saved: Tensor | None, needs: Sequence[bool]) -> Gradients:
    """Gradients of x, weight, bias and the initial state, each None where it is not needed."""
    weight, state, index, dilation = layer.weight, layer.initial_state, layer.sequence_index, layer.dilation
    if layer.activation != "none":
        if saved is None:
            z, _ = forward(x, layer._replace(activation="none"), False)
            kept = layer.activation in activations.NEEDS_PREACTIVATION
            saved = z if kept else activations.APPLY[layer.activation](z)
        grad = activations.backward(layer.activation, grad, saved)
    need_x, need_weight, need_bias, need_state = needs
    grad_bias = grad.sum((0, 2)) if need_bias else None
    reach, length = layer.reach, x.shape[2]
    past = F.pad(x, (reach, 0)) if state is None else torch.cat([state, x], 2)
    grad_past = torch.zeros_like(past)
    grad_weight = torch.zeros_like(weight, memory_format=torch.contiguous_format)
    # Across the borders of sequences each tap sees something of its own.
    whole = index is None
    for k in [0] if whole else range(layer.taps):
        taps = slice(None) if whole else slice(k, k + 1)
        span = slice(None) if whole else slice(k * dilation, k * dilation + length)
        source, seen = past[:, :, span], None
        if index is not None:
            delay = reach - k * dilation
            seen = F.pad(index, (delay, 0))[:, None, :length] == index[:, None]
            source = torch.where(seen, source, torch.zeros_like(source))
        if length == 0 or x.shape[0] == 0:
            break
        back, products, _ = torch.ops.aten.convolution_backward(
            grad, source, weight[:, :, taps], None, [1], [0], [dilation], False, [0], layer.groups,
            [need_x or need_state, need_weight, False],
        )  # fmt: skip
        if need_weight:
            grad_weight[:, :, taps] = products
        if need_x or need_state:
            grad_past[:, :, span] += back if seen is None else torch.where(seen, back, torch.zeros_like(back))
    return (
        grad_past[:, :, reach:].contiguous() if need_x else None,
        grad_weight if need_weight else None,
        grad_bias,
        grad_past[:, :, :reach].contiguous() if need_state else None,
    )
