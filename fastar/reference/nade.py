"""NADE: a_0 = c, a_{i+1} = a_i + W[:, i] x_i, out[b, i, k] = b[i, k] + V[i, k] . act(a_i), along any order of i."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastar.reference import activation as activations


def states(x: Tensor, weight: Tensor, hidden_bias: Tensor, order: Tensor | None = None) -> Tensor:
    """a [B, D, H] before the activation: entry d is what the positions before d in the order have added to c."""
    steps = torch.arange(x.shape[1], device=x.device) if order is None else order.long()
    start = hidden_bias.expand(x.shape[0], 1, -1)
    added = (x[:, :, None] * weight.T)[:, steps[:-1]]
    a = torch.cat([start, added], 1).cumsum(1)
    return a[:, torch.argsort(steps)]


def nade(
    x: Tensor,
    weight: Tensor,
    readout: Tensor,
    hidden_bias: Tensor,
    bias: Tensor,
    activation: str = "sigmoid",
    order: Tensor | None = None,
) -> Tensor:
    """``torch.einsum("bdh,dkh->bdk", act(states(x, W, c, order)), V) + b``."""
    h = activations.APPLY[activation](states(x, weight, hidden_bias, order))
    return torch.einsum("bdh,dkh->bdk", h, readout) + bias


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """log p(x) [B] of independent bits with these logits [B, D], in float32 at least."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return -F.binary_cross_entropy_with_logits(logits.to(wide), x.to(wide), reduction="none").sum(1)


def nade_log_prob(
    x: Tensor,
    weight: Tensor,
    readout: Tensor,
    hidden_bias: Tensor,
    bias: Tensor,
    activation: str = "sigmoid",
    order: Tensor | None = None,
) -> Tensor:
    """log p(x) [B] where out[b, i, 0] is the logit of x_i."""
    return bernoulli_log_prob(nade(x, weight, readout, hidden_bias, bias, activation, order)[..., 0], x)
