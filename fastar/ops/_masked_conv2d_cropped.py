"""Masked convolution on the CPU whose surviving taps fill a rectangle: torch's own, of the kernel cropped to it.

No tap is multiplied for nothing then, and oneDNN, behind torch's convolution, multiplies a tenth faster than our own
product where channels lie beside each other (4x128x32x32, kernels 3x5, 1x3 and 1x1, 2 threads); its gradients of a 1x1
kernel take three fifths. In torch's default layout it copies more than our product does.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastar.ops import tap_plan
from fastar.ops.tap_plan import Geometry, TapPlan


class Rectangle(NamedTuple):
    """Rows [top, bottom) and columns [left, right) of a kernel."""

    top: int
    bottom: int
    left: int
    right: int


@functools.lru_cache(maxsize=1024)
def rectangle(taps: tuple[int, ...], width: int) -> Rectangle | None:
    """What these taps of a kernel of this width fill; None where they leave gaps, or there are none."""
    if not taps:
        return None
    rows, columns = [tap // width for tap in taps], [tap % width for tap in taps]
    found = Rectangle(min(rows), max(rows) + 1, min(columns), max(columns) + 1)
    return found if len(taps) == (found.bottom - found.top) * (found.right - found.left) else None


def serves(x: Tensor, weight: Tensor, plan: TapPlan, geometry: Geometry) -> bool:
    """Whether torch's convolution is the faster one here."""
    return (
        x.dtype in (torch.float32, torch.bfloat16)
        and not geometry.transposed
        and plan.channel_mask is None
        and x.numel() > 0
        and tap_plan.format_of(x, weight) == torch.channels_last
        and rectangle(plan.taps, weight.shape[3]) is not None
        and torch.backends.mkldnn.is_available()
    )


def _cropped(weight: Tensor, plan: TapPlan, geometry: Geometry) -> tuple[Tensor, tuple[int, int, int, int]]:
    """The weight's rectangle and the padding (left, right, top, bottom) that belongs to it; less than 0 crops."""
    height, width = weight.shape[2:]
    part = rectangle(plan.taps, width)
    assert part is not None
    left, right, top, bottom = geometry.padding
    padding = (left - part.left, right - (width - part.right), top - part.top, bottom - (height - part.bottom))
    if part == (0, height, 0, width):
        return weight, padding
    return weight[:, :, part.top : part.bottom, part.left : part.right], padding


def _last(t: Tensor) -> Tensor:
    """t with its channels beside each other, and of sizes of 1 the strides that a new tensor would have."""
    _, C, H, W = t.shape
    if t.stride() == (H * W * C, 1, W * C, C):
        return t
    return torch.empty_like(t, memory_format=torch.channels_last).copy_(t)


def _even(padding: Sequence[int]) -> bool:
    """Whether the convolution itself can pad so."""
    left, right, top, bottom = padding
    return left == right >= 0 and top == bottom >= 0


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, plan: TapPlan, geometry: Geometry) -> Tensor:
    """The convolution before its activation."""
    part, padding = _cropped(weight, plan, geometry)
    if _even(padding):
        return _last(F.conv2d(x, part, bias, geometry.stride, (padding[2], padding[0])))
    return _last(F.conv2d(F.pad(x, padding), part, bias, geometry.stride))


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, plan: TapPlan, geometry: Geometry, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias from that of the pre-activation, each None where it is not needed."""
    part, padding = _cropped(weight, plan, geometry)
    even = _even(padding)
    grad_x, grad_part, grad_bias = torch.ops.aten.convolution_backward(
        grad, x if even else F.pad(x, padding), part, [weight.shape[0]], geometry.stride,
        [padding[2], padding[0]] if even else [0, 0], [1, 1], False, [0, 0], 1, needs,
    )  # fmt: skip
    if needs[0] and not even:
        grad_x = F.pad(grad_x, [-size for size in padding])
    grad_weight = None
    if needs[1]:
        grad_weight = grad_part
        if part is not weight:
            grad_weight = torch.zeros_like(weight, memory_format=tap_plan.format_of(weight))
            seen = rectangle(plan.taps, weight.shape[3])
            assert seen is not None
            grad_weight[:, :, seen.top : seen.bottom, seen.left : seen.right] = grad_part
    return _last(grad_x) if needs[0] else None, grad_weight, grad_bias if needs[2] else None
