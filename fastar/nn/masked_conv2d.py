"""MaskedConv2d: the masked convolution of PixelCNN."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastar.nn._tap_conv2d import TapConv2d, pair
from fastar.ops.masked_conv2d import geometry_of, plan_of
from fastar.reference.activation import GATE


class MaskedConv2d(TapConv2d):
    """y = act(conv2d(x, W * M) + b): a convolution that sees nothing after the centre of its kernel in raster order.

    Taps before the centre are seen. At the centre type "A" sees nothing and type "B" everything; with `colours` > 1 an
    output of colour o sees the inputs of colours < o ("A") or <= o ("B"). Initialised as `torch.nn.Conv2d`, whose state
    dict it loads and which loads its own; the mask is in neither.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the convolution; of the output too, but for twice as many with the activation
            concat_elu and half as many with tanh_gate.
        kernel_size: odd, one integer or (height, width).
        mask_type: "A" (for the first layer) or "B".
        colours: number of colour groups among the channels.
        colour_layout: channel c has colour ``c mod colours`` ("interleaved") or ``floor(c * colours / channels)``
            ("contiguous"); neither needs to divide.
        padding: "same", or integers as in `torch.nn.Conv2d`.
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
        colours: int = 1,
        colour_layout: str = "interleaved",
        padding: str | int | Sequence[int] = "same",
        bias: bool = True,
        activation: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        kernel = pair("kernel_size", kernel_size)
        if mask_type is None:
            raise ValueError("mask_type: expected one of A, B, got None")
        super().__init__(
            in_channels,
            out_channels,
            kernel,
            lambda shape: plan_of(shape, mask_type, colours, colour_layout, gated=activation == GATE),
            geometry_of(kernel, 1, padding),
            bias,
            activation,
            device,
            dtype,
        )
        self.mask_type = mask_type
        self.colours = colours
        self.colour_layout = colour_layout
        self.padding = padding

    def extra_repr(self) -> str:
        coloured = self.colours > 1
        return self._describe(
            mask_type=self.mask_type,
            colours=self.colours if coloured else None,
            colour_layout=self.colour_layout if coloured else None,
            padding=self.padding,
        )
