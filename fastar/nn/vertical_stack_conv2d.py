"""VerticalStackConv2d: the vertical stack's convolution of a gated PixelCNN."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastar.nn._tap_conv2d import TapConv2d, pair
from fastar.ops.masked_conv2d import geometry_of
from fastar.ops.tap_plan import TapPlan


class VerticalStackConv2d(TapConv2d):
    """y = act(conv2d(x, W * M) + b), where M keeps the rows of the kernel above its centre, and with type "B" that one.

    Type "A" belongs to the first layer. The output of type "B" at a pixel holds its own row: shift it down by one row
    before it feeds the horizontal stack, whose convolution is `MaskedConv2d` with a kernel of (1, width). A kernel that
    was stored without the rows below its centre is `ShiftedConv2d` with direction "down".

    Args:
        in_channels: channels of the input.
        out_channels: channels of the convolution; of the output too, but for twice as many with the activation
            concat_elu and half as many with tanh_gate.
        kernel_size: odd, one integer or (height, width).
        mask_type: "A" or "B".
        bias: learn an additive bias.
        activation: none, relu, elu, concat_elu, gelu, gelu_tanh, tanh, sigmoid, silu, or tanh_gate: tanh of the first
            half of the channels times sigmoid of the second.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        mask_type: str,
        *,
        bias: bool = True,
        activation: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        height, width = pair("kernel_size", kernel_size)
        if mask_type not in ("A", "B"):
            raise ValueError(f"mask_type: expected one of A, B, got {mask_type!r}")
        if height % 2 == 0 or width % 2 == 0:
            raise ValueError(f"kernel_size: expected odd sizes, which have a centre to mask, got {[height, width]}")
        rows = height // 2 + (mask_type == "B")
        super().__init__(
            in_channels,
            out_channels,
            (height, width),
            lambda shape: TapPlan(tuple(range(rows * width))),
            geometry_of((height, width)),
            bias,
            activation,
            device,
            dtype,
        )
        self.mask_type = mask_type

    def extra_repr(self) -> str:
        return self._describe(mask_type=self.mask_type)
