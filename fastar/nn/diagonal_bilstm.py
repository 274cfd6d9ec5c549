"""DiagonalBiLSTM: PixelRNN's LSTM along the diagonals in both directions, which sees all earlier pixels."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastar import _checks
from fastar.nn.diagonal_lstm import DiagonalLSTM, DiagonalState


class DiagonalBiState(NamedTuple):
    """The state from left to right; h [B, hidden, columns] of the last whole row from right to left; this row's inputs.

    `row` [B, in_channels, columns] is filled up to the state's column: from right to left a row can only be scanned
    once it is complete.
    """

    left: DiagonalState
    right_above: Tensor
    row: Tensor


class DiagonalBiLSTM(nn.Module):
    """h(r, c) = h_left(r, c) + h_right(r - 1, c): a diagonal LSTM from each side, the right one's output a row lower.

    x [B, in_channels, rows, columns] -> h [B, hidden, rows, columns]. Together they see every pixel that comes earlier
    in raster order and, as the mask says, the pixel itself; the shift keeps what follows in the row out of sight.

    Args:
        in_channels: channels of the input.
        hidden: hidden units per pixel.
        mask_type: "B", or with colours "A", as in `DiagonalLSTM`.
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
        colours: int = 1,
        colour_layout: str = "interleaved",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()

        def side(direction: str) -> DiagonalLSTM:
            return DiagonalLSTM(
                in_channels,
                hidden,
                mask_type=mask_type,
                direction=direction,
                colours=colours,
                colour_layout=colour_layout,
                bias=bias,
                device=device,
                dtype=dtype,
            )

        self.left = side("left_to_right")
        self.right = side("right_to_left")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.left(x) + F.pad(self.right(x), (0, 0, 1, -1))
        return y

    def init_state(self, batch: int, columns: int) -> DiagonalBiState:
        """What the first pixel of images of this many columns sees."""
        left = self.left.init_state(batch, columns)
        return DiagonalBiState(left, left.above, self.left.zeros(batch, self.left.in_channels, columns))

    def step(self, x_t: Tensor, state: DiagonalBiState) -> tuple[Tensor, DiagonalBiState]:
        """h [B, hidden] of the next pixel in raster order from its input [B, in_channels].

        The last pixel of a row takes as long as its whole row: then the right side's scan of it follows.
        """
        left, right_above, row = state
        column, columns = left.column, left.above.shape[2]
        y, left = self.left.step(x_t, left)
        _checks.shape("state.right_above", _checks.tensor("state.right_above", right_above), left.above.shape)
        expected = (x_t.shape[0], self.left.in_channels, columns)
        _checks.shape("state.row", _checks.tensor("state.row", row), expected)
        y = y + right_above[:, :, column]
        row = row.clone()
        row[:, :, column] = x_t
        if column + 1 == columns:
            start = torch.zeros_like(right_above[:, :, 0])
            right = DiagonalState(right_above, start, start, 0)
            for place in reversed(range(columns)):
                _, right = self.right.step(row[:, :, place], right)
            right_above = right.above
        return y, DiagonalBiState(left, right_above, row)
