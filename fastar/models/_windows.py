"""Samples longer than a model's context: windows that slide over what is drawn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastar.models.model import Model
from fastar.sampling import Sampler, SampleResult


def sample(
    model: Model,
    sampler: Sampler,
    n: int,
    context: int,
    stride: int,
    lengths: Tensor,
    *,
    cond: Any,
    seed: Any,
    uniforms: Tensor | None,
    given: Tensor | None,
    support: Any,
    **options: Any,
) -> SampleResult:
    """n rows of `lengths`: whenever the context is full its `stride` oldest positions go, the rest is taken in anew.

    A position's random number is that of its place in the whole. Log-probabilities are those of each position given
    what its window still held.
    """
    longest = int(lengths.max()) if n else context
    values = torch.zeros(n, longest, dtype=torch.int64)
    log_prob, log_weight = (torch.zeros(n, dtype=torch.float64) for _ in range(2))
    ends, active = lengths.clone(), torch.ones(n, dtype=torch.bool)
    done = start = 0
    while done < longest and bool(active.any()):
        stop = min(start + context, longest)
        known = torch.full((n, stop - start), -1)
        known[:, : done - start] = values[:, start:done]
        if given is not None:
            known[:, done - start :] = given[:, done:stop].to(known)
        result = sampler.sample(
            n,
            length=(lengths - start).clamp(max(1, done - start), stop - start),
            cond=cond,
            seed=seed,
            uniforms=None if uniforms is None else uniforms[:, start:stop].contiguous(),
            given=known if bool((known >= 0).any()) else None,
            support=part(support, start, stop),
            position_offset=start,
            return_info=True,
            **options,
        )
        assert isinstance(result, SampleResult)
        before = torch.zeros(n, dtype=torch.float64)
        if done > start:
            with torch.no_grad():
                window = values[:, start:done].to(model.device)
                before = (model.log_prob(window) if cond is None else model.log_prob(window, cond)).double().cpu()
        values[active, done:stop] = result.values[active, done - start :]
        log_prob += torch.where(active, result.log_prob - before, 0.0)
        log_weight += torch.where(active, result.log_weight - before, 0.0)
        ended = active & (result.lengths + start < stop)
        if options.get("stop") is not None:
            ended |= active & (values[:, stop - 1] == options["stop"])
        ends = torch.where(ended, torch.minimum(ends, result.lengths + start), ends)
        active = active & ~ended & (lengths > stop)
        done, start = stop, start + stride
    return SampleResult(values, log_prob, ends, seed, log_weight)


def part(support: Any, start: int, stop: int) -> Any:
    """The part of a support that concerns positions start to stop."""
    if support is None:
        return None
    if isinstance(support, Tensor):
        return support[..., start:stop, :]
    ends = [torch.as_tensor(end) for end in support]
    return tuple(t if t.dim() == 0 else t[start:stop] if t.dim() < 3 else t[:, start:stop] for t in ends)
