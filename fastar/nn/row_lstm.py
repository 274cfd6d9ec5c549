"""RowLSTM: PixelRNN's LSTM from the top row of an image to the bottom."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastar import _checks
from fastar.nn._image_lstm import ImageLSTM, check_batch
from fastar.ops.lstm_scan import lstm_scan


class RowState(NamedTuple):
    """Hidden units and cells [B, hidden, columns] of the row above."""

    h: Tensor
    c: Tensor


class RowLSTM(ImageLSTM):
    """[o f i g] = W_s * h' + W_i * x, c = sig(f) c' + sig(i) tanh(g), h = sig(o) tanh(c); ' is the row above.

    x [B, in_channels, rows, columns] -> h [B, hidden, rows, columns]. W_i is a masked 1 x k convolution in the pixel's
    own row, W_s a convolution of k columns of the row above: a pixel sees a triangle above it, k // 2 columns wider
    with each row, and of its own row k // 2 pixels before it.

    Args:
        in_channels: channels of the input.
        hidden: hidden units per pixel.
        kernel_size: k, odd.
        mask_type: "A" (the pixel itself is not seen; for a first layer) or "B".
        colours: number of colour groups among the channels, which see each other as in `MaskedConv2d`.
        colour_layout: "interleaved" or "contiguous".
        bias: learn an additive bias of the gates.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        kernel_size: int = 3,
        *,
        mask_type: str,
        colours: int = 1,
        colour_layout: str = "interleaved",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        k = _checks.positive("kernel_size", kernel_size)
        if k % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd size, which has a centre, got {k}")
        super().__init__(in_channels, hidden, k, k, mask_type, colours, colour_layout, bias, device, dtype)
        self.kernel_size = k

    def forward(self, x: Tensor) -> Tensor:
        h = lstm_scan(self.gates_of(x), self.state_to_state)
        assert isinstance(h, Tensor)
        return h

    def init_state(self, batch: int, columns: int) -> RowState:
        """What lies above the first row of images of this many columns."""
        shape = (check_batch(batch), self.hidden, _checks.positive("columns", columns))
        return RowState(self.zeros(*shape), self.zeros(*shape))

    def step(self, x_t: Tensor, state: RowState) -> tuple[Tensor, RowState]:
        """h [B, hidden, columns] of the next row from its input [B, in_channels, columns]."""
        _checks.shape("x_t", _checks.tensor("x_t", x_t), ["B", self.in_channels, "columns"])
        result = lstm_scan(self.gates_of(x_t[:, :, None]), self.state_to_state, state=state, return_state=True)
        assert isinstance(result, tuple)
        h, last = result
        return h[:, :, 0], RowState(*last)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kernel_size={self.kernel_size}"
