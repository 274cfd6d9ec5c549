"""Between a program's positions and the model's data space; and a request's rows in parts."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fastar.sampling.program import Program
from fastar.sampling.request import Request

# From about here torch shares a conversion among its threads. They would go on spinning for milliseconds, on cores that
# the next run needs.
_PIECE = 1 << 14


def _converted(values: Tensor, dtype: torch.dtype) -> Tensor:
    out = torch.empty(values.shape, dtype=dtype, device=values.device)
    for to, piece in zip(out.view(-1).split(_PIECE), values.reshape(-1).split(_PIECE), strict=True):
        to.copy_(piece)
    return out


def to_data(program: Program, values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values [n, T, V] as [n, *shape]; of an open program as [n, T], or [n, T, V] where V > 1."""
    values = _converted(values, dtype)
    if program.shape is None:
        return values[..., 0] if program.value.channels == 1 else values
    flat = values.flatten(1)
    if program.layout is not None:
        out = torch.empty_like(flat)
        out[:, program.weights[program.layout].long().cpu()] = flat
        flat = out
    return flat.view(-1, *program.shape)


def to_positions(program: Program, data: Tensor | None, name: str) -> Tensor | None:
    """The inverse of `to_data`."""
    if data is None:
        return None
    if not isinstance(data, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(data).__name__}")
    V = program.value.channels
    if program.shape is None:
        if data.dim() != (2 if V == 1 else 3):
            raise ValueError(f"{name}: expected shape [n, T{'' if V == 1 else f', {V}'}], got {list(data.shape)}")
        return data[..., None] if V == 1 else data
    if tuple(data.shape[1:]) != program.shape:
        raise ValueError(f"{name}: expected shape {['n', *program.shape]}, got {list(data.shape)}")
    flat = data.flatten(1)
    if program.layout is not None:
        flat = flat[:, program.weights[program.layout].long().to(flat.device)]
    return flat.view(len(flat), -1, V)


def rows(request: Request, start: int, count: int) -> Request:
    """The part of a request that concerns these rows."""
    part = slice(start, start + count)

    def of(t: Tensor | None) -> Tensor | None:
        return t if t is None or len(t) == 1 else t[part]

    return replace(
        request,
        rows=request.rows[part],
        seeds=request.seeds[part],
        lengths=request.lengths[part],
        given=None if request.given is None else request.given[part],
        uniforms=None if request.uniforms is None else request.uniforms[part],
        levels=of(request.levels),
        low=of(request.low),
        high=of(request.high),
        inputs={name: t[part] for name, t in request.inputs.items()},
    )
