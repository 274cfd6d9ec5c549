"""One softmax regression per pixel over its levels, on those before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fastar import _checks
from fastar.distributions import Categorical
from fastar.models import _order
from fastar.models.model import Model
from fastar.nn import MaskedLinear
from fastar.sampling import Builder, Program, dimensions
from fastar.sampling.instructions import Draw, Gather

_MOST_BYTES = 4 * 10**9


class CategoricalSBN(Model):
    """p(x_i = k | x_<i) = softmax(b_i + sum_{j before i} W_ij f(x_j))_k.

    Args:
        dim: D, the number of pixels.
        levels: K, the values that a pixel takes.
        history: "raw", f(x) = x scaled to [-1, 1], a weight for each pair of pixels and level, D^2 K of them; or
            "onehot", a weight for each pair of pixels and pair of levels, (D K)^2, refused beyond 4 GB.
        order: permutation of 0..D-1, order[t] being the dimension that comes t-th; None for 0, 1, 2...

    x [B, D] of integers; ``model(x)`` [B, D, levels].
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"mnist": {"dim": 784, "levels": 256}}

    def __init__(
        self,
        dim: int,
        levels: int = 256,
        history: str = "raw",
        *,
        order: _order.Order = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim=dim, levels=levels, history=history, order=_order.listed(order))
        self.dim, self.history = _checks.positive("dim", dim), history
        if _checks.positive("levels", levels) < 2:
            raise ValueError(f"levels: expected at least 2, got {levels}")
        if history not in ("raw", "onehot"):
            raise ValueError(f"history: expected raw or onehot, got {history!r}")
        inputs = dim * (levels if history == "onehot" else 1)
        size = inputs * dim * levels * (dtype or torch.get_default_dtype()).itemsize
        if history == "onehot" and size > _MOST_BYTES:
            raise ValueError(f"history: onehot needs {size / 1e9:.1f} GB of weights for {dim} x {levels}; take raw")
        self.order = _order.permutation(order, dim)
        self.distribution = Categorical(levels)
        self.levels = levels
        self.data_shape = (dim,)
        place = self.order.argsort()
        self.linear = MaskedLinear(
            inputs,
            dim * levels,
            in_degrees=place.repeat_interleave(inputs // dim),
            out_degrees=place.repeat_interleave(levels),
            strict=True,
            device=device,
            dtype=dtype,
        )
        torch.nn.init.zeros_(self.linear.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, cond: None = None) -> Tensor:
        self.check(x, cond)
        K = self.levels
        if self.history == "onehot":
            seen = F.one_hot(x.long(), K).flatten(1).to(self.dtype)
        else:
            seen = x.to(self.dtype) * (2 / (K - 1)) - 1
        logits: Tensor = self.linear(seen).unflatten(1, (self.dim, K))
        return logits

    def lower(self) -> Program:
        K, head = self.levels, self.distribution.head
        if self.history == "raw":
            return dimensions(
                self.linear, head, self.dim, order=self.order, name="CategoricalSBN", scale=2 / (K - 1), shift=-1.0
            )
        # A pixel's level picks one row, which is added to the logits of all pixels at once.
        rows = (self.order[:, None] * K + torch.arange(K)).flatten().to(self.device)
        weight, bias = self.linear.weight.detach() * self.linear.dense_mask(), self.linear.bias
        assert bias is not None
        b = Builder("CategoricalSBN", self.distribution.value, self.dim)
        b.weight("table", weight.T[rows][:, rows].contiguous())
        b.weight("bias", bias.detach()[rows])
        logits = b.state("logits", self.dim * K, init="bias").at()
        with b.loop("t", self.dim) as t:
            b.add(Draw(head, t, logits.channels(t * K, K)), Gather(logits, "table", t, base=t * K, add=logits))
        natural = _order.is_natural(self.order)
        return b.build(shape=(self.dim,), layout=None if natural else b.table("order", self.order.tolist()))
