"""Masked convolution where nothing better serves: torch's own convolution with the masked weight, and its gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastar.ops import tap_plan
from fastar.ops.tap_plan import Geometry, TapPlan
from fastar.reference import activation as activations
from fastar.reference.masked_conv2d import masked_conv2d as reference


def activated(z: Tensor, activation: str, halved: Tensor | None) -> Tensor:
    """act(z), which a gate writes to `halved`."""
    if activation == activations.GATE:
        assert halved is not None
        a, b = z.chunk(2, 1)
        return torch.tanh(a, out=halved).mul_(torch.sigmoid(b))
    return activations.APPLY[activation](z)


def before_activation(grad: Tensor, saved: Tensor | None, activation: str) -> Tensor:
    """The gradient of z from that of act(z) and what the forward saved."""
    if saved is None:
        return grad
    if activation == activations.GATE:
        return activations.tanh_gate_backward(grad, saved, 1)
    return activations.backward(activation, grad, saved)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    plan: TapPlan,
    geometry: Geometry,
    activation: str,
    keep_preactivation: bool,
) -> tuple[Tensor, Tensor]:
    out = geometry.empty_result(x, weight)
    mask = plan.dense(weight.shape, weight.device)
    out.copy_(reference(x, weight, bias, mask, geometry.stride, geometry.padding, "none", geometry.transposed))
    if activation == "none":
        return out, out.new_empty(0)
    y = activated(out, activation, geometry.empty_result(x, weight, 2) if activation == activations.GATE else None)
    return y, out if keep_preactivation else out.new_empty(0)


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    saved: Tensor | None,
    plan: TapPlan,
    geometry: Geometry,
    activation: str,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    grad = before_activation(grad, saved, activation)
    mask = plan.dense(weight.shape, weight.device)

    def visible(w: Tensor) -> Tensor:
        return w if mask is None else torch.where(mask, w, torch.zeros_like(w))

    # The padding of the input, or of the gradient of what was cropped, is written out.
    around = list(geometry.padding)
    outer, inner = (F.pad(grad, around), x) if geometry.transposed else (grad, F.pad(x, around))
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        outer, inner, visible(weight), None, geometry.stride, [0, 0], [1, 1], geometry.transposed, [0, 0], 1,
        [needs[0], needs[1], False],
    )  # fmt: skip
    if needs[0]:
        inside = grad_x if geometry.transposed else F.pad(grad_x, [-size for size in around])
        grad_x = torch.empty_like(x, memory_format=tap_plan.format_of(x, weight)).copy_(inside)
    return (
        grad_x if needs[0] else None,
        visible(grad_weight).contiguous() if needs[1] else None,
        grad.sum((0, 2, 3)) if needs[2] else None,
    )
