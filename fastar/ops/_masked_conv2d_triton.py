"""Masked convolution on Triton kernels: which launches make up the forward and the gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from fastar.ops import _triton, tap_plan
from fastar.ops.tap_plan import Geometry, TapPlan
from fastar.reference import activation as activations


def _products(
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    plan: TapPlan,
    geometry: Geometry,
    adjoint: bool,
    y: Tensor,
    z: Tensor | None,
    activation: str,
) -> None:
    """The convolution of `source` with the masked weight, or its adjoint, into y and, if given, z."""
    from fastar.kernels import masked_conv2d as kernels

    looks = tap_plan.looks(plan.taps, weight.shape[2:], geometry.corner)
    mask = (plan.channel_mask, plan.masked)
    finish = (activation, _triton.allow_tf32())
    source = kernels.channels_last(source)
    if not adjoint:
        kernels.tap_sum(source, looks, geometry.stride, weight, False, *mask, bias, y, z, *finish)
        return
    down, right = geometry.stride
    for row, column, seen in tap_plan.phases(looks, geometry.stride):
        part, part_z = (None if t is None else t[:, :, row::down, column::right] for t in (y, z))
        assert part is not None
        kernels.tap_sum(source, seen, (1, 1), weight, True, *mask, bias, part, part_z, *finish)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    plan: TapPlan,
    geometry: Geometry,
    activation: str,
    keep_preactivation: bool,
) -> tuple[Tensor, Tensor]:
    def last(t: Tensor) -> Tensor:
        return torch.empty_like(t, memory_format=torch.channels_last)

    out = geometry.empty_result(x, weight, 2 if activation == activations.GATE else 1)
    kept = geometry.empty_result(x, weight) if keep_preactivation else None
    y, z = last(out), None if kept is None else last(kept)
    _products(x, weight, bias, plan, geometry, geometry.transposed, y, z, activation)
    if out.stride() != y.stride():
        y = out.copy_(y)
        z = None if z is None or kept is None else kept.copy_(z)
    return y, x.new_empty(0) if z is None else z


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
    from fastar.kernels import masked_conv2d as kernels

    need_x, need_weight, need_bias = needs
    g, grad_bias = kernels.activation_gradient(
        grad, saved, activation, need_values=need_x or need_weight, need_bias=need_bias
    )
    grad_x = grad_weight = None
    if need_x:
        grad_x = torch.empty_like(x, memory_format=torch.channels_last)
        _products(g, weight, None, plan, geometry, not geometry.transposed, grad_x, None, "none")
        grad_x = grad_x.contiguous(memory_format=tap_plan.format_of(x, weight))
    if need_weight:
        source, result = (g, x) if geometry.transposed else (x, g)
        looks = tap_plan.looks(plan.taps, weight.shape[2:], geometry.corner)
        grad_weight = kernels.weight_gradient(
            kernels.channels_last(source), looks, geometry.stride, kernels.channels_last(result), weight,
            plan.channel_mask, plan.masked, _triton.allow_tf32(),
        )  # fmt: skip
    return grad_x, grad_weight, grad_bias
