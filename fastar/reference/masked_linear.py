"""y = act(x (W * M)^T + b), with M[o, i] given, or out_degree[o] >= in_degree[i] (> when strict)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastar.reference import activation as activations


def mask_from_degrees(in_degrees: Tensor, out_degrees: Tensor, strict: bool = False) -> Tensor:
    """The boolean mask [out, in] that a pair of degree vectors stands for."""
    compare = torch.gt if strict else torch.ge
    return compare(out_degrees[:, None], in_degrees[None, :])


def masked_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, mask: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """``act(F.linear(x, weight * mask, bias))``."""
    # where, not a product: a masked weight that is infinite or NaN must not reach the output.
    visible = (
        weight if mask is None else torch.where(mask, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))
    )
    return activations.APPLY[activation](F.linear(x, visible, bias))
