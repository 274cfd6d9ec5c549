"""Samples where rows of one call run different programs: mixtures, and orders that hang on what is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastar.distributions import Distribution
from fastar.sampling import Program, Sampler, SampleResult, philox
from fastar.sampling.draws import is_continuous


@dataclass(frozen=True)
class Rows:
    """The random numbers' names of a call's rows: one seed each, and their numbers."""

    seed: int | Sequence[int]
    seeds: Tensor
    numbers: Tensor

    @staticmethod
    def of(n: int, seed: int | Sequence[int] | None, row_offset: int) -> Rows:
        """Rows row_offset .. row_offset + n - 1; without a seed one is drawn."""
        if isinstance(n, bool) or not isinstance(n, int):
            raise TypeError(f"n: expected an integer, got {type(n).__name__}")
        if n < 0:
            raise ValueError(f"n: expected 0 or more, got {n}")
        philox.as_int64(row_offset, "row_offset")
        if seed is None:
            seed = int(torch.randint(0, 2**63 - 1, ()))
        each = [seed] * n if isinstance(seed, int) else list(seed)
        if len(each) != n:
            raise ValueError(f"seed: expected one, or one per row ({n}), got {len(each)}")
        return Rows(
            seed,
            torch.tensor([philox.as_int64(one) for one in each], dtype=torch.int64),
            torch.tensor([philox.as_int64((row_offset + i) % (1 << 64)) for i in range(n)], dtype=torch.int64),
        )

    def uniforms(self, distribution: Distribution, positions: int) -> Tensor:
        """What each draw of each row would take by itself, float64 [n, positions, draws]."""
        head = distribution.head
        kinds = [philox.continuous if is_continuous(head, draw) else philox.discrete for draw in range(head.draws)]
        return torch.stack(
            [
                torch.stack([kind(self.seeds, self.numbers, t, draw) for draw, kind in enumerate(kinds)], 1)
                for t in range(positions)
            ],
            1,
        )


@dataclass(frozen=True)
class Group:
    """Rows that run one program, with the support that is theirs."""

    which: Tensor
    program: Program
    support: Any = None


def sample(
    rows: Rows,
    groups: Sequence[Group],
    uniforms: Tensor,
    *,
    inputs: Mapping[str, Tensor],
    given: Tensor | None = None,
    backend: str = "auto",
    dtype: torch.dtype | None = None,
    **options: Any,
) -> SampleResult:
    """Every group's samples, put back in the rows' order; `log_prob` is that of each row's own program."""
    parts = []
    for group in groups:
        sampler = Sampler(group.program, max(1, len(group.which)), dtype, backend)
        try:
            part = sampler.sample(
                len(group.which),
                cond={name: t[group.which] for name, t in inputs.items()} or None,
                # The seeds are not used: every random number is among the uniforms.
                seed=0,
                uniforms=uniforms[group.which],
                given=None if given is None else given[group.which],
                support=group.support,
                return_info=True,
                **options,
            )
        finally:
            sampler.close()
        assert isinstance(part, SampleResult)
        parts.append(part)
    back = torch.cat([group.which for group in groups]).argsort()
    values, log_prob, lengths, log_weight = (
        torch.cat([getattr(part, name) for part in parts])[back]
        for name in ("values", "log_prob", "lengths", "log_weight")
    )
    return SampleResult(values, log_prob, lengths, rows.seed, log_weight)


def support_of(support: Any, which: Tensor, order: Tensor | None = None) -> Any:
    """The part of `support` for these rows; with `order`, from support per dimension to support per position."""
    if support is None:
        return None
    if isinstance(support, Tensor):
        part = support[which] if support.dim() == 3 else support
        return part if order is None else part.index_select(part.dim() - 2, order)
    return tuple(_end(one, which, order) for one in support)


def _end(end: Any, which: Tensor, order: Tensor | None) -> Any:
    t = torch.as_tensor(end)
    if t.dim() == 3:
        t = t[which]
    return t if order is None or t.dim() == 0 else t.index_select(max(0, t.dim() - 2), order)
