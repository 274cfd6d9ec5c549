"""An LSTM scanned over an image: c = f * c' + i * g, h = o * tanh(c), from gates z = x + W * h', a convolution of h'.

Of each pixel's gates, o, f and i go through a sigmoid and g through tanh; c' is the cell before it, and h' the hidden
units before it that W convolves. Along rows, c' and h' are the row above. Along diagonals, rows are set off by one
column each, so that a column of the skewed image holds one pixel of each row; before a pixel then lie its left
neighbour, whose cell is c', and the pixel above it. Antidiagonals are the same for the image seen in a mirror.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ALONG = ("rows", "diagonals", "antidiagonals")


def skew(x: Tensor, along: str) -> Tensor:
    """[B, channels, rows, columns] -> [B, channels, steps, lanes]; lanes that have no pixel at a step are 0."""
    if along == "rows":
        return x
    rows, columns = x.shape[2:]
    lane = torch.arange(rows, device=x.device)
    column = torch.arange(rows + columns - 1, device=x.device)[:, None] - lane
    image = x.flip(3) if along == "antidiagonals" else x
    picked = image[:, :, lane, column.clamp(0, columns - 1)]
    return picked.masked_fill((column < 0) | (column >= columns), 0)


def unskew(steps: Tensor, along: str) -> Tensor:
    """The image whose skewed form this is."""
    if along == "rows":
        return steps
    rows = steps.shape[3]
    lane = torch.arange(rows, device=steps.device)[:, None]
    column = torch.arange(steps.shape[2] - rows + 1, device=steps.device)
    image = steps[:, :, lane + column, lane]
    return image.flip(3) if along == "antidiagonals" else image


def lstm_scan(
    x_gates: Tensor, weight: Tensor, h: Tensor | None = None, c: Tensor | None = None, along: str = "rows"
) -> tuple[Tensor, Tensor, Tensor]:
    """h [B, H, rows, columns] of all pixels, and h and c after the last step, from gates [B, 4 H, rows, columns]."""
    steps = skew(x_gates, along)
    k = weight.shape[2]
    if h is None or c is None:
        h = c = steps.new_zeros(steps.shape[0], weight.shape[1], steps.shape[3])
    out = []
    for x in steps.unbind(2):
        z = x + F.conv1d(F.pad(h, (k // 2, (k - 1) // 2)), weight)
        o, f, i, g = z.chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        out.append(h)
    return unskew(torch.stack(out, 2), along), h, c
