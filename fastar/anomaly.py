"""PixelDefend: how unlikely data are under a model, and the likeliest data near them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastar import _checks
from fastar.models import Model
from fastar.sampling import Sampler, space

_BATCH = 256


@torch.no_grad()
def bits_per_dim(model: Model, x: Tensor, cond: Any = None, **options: Any) -> Tensor:
    """-log2 p(x) / D [N], in batches; `options` as for `Model.nll_bits_per_dim`."""
    parts = []
    for start in range(0, len(x), _BATCH):
        rows = slice(start, start + _BATCH)
        parts.append(model.nll_bits_per_dim(x[rows], None if cond is None else cond[rows], **options))
    return torch.cat(parts) if parts else x.new_zeros(0, dtype=torch.float32)


@torch.no_grad()
def rank_p_value(model: Model, x: Tensor, reference: Tensor, cond: Any = None, reference_cond: Any = None) -> Tensor:
    """(1 + how many of the `reference` are at most as likely as x) / (1 + their number), float64 [N].

    Under the hypothesis that x comes from where the reference set does, it is uniform; small values speak against it.
    """
    if len(reference) == 0:
        raise ValueError("reference: expected at least one example, got none")
    log_p = torch.cat([_log_prob(model, x, cond), _log_prob(model, reference, reference_cond)])
    own, others = log_p[: len(x)], log_p[len(x) :].sort().values
    below = torch.searchsorted(others, own, right=True)
    return (1 + below).double() / (1 + len(reference))


def purify(model: Model, x: Tensor, eps: float, *, cond: Any = None, backend: str = "auto") -> Tensor:
    """x with each number in turn moved to the likeliest value within eps of it, given the purified ones before."""
    if not (isinstance(eps, int | float) and 0 <= eps < math.inf):
        raise ValueError(f"eps: expected a number of at least 0, got {eps}")
    model.check(x, cond)
    sampler = Sampler(model, max(1, min(_BATCH, len(x))), backend=backend)
    try:
        positions = space.to_positions(sampler.program, x.cpu(), "x")
        assert positions is not None
        support = positions.double() - eps, positions.double() + eps
        values = sampler.sample(len(x), cond=cond, greedy=True, support=support, seed=0)
    finally:
        sampler.close()
    assert isinstance(values, Tensor)
    return values.to(x.device, x.dtype)


def _log_prob(model: Model, x: Tensor, cond: Any) -> Tensor:
    _checks.tensor("x", x)
    parts = [
        model.log_prob(x[k : k + _BATCH], None if cond is None else cond[k : k + _BATCH])
        for k in range(0, len(x), _BATCH)
    ]
    return torch.cat(parts).double()
