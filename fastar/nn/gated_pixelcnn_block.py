"""GatedPixelCNNBlock: one layer of a gated PixelCNN, two stacks of convolutions that leave no blind spot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastar import _checks
from fastar.nn._tap_conv2d import TapConv2d, pair
from fastar.nn.masked_conv2d import MaskedConv2d
from fastar.nn.vertical_stack_conv2d import VerticalStackConv2d
from fastar.ops import tap_plan
from fastar.ops.masked_conv2d import MASK_TYPES, geometry_of, plan_of, tap_conv2d
from fastar.ops.tanh_gate import tanh_gate
from fastar.ops.tap_plan import Geometry, TapPlan

# A 1x1 kernel, at the pixel itself.
ONE_TAP, SAME_PIXEL = TapPlan((0,)), Geometry((1, 1), (0, 0, 0, 0))

VERTICAL_FORMS = ("masked", "cropped", "factored")


class GatedPixelCNNBlock(nn.Module):
    """A vertical stack over the rows above, and a horizontal one over that and its own row (van den Oord et al., 2016).

    With gate(z) = tanh(first half of z's channels) * sigmoid(second half), for stacks v and h::

        z  = vertical(v)
        v' = gate(z + cond_v)
        h' = horizontal_out(gate(horizontal(h) + vertical_to_horizontal(shift(z)) + cond_h)) [+ h]

    `shift` moves z down by one row, since at a pixel z holds the pixel's own row, right of the pixel included. The
    first block of a model has type "A" and takes the image as both v and h; the following ones have type "B". Together
    they see every earlier pixel in reach, and no later one.

    Published models differ: in the `vertical` convolution, which is height x width with a mask, the same stored without
    the rows that the mask removes, or a product of 1 x width and height x 1; and in whether z is shifted. Where it is
    not (``shift=False``), the vertical stack of type "A" sees only rows above the pixel, and all later ones keep that.

    Args:
        in_channels: channels of v and h.
        channels: channels of v' and h'.
        kernel_size: odd, one integer or (height, width); the horizontal stack has 1 x width.
        mask_type: "A" (for the first block) or "B", as for `MaskedConv2d`.
        colours: number of colour groups among the channels of h and h'; of the rows above, all colours are seen.
        colour_layout: "interleaved" or "contiguous", as for `MaskedConv2d`.
        vertical: "masked", "cropped" or "factored", see above.
        shift: feed z to the horizontal stack one row further down.
        residual: add h to h'; None does so in blocks of type "B" whose channels stay the same.
        cond_channels: size of the vector ``cond`` [batch, cond_channels]; each stack has a matrix for it.
        cond_map_channels: channels of ``cond_map`` [batch, cond_map_channels, height, width]; each stack has a 1 x 1
            convolution for it.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int | Sequence[int],
        mask_type: str,
        *,
        colours: int = 1,
        colour_layout: str = "interleaved",
        vertical: str = "masked",
        shift: bool = True,
        residual: bool | None = None,
        cond_channels: int = 0,
        cond_map_channels: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = _checks.positive("in_channels", in_channels)
        self.channels = _checks.positive("channels", channels)
        self.kernel_size = height, width = pair("kernel_size", kernel_size)
        if height % 2 == 0 or width % 2 == 0:
            raise ValueError(f"kernel_size: expected odd sizes, which have a centre to mask, got {[height, width]}")
        if mask_type not in MASK_TYPES:
            raise ValueError(f"mask_type: expected one of {', '.join(MASK_TYPES)}, got {mask_type!r}")
        if vertical not in VERTICAL_FORMS:
            raise ValueError(f"vertical: expected one of {', '.join(VERTICAL_FORMS)}, got {vertical!r}")
        self.mask_type = mask_type
        self.shift = bool(shift)
        fits = mask_type == "B" and in_channels == channels
        if residual and not fits:
            raise ValueError(
                "residual: expected False for type A, whose input holds the pixel itself, and where channels change;"
                f" got type {mask_type} from {in_channels} to {channels} channels"
            )
        self.residual = fits if residual is None else residual
        for name, count in (("cond_channels", cond_channels), ("cond_map_channels", cond_map_channels)):
            if count != 0:
                _checks.positive(name, count)
        self.cond_channels, self.cond_map_channels = cond_channels, cond_map_channels

        placed: dict[str, Any] = {"device": device, "dtype": dtype}
        own_row = self.shift or mask_type == "B"
        self.vertical = _vertical(vertical, in_channels, channels, (height, width), own_row, placed)
        self.vertical_to_horizontal = nn.Conv2d(2 * channels, 2 * channels, 1, **placed)
        # Cropped, the kernel's columns right of the centre are gone; those that the mask leaves keep their numbers.
        kernel = (1, width // 2 + 1 if vertical == "cropped" else width)
        self.horizontal = TapConv2d(
            in_channels,
            2 * channels,
            kernel,
            lambda shape: plan_of((*shape[:2], 1, width), mask_type, colours, colour_layout, gated=True),
            Geometry((1, 1), (width // 2, kernel[1] - 1 - width // 2, 0, 0)),
            True,
            None,
            **placed,
        )
        self.horizontal_out = MaskedConv2d(
            channels, channels, 1, "B", colours=colours, colour_layout=colour_layout, **placed
        )
        stacks = ("vertical", "horizontal")
        self.cond = nn.ModuleDict(
            {name: nn.Linear(cond_channels, 2 * channels, bias=False, **placed) for name in stacks if cond_channels}
        )
        self.cond_map = nn.ModuleDict(
            {
                name: nn.Conv2d(cond_map_channels, 2 * channels, 1, bias=False, **placed)
                for name in stacks
                if cond_map_channels
            }
        )

    def forward(
        self, vertical: Tensor, horizontal: Tensor, cond: Tensor | None = None, cond_map: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The two stacks' outputs (v', h'), each [batch, channels, height, width]."""
        for name, stack in (("vertical", vertical), ("horizontal", horizontal)):
            _checks.shape(name, _checks.tensor(name, stack), ["batch", self.in_channels, "height", "width"])
        if vertical.shape != horizontal.shape:
            raise ValueError(
                f"horizontal: expected the shape of vertical, {list(vertical.shape)}, got {list(horizontal.shape)}"
            )
        self._check_condition("cond", cond, self.cond_channels, [vertical.shape[0], self.cond_channels])
        size = [vertical.shape[0], self.cond_map_channels, *vertical.shape[2:]]
        self._check_condition("cond_map", cond_map, self.cond_map_channels, size)

        z = self.vertical(vertical)
        own, mix = self.horizontal, self.vertical_to_horizontal
        assert own.bias is not None
        assert mix.bias is not None
        # Both biases in one: z goes to the next row without one, since above the first row there is nothing to add.
        across = tap_conv2d(horizontal, own.weight, own.bias + mix.bias, own.plan, own.geometry, "none")
        above = tap_conv2d(z, mix.weight, None, ONE_TAP, SAME_PIXEL, "none")
        if not self.shift:
            across = across.add_(above)
        across = self._conditioned(across, "horizontal", cond, cond_map)
        gated = self.horizontal_out(tanh_gate(across, above if self.shift else None))
        v = tanh_gate(self._conditioned(z, "vertical", cond, cond_map))
        if not self.residual:
            return v, gated
        # In place where autocast has not left the input wider than what was made of it.
        return v, gated.add_(horizontal) if gated.dtype == horizontal.dtype else gated + horizontal

    def _conditioned(self, z: Tensor, stack: str, cond: Tensor | None, cond_map: Tensor | None) -> Tensor:
        if cond is not None:
            z = z + self.cond[stack](cond)[:, :, None, None]
        return z if cond_map is None else z + self.cond_map[stack](cond_map)

    def _check_condition(self, name: str, value: Tensor | None, channels: int, shape: Sequence[int]) -> None:
        if (value is None) != (channels == 0):
            wanted = f"shape {list(shape)}" if channels else f"None from a block without {name}_channels"
            raise ValueError(f"{name}: expected {wanted}, got {'None' if value is None else type(value).__name__}")
        if value is not None:
            _checks.shape(name, _checks.tensor(name, value), shape)

    def extra_repr(self) -> str:
        parts = [str(self.in_channels), str(self.channels), f"kernel_size={self.kernel_size}"]
        parts += [f"mask_type={self.mask_type!r}", f"shift={self.shift}", f"residual={self.residual}"]
        return ", ".join(parts)


def _vertical(
    form: str, in_channels: int, channels: int, kernel: tuple[int, int], own_row: bool, placed: dict[str, Any]
) -> nn.Module:
    """The convolution over the rows above and, with `own_row`, the pixel's own, to 2 * channels."""
    height, width = kernel
    mask_type = "B" if own_row else "A"
    if form == "masked":
        return VerticalStackConv2d(in_channels, 2 * channels, kernel, mask_type, **placed)
    if form == "cropped":
        rows = height // 2 + own_row
        return TapConv2d(
            in_channels,
            2 * channels,
            (height // 2 + 1, width),
            lambda shape: TapPlan(tuple(range(rows * width))),
            Geometry((1, 1), (width // 2, width // 2, height // 2, 0)),
            True,
            None,
            **placed,
        )
    across = TapConv2d(
        in_channels,
        channels,
        (1, width),
        lambda shape: tap_plan.full(shape[2:]),
        geometry_of((1, width)),
        True,
        None,
        **placed,
    )
    return nn.Sequential(across, VerticalStackConv2d(channels, 2 * channels, (height, 1), mask_type, **placed))
