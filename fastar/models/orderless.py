"""Orderless models: one network that gives every unknown dimension's distribution from any set of known ones.

Trained on random sets (Uria, Murray and Larochelle): with d - 1 of D dimensions known, the unknown ones' nats are
weighted by D / (D - d + 1), whose mean over d and the sets is the mean over all orders.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastar import _checks
from fastar.models import _order, _rows
from fastar.models.model import Model
from fastar.sampling import Program, SampleResult

# Rows of one pass when all positions of an order are evaluated.
_ROWS = 4096


class Orderless(Model):
    """A network from [x where known, known] to all dimensions; a subclass defines `params_of` and `lower`."""

    dim: int
    scale: float = 1.0
    shift: float = 0.0

    @abc.abstractmethod
    def params_of(self, x: Tensor, known: Tensor, wanted: Tensor | None) -> Tensor:
        """Parameters [N, D, P], or of one `wanted` dimension per row [N, P], of x [N, D], 0 where not known [N, D]."""

    @abc.abstractmethod
    def lower(self, order: _order.Order = None) -> Program:
        """The sampling loop in an order, the natural one by default."""

    def forward(self, x: Tensor, known: Tensor | None = None) -> Tensor:
        """Parameters [B, D, P]: given what is known (bool, in the shape of an x or of x), in one pass.

        Without `known` those of each dimension given the ones before it in the natural order, in D passes.
        """
        self.check(x)
        flat = self._inputs(x)
        if known is None:
            return self._along(flat, torch.arange(self.dim))
        _checks.dtype("known", _checks.tensor("known", known), (torch.bool,))
        if known.shape not in (x.shape, x.shape[1:]):
            raise ValueError(f"known: expected shape {list(x.shape[1:])} or {list(x.shape)}, got {list(known.shape)}")
        mask = known.expand(x.shape).flatten(1)
        return self.params_of(torch.where(mask, flat, 0.0), mask, None)

    def _inputs(self, x: Tensor) -> Tensor:
        return x.flatten(1).to(self.dtype) * self.scale + self.shift

    def _along(self, flat: Tensor, order: Tensor, observed: Tensor | None = None) -> Tensor:
        # [B, D, P]: dimension order[t] given order[:t], as far as observed.
        order, B = order.to(flat.device), len(flat)
        place = order.argsort()
        step = max(1, _ROWS // max(1, B))
        parts = []
        for wanted in torch.arange(self.dim, device=flat.device).split(step):
            known = (place[None, :] < place[wanted][:, None]).expand(B, -1, -1)
            if observed is not None:
                known = known & observed[:, None]
            x = torch.where(known, flat[:, None], 0.0).flatten(0, 1)
            params = self.params_of(x, known.flatten(0, 1), wanted.repeat(B))
            parts.append(params.unflatten(0, (B, len(wanted))))
        return torch.cat(parts, 1)

    def log_prob(
        self,
        x: Tensor,
        cond: None = None,
        *,
        order: _order.Order = None,
        ensemble: int | Sequence[Sequence[int]] | None = None,
        observed: Tensor | None = None,
        seed: int = 0,
    ) -> Tensor:
        """log p(x) [B] in nats, each order in D passes.

        Args:
            order: permutation of 0..D-1; None for 0, 1, 2...
            ensemble: orders, or how many random ones (of `seed`): their probabilities are averaged.
            observed: bool in the shape of x; the density is then that of the observed dimensions alone.
        """
        self.check(x, cond)
        if order is not None and ensemble is not None:
            raise ValueError("order: expected either an order or an ensemble of them, got both")
        if isinstance(ensemble, int):
            generator = torch.Generator().manual_seed(seed)
            count = _checks.positive("ensemble", ensemble)
            orders = [torch.randperm(self.dim, generator=generator) for _ in range(count)]
        else:
            orders = [_order.permutation(one, self.dim) for one in ([order] if ensemble is None else ensemble)]
        seen = None
        if observed is not None:
            _checks.dtype("observed", _checks.tensor("observed", observed), (torch.bool,))
            _checks.shape("observed", observed, list(x.shape))
            seen = observed.flatten(1)
        each = []
        for one in orders:
            log_p = self.distribution.log_prob(self._along(self._inputs(x), one, seen), x.flatten(1))
            each.append((log_p if seen is None else torch.where(seen, log_p, 0.0)).sum(1))
        return each[0] if len(each) == 1 else torch.logsumexp(torch.stack(each), 0) - math.log(len(each))

    def loss(self, x: Tensor, cond: None = None) -> Tensor:
        """An unbiased estimate of the mean nats over data and all orders, in one pass."""
        self.check(x, cond)
        B, D = len(x), self.dim
        count = torch.randint(D, (B, 1), device=x.device)
        known = torch.rand(B, D, device=x.device).argsort(1).argsort(1) < count
        params = self.params_of(torch.where(known, self._inputs(x), 0.0), known, None)
        nats = -self.distribution.log_prob(params, x.flatten(1)).masked_fill(known, 0.0)
        return (nats.sum(1) * D / (D - count[:, 0])).mean()

    @torch.no_grad()
    def sample(  # type: ignore[override]
        self,
        n: int,
        *,
        order: _order.Order = None,
        seed: int | Sequence[int] | None = None,
        row_offset: int = 0,
        uniforms: Tensor | None = None,
        given: Tensor | None = None,
        support: Any = None,
        cond: None = None,
        return_info: bool = False,
        **options: Any,
    ) -> Tensor | SampleResult:
        """As `Model.sample`, in any `order`. `support` is per dimension here.

        A row's known dimensions (`given`) come first, then the others in that order: exact conditioning. `log_prob` is
        that of the order in which the row was drawn, `log_weight` its part that was given.
        """
        if cond is not None:
            raise ValueError(f"cond: {type(self).__name__} takes none")
        rows = _rows.Rows.of(n, seed, row_offset)
        first = _order.permutation(order, self.dim)
        known = torch.zeros(n, self.dim, dtype=torch.bool)
        if given is not None:
            _checks.shape("given", _checks.tensor("given", given), [n, *self.data_shape])
            flat = given.flatten(1)
            known = ~flat.isnan() & (flat != -1) if self.distribution.levels is not None else ~flat.isnan()
        patterns, pattern = known.unique(dim=0, return_inverse=True) if n else (known.new_zeros(1, self.dim), None)
        groups = []
        for number, one in enumerate(patterns):
            mine = torch.cat([first[one[first]], first[~one[first]]])
            which = torch.arange(0) if pattern is None else torch.nonzero(pattern == number)[:, 0]
            groups.append(_rows.Group(which, self.lower(mine), _rows.support_of(support, which, mine)))
        if uniforms is None:
            uniforms = rows.uniforms(self.distribution, self.dim)
        result = _rows.sample(rows, groups, uniforms, inputs={}, given=given, **options)
        return result if return_info else result.values
