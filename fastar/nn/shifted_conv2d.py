"""ShiftedConv2d: the down-shifted and down-right-shifted convolutions of PixelCNN++, with stride and transposed too."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastar.nn._tap_conv2d import TapConv2d, pair
from fastar.ops import tap_plan
from fastar.ops.tap_plan import Geometry

DIRECTIONS = ("down", "down_right")


class ShiftedConv2d(TapConv2d):
    """y = act(conv2d(pad(x), W) + b), padded on one side: the kernel's last row lies on the pixel's own.

    Direction "down" centres the kernel's columns: a pixel sees its own row on both sides, and rows above. Direction
    "down_right" puts the kernel's last column on the pixel: it sees what lies above and to the left, itself included.
    With a stride every `stride`-th output is computed. The twin is `torch.nn.Conv2d` without padding, applied to the
    padded input.

    Transposed, the image grows by the stride: ``conv_transpose2d`` (its twin is `torch.nn.ConvTranspose2d`) cropped so
    that, again, a pixel sees its own row and rows above, and columns as the direction says.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the convolution; of the output too, but for twice as many with the activation
            concat_elu and half as many with tanh_gate.
        kernel_size: one integer or (height, width); the width odd where the direction is "down".
        direction: "down" or "down_right".
        stride: one integer or (down, right).
        transposed: grow instead of shrink; the kernel must be at least as large as the stride.
        bias: learn an additive bias.
        activation: none, relu, elu, concat_elu, gelu, gelu_tanh, tanh, sigmoid, silu, or tanh_gate: tanh of the first
            half of the channels times sigmoid of the second.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        direction: str,
        *,
        stride: int | Sequence[int] = 1,
        transposed: bool = False,
        bias: bool = True,
        activation: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        height, width = pair("kernel_size", kernel_size)
        down, right = pair("stride", stride)
        if direction not in DIRECTIONS:
            raise ValueError(f"direction: expected one of {', '.join(DIRECTIONS)}, got {direction!r}")
        if direction == "down" and width % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd width for direction 'down', got {[height, width]}")
        if transposed:
            left = width // 2 if direction == "down" else 0
            padding = (left, width - right - left, 0, height - down)
            if min(padding) < 0:
                raise ValueError(
                    f"kernel_size: expected one that reaches over the stride {[down, right]}, got {[height, width]}"
                )
        else:
            left = width // 2 if direction == "down" else width - 1
            padding = (left, width - 1 - left, height - 1, 0)
        super().__init__(
            in_channels,
            out_channels,
            (height, width),
            lambda shape: tap_plan.full(shape[2:]),
            Geometry((down, right), padding, bool(transposed)),
            bias,
            activation,
            device,
            dtype,
        )
        self.direction = direction
        self.stride = (down, right)

    def extra_repr(self) -> str:
        return self._describe(
            direction=self.direction,
            stride=self.stride if self.stride != (1, 1) else None,
            transposed=self.geometry.transposed or None,
        )
