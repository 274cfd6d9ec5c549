"""Samples of an equal mixture of programs: each row draws its program first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastar.models.model import Model
from fastar.sampling import Program, Sampler, SampleResult, philox
from fastar.sampling.draws import is_continuous
from fastar.sampling.philox import as_int64


def sample(
    model: Model,
    programs: Sequence[Callable[[], Program]],
    n: int,
    positions: int,
    inputs: Mapping[str, Tensor],
    *,
    cond: Any = None,
    seed: int | Sequence[int] | None = None,
    row_offset: int = 0,
    uniforms: Tensor | None = None,
    given: Tensor | None = None,
    support: tuple[object, object] | Tensor | None = None,
    backend: str = "auto",
    dtype: torch.dtype | None = None,
    return_info: bool = False,
    **options: Any,
) -> Tensor | SampleResult:
    """n samples, where row r takes the program floor(K u) for the u of its position D = `positions`, draw 0.

    A row's samples depend on its seed and number alone. Known values (`given`) are clamped whatever their order: which
    program the row takes does not depend on them, and `log_weight`, under that program, is what corrects it.
    """
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"n: expected an integer, got {type(n).__name__}")
    if n < 0:
        raise ValueError(f"n: expected 0 or more, got {n}")
    if seed is None:
        seed = int(torch.randint(0, 2**63 - 1, ()))
    each = [seed] * n if isinstance(seed, int) else list(seed)
    if len(each) != n:
        raise ValueError(f"seed: expected one, or one per row ({n}), got {len(each)}")
    seeds = torch.tensor([as_int64(one) for one in each], dtype=torch.int64)
    rows = torch.tensor([as_int64((row_offset + i) % (1 << 64), "row_offset") for i in range(n)], dtype=torch.int64)
    chosen = (philox.discrete(seeds, rows, positions, 0) * len(programs)).long()
    if uniforms is None:
        uniforms = _uniforms(model, seeds, rows, positions)
    found: list[tuple[Tensor, SampleResult]] = []
    for number, program in enumerate(programs):
        which = torch.nonzero(chosen == number)[:, 0]
        if len(which) == 0 and (n or number):
            continue
        sampler = Sampler(program(), max(1, len(which)), dtype, backend)
        part = sampler.sample(
            len(which),
            cond={name: t[which] for name, t in inputs.items()} or None,
            seed=[each[i] for i in which.tolist()],
            uniforms=uniforms[which],
            given=None if given is None else given[which],
            support=_rows_of(support, which),
            return_info=True,
            **options,
        )
        sampler.close()
        assert isinstance(part, SampleResult)
        found.append((which, part))
    back = torch.cat([which for which, _ in found]).argsort()
    values, lengths, log_weight = (
        torch.cat([getattr(part, name) for _, part in found])[back] for name in ("values", "lengths", "log_weight")
    )
    if not return_info:
        return values
    log_prob = model.log_prob(values.to(model.device), cond).double().cpu()
    return SampleResult(values, log_prob, lengths, seed, log_weight)


def _uniforms(model: Model, seeds: Tensor, rows: Tensor, positions: int) -> Tensor:
    head = model.distribution.head
    kinds = [philox.continuous if is_continuous(head, draw) else philox.discrete for draw in range(head.draws)]
    return torch.stack(
        [torch.stack([kind(seeds, rows, t, draw) for draw, kind in enumerate(kinds)], 1) for t in range(positions)], 1
    )


def _rows_of(support: Any, which: Tensor) -> Any:
    if isinstance(support, Tensor):
        return support[which] if support.dim() == 3 else support
    if support is None:
        return None
    return tuple(one[which] if isinstance(one, Tensor) and one.dim() == 3 else one for one in support)
