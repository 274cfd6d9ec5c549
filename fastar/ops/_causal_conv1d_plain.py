"""The causal convolution by the reference; its gradients by torch's own convolution over the padded input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastar.reference import activation as activations
from fastar.reference.causal_conv1d import causal_conv1d as reference

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


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
    z = reference(
        x, weight, bias, dilation=dilation, groups=groups, initial_state=initial_state, sequence_index=sequence_index
    )
    y = activations.APPLY[activation](z).contiguous()
    return y, z.contiguous() if keep_preactivation else z.new_empty(0)


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
    if activation != "none":
        if saved is None:
            z, _ = forward(x, weight, bias, initial_state, sequence_index, dilation, groups, "none", False)
            kept = activation in activations.NEEDS_PREACTIVATION
            saved = z if kept else activations.APPLY[activation](z)
        grad = activations.backward(activation, grad, saved)
    need_x, need_weight, need_bias, need_state = needs
    grad_bias = grad.sum((0, 2)) if need_bias else None
    reach, length = (weight.shape[2] - 1) * dilation, x.shape[2]
    past = F.pad(x, (reach, 0)) if initial_state is None else torch.cat([initial_state, x], 2)
    grad_past = torch.zeros_like(past)
    grad_weight = torch.zeros_like(weight, memory_format=torch.contiguous_format)
    # Across the borders of sequences each tap sees something of its own.
    whole = sequence_index is None
    for k in [0] if whole else range(weight.shape[2]):
        taps = slice(None) if whole else slice(k, k + 1)
        span = slice(None) if whole else slice(k * dilation, k * dilation + length)
        source, seen = past[:, :, span], None
        if sequence_index is not None:
            delay = reach - k * dilation
            seen = F.pad(sequence_index, (delay, 0))[:, None, :length] == sequence_index[:, None]
            source = torch.where(seen, source, torch.zeros_like(source))
        if length == 0 or x.shape[0] == 0:
            break
        back, products, _ = torch.ops.aten.convolution_backward(
            grad, source, weight[:, :, taps], None, [1], [0], [dilation], False, [0], groups,
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
