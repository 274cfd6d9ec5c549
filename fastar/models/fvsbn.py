"""Sigmoid belief networks in which every dimension is seen: one regression per dimension on those before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastar import _checks
from fastar.distributions import Bernoulli
from fastar.models import _order
from fastar.models.model import Model
from fastar.nn import MaskedLinear
from fastar.sampling import Program, dimensions


class FVSBN(Model):
    """p(x_i = 1 | x_<i) = sigmoid(b_i + sum_{j before i} W_ij x_j): D (D + 1) / 2 parameters.

    Args:
        dim: D, the number of bits.
        order: permutation of 0..D-1, order[t] being the dimension that comes t-th; None for 0, 1, 2...

    x [B, D] of 0 and 1; ``model(x)`` [B, D, 1], the logits.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"mnist": {"dim": 784}}

    def __init__(
        self,
        dim: int,
        *,
        order: _order.Order = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim=dim, order=_order.listed(order))
        self.dim = _checks.positive("dim", dim)
        self.order = _order.permutation(order, dim)
        self.distribution = Bernoulli()
        self.data_shape = (dim,)
        place = self.order.argsort()
        self.linear = MaskedLinear(
            dim, dim, in_degrees=place, out_degrees=place, strict=True, device=device, dtype=dtype
        )
        torch.nn.init.zeros_(self.linear.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, cond: None = None) -> Tensor:
        self.check(x, cond)
        logits: Tensor = self.linear(x.to(self.dtype))
        return logits[..., None]

    def lower(self) -> Program:
        return dimensions(self.linear, self.distribution.head, self.dim, order=self.order, name="FVSBN")
