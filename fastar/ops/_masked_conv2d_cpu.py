"""Masked convolution on the CPU: products over the surviving taps, from a padded copy of the input.

The input is copied once into channels-last order with its padding written out, in float32. What an output position sees
of it is then a few runs of consecutive elements, and native code multiplies them with a packed weight that holds only
surviving taps (csrc/cpu/conv.h). The input's gradient is the same sum over taps that look the other way, and the
weight's the same product with other roles.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from fastar.native import core
from fastar.ops import _masked_conv2d_cropped, _packed, _tanh_gate_cpu, tap_plan
from fastar.ops._native import name
from fastar.ops.tap_plan import Geometry, Look, TapPlan
from fastar.reference import activation as activations


def _padded(source: Tensor, corner: Sequence[int], size: Sequence[int], memory_format: torch.memory_format) -> Tensor:
    """float32 [batch, channels, *size] with the source's corner at `corner`, cropped or filled with zeros."""
    out = torch.empty(*source.shape[:2], *size, memory_format=memory_format)
    core().pad(
        name(source.dtype), source.data_ptr(), source.stride(), source.shape, corner, out.data_ptr(), out.stride(),
        size, torch.get_num_threads(),
    )  # fmt: skip
    return out


def _reach(looks: Sequence[Look], size: Sequence[int], step: Sequence[int]) -> tuple[list[int], list[int]]:
    """The corner nearest to the origin that is looked at, and the height and width of all that is."""
    low = [min(one[axis] for one in looks) for axis in (0, 1)]
    high = [max(one[axis] for one in looks) for axis in (0, 1)]
    return low, [(size[axis] - 1) * step[axis] + high[axis] - low[axis] + 1 for axis in (0, 1)]


@functools.lru_cache(maxsize=1024)
def _runs(
    looks: tuple[Look, ...], size: tuple[int, int], step: tuple[int, int], pixel: int
) -> tuple[list[int], list[int], list[int], list[tuple[int, int]]]:
    """Of a product over looks: the taps, the padded source's corner and size, and its runs, (start, length) each."""
    looks = tuple(sorted(looks))
    low, padded = _reach(looks, size, step)
    runs: list[tuple[int, int]] = []
    for one in looks:
        start = ((one.dy - low[0]) * padded[1] + one.dx - low[1]) * pixel
        if runs and sum(runs[-1]) == start:
            runs[-1] = (runs[-1][0], runs[-1][1] + pixel)
        else:
            runs.append((start, pixel))
    return [one.tap for one in looks], low, padded, runs


@dataclass
class _Packed:
    """A weight's packed taps and what they were made from; a matrix is never written again once it is here."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    source: tuple[object, ...] = ()
    channel_mask: Tensor | None = None
    matrix: Tensor = field(default_factory=lambda: torch.empty(0))


_PACKED = _packed.PerTensor(_Packed)


def _packed_taps(weight: Tensor, taps: list[int], plan: TapPlan, transposed: bool) -> Tensor:
    """The surviving taps as the matrix that the product takes.

    The forward's is kept as long as its weight lives, and made anew when a fingerprint of the weight's memory says so:
    version counters are not raised by writes through `.data`. The transposed one serves training, where each step has
    another weight.
    """
    # The fingerprint reads the weight's memory from end to end.
    dense = weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)
    if transposed or not dense:
        return _pack(weight, taps, plan, transposed)
    packed = _PACKED.of(weight)
    with packed.lock:
        print_of_weight = core().fingerprint(weight.data_ptr(), weight.nbytes, torch.get_num_threads())
        source = (print_of_weight, weight.dtype, weight.shape, weight.stride(), taps, plan.masked)
        if packed.source != source or packed.channel_mask is not plan.channel_mask:
            packed.matrix = _pack(weight, taps, plan, transposed)
            packed.source, packed.channel_mask = source, plan.channel_mask
        return packed.matrix


def _pack(weight: Tensor, taps: list[int], plan: TapPlan, transposed: bool) -> Tensor:
    values = weight.detach().float().flatten(2)
    depth, columns = (weight.shape[0], weight.shape[1]) if transposed else (weight.shape[1], weight.shape[0])
    mask = plan.channel_mask if plan.masked in taps else None
    packed = torch.empty(core().packed_elements(len(taps) * depth, columns))
    core().pack_taps(
        values.data_ptr(), values.stride(), values.shape[:2], taps, 0 if mask is None else mask.data_ptr(),
        -1 if mask is None else taps.index(plan.masked), transposed, packed.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return packed


def _tap_sum(
    source: Tensor,
    looks: Sequence[Look],
    step: Sequence[int],
    weight: Tensor,
    plan: TapPlan,
    transposed: bool,
    bias: Tensor | None,
    out: Tensor,
) -> None:
    """out[:, :, p] = bias + sum over looks of W[tap] source[:, :, p * step + (dy, dx)]; W transposed if so asked."""
    if out.numel() == 0:
        return
    if not looks or source.shape[1] == 0:
        out.copy_(torch.zeros_like(out) if bias is None else bias[:, None, None].expand_as(out))
        return
    taps, low, size, runs = _runs(tuple(looks), tuple(out.shape[2:]), tuple(step), source.shape[1])
    padded = _padded(source, (-low[0], -low[1]), size, torch.channels_last)
    pixel = source.shape[1]
    row, image = size[1] * pixel, size[0] * size[1] * pixel
    packed = _packed_taps(weight, taps, plan, transposed)
    shift = None if bias is None else bias.detach().float().contiguous()
    core().tap_sum(
        padded.data_ptr(), (image, row * step[0], pixel * step[1]), packed.data_ptr(),
        0 if shift is None else shift.data_ptr(), name(out.dtype), out.data_ptr(), out.stride(), out.shape, runs,
        torch.get_num_threads(),
    )  # fmt: skip


def _products(
    source: Tensor, weight: Tensor, bias: Tensor | None, plan: TapPlan, geometry: Geometry, adjoint: bool, out: Tensor
) -> None:
    """The convolution of `source` with the masked weight, or its adjoint, into `out`."""
    looks = tap_plan.looks(plan.taps, weight.shape[2:], geometry.corner)
    if not adjoint:
        _tap_sum(source, looks, geometry.stride, weight, plan, False, bias, out)
        return
    (down, right) = geometry.stride
    for row, column, seen in tap_plan.phases(looks, geometry.stride):
        _tap_sum(source, seen, (1, 1), weight, plan, True, bias, out[:, :, row::down, column::right])


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    plan: TapPlan,
    geometry: Geometry,
    activation: str,
    keep_preactivation: bool,
) -> tuple[Tensor, Tensor]:
    """(y, z): z is the pre-activation, empty unless it is to be kept."""
    if _masked_conv2d_cropped.serves(x, weight, plan, geometry):
        z = _masked_conv2d_cropped.forward(x, weight, bias, plan, geometry)
    else:
        z = geometry.empty_result(x, weight)
        _products(x, weight, bias, plan, geometry, geometry.transposed, z)
    if activation == "none":
        return z, z.new_empty(0)
    if activation == activations.GATE:
        y = _tanh_gate_cpu.forward(z, y=geometry.empty_result(x, weight, 2))
    else:
        y = activations.APPLY[activation](z)
    return y, z if keep_preactivation else z.new_empty(0)


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
    """Gradients of x, weight and bias, each None where it is not needed."""
    if saved is not None and activation == activations.GATE:
        grad, _ = _tanh_gate_cpu.backward(grad, saved)
    elif saved is not None:
        grad = activations.backward(activation, grad, saved)
    if _masked_conv2d_cropped.serves(x, weight, plan, geometry):
        return _masked_conv2d_cropped.backward(grad, x, weight, plan, geometry, needs)
    need_x, need_weight, need_bias = needs
    grad_x = None
    if need_x:
        grad_x = torch.empty_like(x, memory_format=tap_plan.format_of(x, weight))
        _products(grad, weight, None, plan, geometry, not geometry.transposed, grad_x)
    source, result = (grad, x) if geometry.transposed else (x, grad)
    grad_weight = _weight_gradient(source, result, weight, plan, geometry) if need_weight else None
    grad_bias = grad.sum((0, 2, 3)) if need_bias else None
    return grad_x, grad_weight, grad_bias


class Rectangle(NamedTuple):
    """Looks at rows [top, bottom] and columns [left, right]; `tap` is the one at the top left."""

    top: int
    bottom: int
    left: int
    right: int
    tap: int


@functools.lru_cache(maxsize=1024)
def _rectangles(looks: tuple[Look, ...]) -> list[Rectangle]:
    """The looks as rectangles, each look in one."""
    strips: list[Rectangle] = []
    for look in sorted(looks):
        if strips and strips[-1].top == look.dy and strips[-1].right == look.dx - 1:
            strips[-1] = strips[-1]._replace(right=look.dx)
        else:
            strips.append(Rectangle(look.dy, look.dy, look.dx, look.dx, look.tap))
    found: list[Rectangle] = []
    for strip in strips:
        above = [one for one in found if (one.bottom, one.left, one.right) == (strip.top - 1, strip.left, strip.right)]
        for one in above:
            found.remove(one)
            strip = one._replace(bottom=strip.bottom)
        found.append(strip)
    return found


def _weight_gradient(source: Tensor, result: Tensor, weight: Tensor, plan: TapPlan, geometry: Geometry) -> Tensor:
    """dW[o, c, tap] = the sum over positions p of result[o, p] source[c, p * stride + (dy, dx)].

    One product for each rectangle of taps: its rows are pairs of a channel and a tap, and it sums along rows of pixels.
    """
    out = torch.zeros_like(weight, memory_format=tap_plan.format_of(weight))
    if source.numel() == 0 or result.numel() == 0:
        return out
    threads = torch.get_num_threads()
    (down, right), (height, width) = geometry.stride, result.shape[2:]
    packed = torch.empty(core().packed_elements(result.shape[0] * height * width, result.shape[1]))
    core().pack_pixels(name(result.dtype), result.data_ptr(), result.stride(), result.shape, packed.data_ptr(), threads)
    looks = tap_plan.looks(plan.taps, weight.shape[2:], geometry.corner)
    for remainder in range(right):
        # Of these columns of the source, neighbouring positions see neighbours.
        seen = tuple(Look(one.dy, one.dx // right, one.tap) for one in looks if one.dx % right == remainder)
        columns = source[..., remainder::right]
        if not seen or columns.numel() == 0:
            continue
        low, size = _reach(seen, (height, width), (down, 1))
        padded = _padded(columns, (-low[0], -low[1]), size, torch.contiguous_format)
        image, plane, row, _ = padded.stride()
        runs = [(n * image + y * down * row, width) for n in range(result.shape[0]) for y in range(height)]
        for one in _rectangles(seen):
            start = (one.top - low[0]) * row + one.left - low[1]
            corner = one.tap * out.stride(3)
            shape = (weight.shape[1], weight.shape[0], one.bottom - one.top + 1, one.right - one.left + 1)
            strides = (out.stride(1), out.stride(0), out.stride(2), out.stride(3) * right)
            core().tap_sum(
                padded.data_ptr() + start * padded.element_size(), (plane, row, 1), packed.data_ptr(), 0,
                name(out.dtype), out.data_ptr() + corner * out.element_size(), strides, shape, runs, threads,
            )  # fmt: skip
    if plan.channel_mask is not None:
        out[:, :, plan.masked // weight.shape[3], plan.masked % weight.shape[3]].mul_(plan.channel_mask)
    return out
