"""DiagonalLSTM: PixelRNN's LSTM along the diagonals of an image, from one side to the other."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastar import _checks
from fastar.nn._image_lstm import ImageLSTM, check_batch
from fastar.ops.lstm_scan import lstm_scan

DIRECTIONS = ("left_to_right", "right_to_left")


class DiagonalState(NamedTuple):
    """What the next pixel sees, `column` pixels after the beginning of its row.

    `above` [B, hidden, columns]: the last h of each column. `h` and `c` [B, hidden]: those of the pixel before it in
    its row, 0 where it is the first.
    """

    above: Tensor
    h: Tensor
    c: Tensor
    column: int


class DiagonalLSTM(ImageLSTM):
    """[o f i g] = W_s * h' + W_i x, c = sig(f) c' + sig(i) tanh(g), h = sig(o) tanh(c); ' is what lies before a pixel.

    x [B, in_channels, rows, columns] -> h [B, hidden, rows, columns]. W_i is a masked 1 x 1 convolution. W_s takes h of
    the pixel above (its tap 0) and of the neighbour on the side where the scan begins (tap 1), whose cell is c'. From
    left to right a pixel sees all pixels above and to the left of it; from right to left those above and to the right,
    with those on its own row, which come later in raster order: `DiagonalBiLSTM` shifts that output down.

    Args:
        in_channels: channels of the input.
        hidden: hidden units per pixel.
        mask_type: "B", or with colours "A": one colour alone would see nothing of the image by "A".
        direction: "left_to_right" or "right_to_left".
        colours: number of colour groups among the channels, which see each other as in `MaskedConv2d`.
        colour_layout: "interleaved" or "contiguous".
        bias: learn an additive bias of the gates.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        *,
        mask_type: str,
        direction: str = "left_to_right",
        colours: int = 1,
        colour_layout: str = "interleaved",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if direction not in DIRECTIONS:
            raise ValueError(f"direction: expected one of {', '.join(DIRECTIONS)}, got {direction!r}")
        if mask_type == "A" and colours == 1:
            raise ValueError("mask_type: expected 'B' for one colour, of which a 1 x 1 kernel sees nothing by 'A'")
        super().__init__(in_channels, hidden, 1, 2, mask_type, colours, colour_layout, bias, device, dtype)
        self.direction = direction

    def forward(self, x: Tensor) -> Tensor:
        along = "diagonals" if self.direction == "left_to_right" else "antidiagonals"
        h = lstm_scan(self.gates_of(x), self.state_to_state, along=along)
        assert isinstance(h, Tensor)
        return h

    def init_state(self, batch: int, columns: int) -> DiagonalState:
        """What the first pixel of images of this many columns sees."""
        start = self.zeros(check_batch(batch), self.hidden, _checks.positive("columns", columns))
        return DiagonalState(start, start[:, :, 0], start[:, :, 0], 0)

    def step(self, x_t: Tensor, state: DiagonalState) -> tuple[Tensor, DiagonalState]:
        """h [B, hidden] of the next pixel from its input [B, in_channels]: row by row, each in the scan's direction."""
        _checks.shape("x_t", _checks.tensor("x_t", x_t), ["B", self.in_channels])
        above, h, c, column = state
        _checks.shape("state.above", _checks.tensor("state.above", above), [x_t.shape[0], self.hidden, "columns"])
        for name, tensor in (("state.h", h), ("state.c", c)):
            _checks.shape(name, _checks.tensor(name, tensor), above.shape[:2])
        columns = above.shape[2]
        if not 0 <= column < columns:
            raise ValueError(f"state.column: expected one of {columns} columns, got {column}")
        place = column if self.direction == "left_to_right" else columns - 1 - column
        gates = self.gates_of(x_t[:, :, None, None])[:, :, 0, 0]
        gates = gates + F.linear(above[:, :, place], self.state_to_state[:, :, 0])
        gates = gates + F.linear(h, self.state_to_state[:, :, 1])
        o, f, i, g = gates.chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        y = torch.sigmoid(o) * torch.tanh(c)
        above = above.clone()
        above[:, :, place] = y
        if column + 1 == columns:
            return y, DiagonalState(above, torch.zeros_like(y), torch.zeros_like(c), 0)
        return y, DiagonalState(above, y, c, column + 1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, direction={self.direction!r}"
