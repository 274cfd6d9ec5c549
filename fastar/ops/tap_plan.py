"""Which taps of a convolution's kernel survive its mask, and where they look.

A mask over [out, in, height, width] that removes whole taps, and channels of at most one tap, is a list of taps and one
small matrix. Everything else follows from where taps look: output position p of a convolution sees, by tap (ky, kx),
the input at ``p * stride + (ky, kx) - (top, left)``. Those offsets are all that the products know of kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastar.reference.masked_conv2d import colours_see


@dataclass(frozen=True)
class TapPlan:
    """The surviving taps of a kernel.

    `taps` are numbers ``ky * width + kx`` in rising order. Where of one of them, `masked`, only some channels survive,
    `channel_mask` (bool [out, in], contiguous) says which.
    """

    taps: tuple[int, ...]
    masked: int = -1
    channel_mask: Tensor | None = None

    def to(self, *args: Any, **kwargs: Any) -> TapPlan:
        """The plan on another device."""
        if self.channel_mask is None:
            return self
        return TapPlan(self.taps, self.masked, self.channel_mask.to(*args, **kwargs))

    def dense(self, shape: Sequence[int], device: torch.device) -> Tensor | None:
        """The mask as bool [out, in, height, width]; None where it removes nothing."""
        if len(self.taps) == shape[2] * shape[3] and self.channel_mask is None:
            return None
        mask = torch.zeros(shape, dtype=torch.bool, device=device)
        flat = mask.view(shape[0], shape[1], -1)
        flat[:, :, list(self.taps)] = True
        if self.channel_mask is not None:
            flat[:, :, self.masked] = self.channel_mask
        return mask


@dataclass(frozen=True)
class Geometry:
    """Stride (down, right) and padding (left, right, top, bottom) of a convolution or, transposed, of its adjoint."""

    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    transposed: bool = False

    @property
    def corner(self) -> tuple[int, int]:
        """Rows of padding above and columns on the left."""
        return self.padding[2], self.padding[0]

    def result_size(self, size: Sequence[int], kernel: Sequence[int]) -> tuple[int, int]:
        """Height and width of the result from those of x."""
        around = (self.padding[2] + self.padding[3], self.padding[0] + self.padding[1])
        if self.transposed:
            return (
                (size[0] - 1) * self.stride[0] + kernel[0] - around[0],
                (size[1] - 1) * self.stride[1] + kernel[1] - around[1],
            )
        return (
            (size[0] + around[0] - kernel[0]) // self.stride[0] + 1,
            (size[1] + around[1] - kernel[1]) // self.stride[1] + 1,
        )

    def channels(self, weight: Tensor) -> int:
        """Channels of the result."""
        return weight.shape[1] if self.transposed else weight.shape[0]

    def empty_result(self, x: Tensor, weight: Tensor, parts: int = 1) -> Tensor:
        """The tensor that the result goes to, channels last where x or the weight is, as torch's own has it.

        `parts`: a gate leaves one channel of two.
        """
        size = self.result_size(x.shape[2:], weight.shape[2:])
        channels = self.channels(weight) // parts
        return torch.empty(
            x.shape[0], channels, *size, dtype=x.dtype, device=x.device, memory_format=format_of(x, weight)
        )


def format_of(*tensors: Tensor) -> torch.memory_format:
    """Channels last where one of the tensors is that and not contiguous as well."""
    for t in tensors:
        if t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous():
            return torch.channels_last
    return torch.contiguous_format


def full(kernel: Sequence[int]) -> TapPlan:
    """Every tap survives."""
    return TapPlan(tuple(range(kernel[0] * kernel[1])))


def raster(
    shape: Sequence[int],
    mask_type: str,
    colours: int = 1,
    colour_layout: str = "interleaved",
    device: torch.device | str | None = None,
) -> TapPlan:
    """The taps before the centre of a kernel [out, in, height, width], and what types "A" and "B" see of the centre."""
    outputs, inputs, height, width = shape
    centre = (height // 2) * width + width // 2
    before = tuple(range(centre))
    if colours == 1:
        return TapPlan(before if mask_type == "A" else (*before, centre))
    return TapPlan((*before, centre), centre, colours_see(outputs, inputs, mask_type, colours, colour_layout, device))


class Look(NamedTuple):
    """Tap number `tap` looks (dy, dx) away."""

    dy: int
    dx: int
    tap: int


def looks(taps: Sequence[int], kernel: Sequence[int], corner: Sequence[int]) -> tuple[Look, ...]:
    """Where the taps of a convolution look whose padding has this many rows above and columns on the left."""
    return _looks(tuple(taps), kernel[1], tuple(corner))


@functools.lru_cache(maxsize=1024)
def _looks(taps: tuple[int, ...], width: int, corner: tuple[int, int]) -> tuple[Look, ...]:
    return tuple(Look(tap // width - corner[0], tap % width - corner[1], tap) for tap in taps)


class Phase(NamedTuple):
    """Input positions (row, column) + stride * p, and where each of them looks among the outputs that see it."""

    row: int
    column: int
    looks: list[Look]


def phases(forward: Sequence[Look], stride: Sequence[int]) -> Iterator[Phase]:
    """The adjoint of a convolution, as one convolution with stride 1 for each remainder of the input position.

    An input at y is seen by the output at (y - dy) / stride where that is whole.
    """
    for row in range(stride[0]):
        for column in range(stride[1]):
            yield Phase(
                row,
                column,
                sorted(
                    Look((row - one.dy) // stride[0], (column - one.dx) // stride[1], one.tap)
                    for one in forward
                    if (row - one.dy) % stride[0] == 0 and (column - one.dx) % stride[1] == 0
                ),
            )
