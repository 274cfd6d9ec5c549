"""A choice among levels: the law after support, temperature, top-k and top-p, and the rule that picks from it."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def probabilities(
    logits: Tensor,
    levels: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """The law [B, K] for logits [B, K] in float64; rows sum to 1, or to 0 where `levels` leaves no probability."""
    z = logits.double()
    if levels is not None:
        z = torch.where(levels, z, -math.inf)
    z = z / temperature
    if top_k is not None or top_p is not None:
        # Stable: among equals the lower index ranks first, so that top-k keeps it.
        descending = torch.sort(z, dim=1, descending=True, stable=True).indices
        rank = descending.argsort(1)
        if top_k is not None:
            z = torch.where(rank < top_k, z, -math.inf)
        if top_p is not None:
            ranked = torch.softmax(z, 1).gather(1, descending)
            before = torch.cumsum(ranked, 1) - ranked
            z = torch.where((before < top_p).gather(1, rank), z, -math.inf)
    return torch.softmax(z, 1).nan_to_num(0.0)


def pick(p: Tensor, u: Tensor) -> Tensor:
    """The smallest k whose cumulative probability exceeds u [B]; if rounding leaves none, the last with probability."""
    beyond = torch.cumsum(p, 1) > u[:, None]
    index = torch.arange(p.shape[1], device=p.device)
    last = torch.where(p > 0, index, -1).amax(1)
    return torch.where(beyond.any(1), beyond.int().argmax(1), last)
