"""What PixelRNN's layers share: a masked convolution from input to gates, and the weight from state to gates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastar import _checks
from fastar.nn._tap_conv2d import TapConv2d
from fastar.ops.masked_conv2d import geometry_of, plan_of
from fastar.ops.tap_plan import TapPlan


class ImageLSTM(nn.Module):
    """`input_to_state`, a masked convolution to 4 * hidden gates, and `state_to_state` [4 hidden, hidden, taps].

    Gates are o, f, i and g, `hidden` channels each, in this order. Where there are colours, a hidden unit has the same
    one in all four of its gates, and sees of its own pixel what that colour may.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        width: int,
        taps: int,
        mask_type: str,
        colours: int,
        colour_layout: str,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.in_channels = _checks.positive("in_channels", in_channels)
        self.hidden = _checks.positive("hidden", hidden)
        if mask_type is None:
            raise ValueError("mask_type: expected one of A, B, got None")
        self.mask_type, self.colours, self.colour_layout = mask_type, colours, colour_layout

        def plan(shape: Sequence[int]) -> TapPlan:
            one = plan_of((hidden, *shape[1:]), mask_type, colours, colour_layout)
            mask = None if one.channel_mask is None else one.channel_mask.repeat(4, 1)
            return TapPlan(one.taps, one.masked, mask)

        kernel = (1, width)
        self.input_to_state = TapConv2d(
            in_channels, 4 * hidden, kernel, plan, geometry_of(kernel), bias, None, device, dtype
        )
        self.state_to_state = nn.Parameter(torch.empty(4 * hidden, hidden, taps, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform weights within 1 / sqrt(inputs) of each product, as torch's convolutions have them."""
        self.input_to_state.reset_parameters()
        bound = 1 / math.sqrt(self.state_to_state[0].numel())
        nn.init.uniform_(self.state_to_state, -bound, bound)

    def gates_of(self, x: Tensor) -> Tensor:
        """What the input adds to the gates, [B, 4 hidden, rows, columns]."""
        _checks.shape("x", _checks.tensor("x", x), ["B", self.in_channels, "rows", "columns"])
        # The scan reads a pixel's gates together.
        gates: Tensor = self.input_to_state(x.contiguous(memory_format=torch.channels_last))
        return gates

    def zeros(self, *shape: int) -> Tensor:
        return self.state_to_state.new_zeros(shape)

    def extra_repr(self) -> str:
        parts = [str(self.in_channels), str(self.hidden), f"mask_type={self.mask_type!r}"]
        if self.colours > 1:
            parts += [f"colours={self.colours}", f"colour_layout={self.colour_layout!r}"]
        return ", ".join(parts)


def check_batch(batch: object) -> int:
    """A number of images, 0 among them."""
    if isinstance(batch, bool) or not isinstance(batch, int):
        raise TypeError(f"batch: expected an integer of at least 0, got {type(batch).__name__}")
    if batch < 0:
        raise ValueError(f"batch: expected an integer of at least 0, got {batch}")
    return batch
