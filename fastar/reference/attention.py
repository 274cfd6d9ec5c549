"""y = softmax(q k^T * scale + mask) v, where the mask leaves the position itself and earlier ones."""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor


def visible(
    queries: Tensor, keys: Tensor, window: int | None = None, local: tuple[int, int, int] | None = None
) -> Tensor:
    """Which of the positions `keys` [S] each of the positions `queries` [T] sees, bool [T, S].

    None later than itself; with a `window`, the last `window` up to itself; with local = (rows, columns, width), where
    position t is the pixel (t // width, t % width) of an image, those in its own and the `rows` rows above that are at
    most `columns` columns away.
    """
    queries, keys = queries[:, None], keys[None, :]
    seen = keys <= queries
    if window is not None:
        seen = seen & (keys > queries - window)
    if local is not None:
        rows, columns, width = local
        seen = seen & (queries // width - keys // width <= rows)
        seen = seen & ((queries % width - keys % width).abs() <= columns)
    return seen


def furthest(window: int | None, local: tuple[int, int, int] | None) -> int:
    """How many positions back the furthest is that can be seen."""
    if local is not None:
        rows, columns, width = local
        return rows * width + min(columns, width - 1)
    return sys.maxsize if window is None else window - 1


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None = None,
    local: tuple[int, int, int] | None = None,
    scale: float | None = None,
) -> Tensor:
    """q [B, heads, T, D], k and v [B, kv_heads, S, D], the queries being the last T of the S positions."""
    T, S = q.shape[2], k.shape[2]
    group = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(group, 1) for t in (k, v))
    scores = q @ k.mT * (1 / math.sqrt(q.shape[3]) if scale is None else scale)
    positions = torch.arange(S, device=q.device)
    seen = visible(positions[S - T :], positions, window, local)
    return torch.softmax(scores.masked_fill(~seen, -math.inf), -1) @ v
