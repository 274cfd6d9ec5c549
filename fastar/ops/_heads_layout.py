"""How a head's parameters lie in memory: positions before and after the dimension of a position's parameters."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """Parameters [outer, size, inner] with strides; position (o, i) is number o * inner + i."""

    sizes: tuple[int, int, int]
    strides: tuple[int, int, int]


def lay_out(params: Tensor, dim: int) -> tuple[Tensor, Layout]:
    """The parameters, copied only where their positions do not lie at two even distances, and their layout."""
    found = _layout(params, dim)
    if found is not None:
        return params, found
    if _side_by_side(params, dim):
        params = params.movedim(dim, -1).contiguous().movedim(-1, dim)
    else:
        params = params.contiguous()
    found = _layout(params, dim)
    assert found is not None
    return params, found


def empty_gradient(params: Tensor, dim: int) -> Tensor:
    """Memory for the gradient, where a position's parameters lie side by side if they do so in `params`."""
    if dim not in (-1, params.dim() - 1) and params.stride(dim) == 1:
        return torch.empty_like(params.movedim(dim, -1), memory_format=torch.contiguous_format).movedim(-1, dim)
    return torch.empty_like(params, memory_format=torch.contiguous_format)


def gradient_strides(params: Tensor, dim: int, sizes: tuple[int, int, int]) -> tuple[int, int, int]:
    """Strides of `empty_gradient` for the parameters' own sizes, whatever positions its memory would merge."""
    _, size, inner = sizes
    trailing = math.prod(params.shape[dim % params.dim() + 1 :])
    if _side_by_side(params, dim) or size == 1 or trailing == 1:
        return inner * size, 1, size
    return size * trailing, trailing, 1


def bernoulli_layout(params: Tensor, event_dims: int) -> tuple[Tensor, Layout]:
    """Contiguous logits as one row per sum or, where nothing is summed, as positions side by side."""
    size = math.prod(params.shape[params.dim() - event_dims :])
    sizes = (params.numel() // size, size, 1) if event_dims else (1, 1, params.numel())
    return params.contiguous(), Layout(sizes, (size, 1, 1))


def colours_first(x: Tensor, params: Tensor, dim: int) -> Tensor:
    """A mixture's x as [channels, positions], contiguous."""
    x = x.movedim(dim, 0) if x.dim() == params.dim() else x[None]
    return x.reshape(x.shape[0], -1).contiguous()


def _side_by_side(params: Tensor, dim: int) -> bool:
    return dim in (-1, params.dim() - 1) or params.stride(dim) == 1


def _layout(params: Tensor, dim: int) -> Layout | None:
    return _layout_of(tuple(params.shape), params.stride(), dim % params.dim())


@functools.lru_cache(maxsize=1024)
def _layout_of(shape: tuple[int, ...], strides: tuple[int, ...], dim: int) -> Layout | None:
    outer = _merged(shape[:dim], strides[:dim])
    inner = _merged(shape[dim + 1 :], strides[dim + 1 :])
    # The stride of a dimension of size 1 may be anything.
    stride = 1 if shape[dim] == 1 else strides[dim]
    if outer is None or inner is None:
        return None
    if stride != 1 and (dim == len(shape) - 1 or inner[1] != 1):
        return None
    if inner[0] == 1:
        outer, inner = (1, 0), outer
    elif outer[1] == inner[0] * inner[1] and stride == 1:
        outer, inner = (1, 0), (outer[0] * inner[0], inner[1])
    return Layout((outer[0], shape[dim], inner[0]), (outer[1], stride, inner[1]))


def _merged(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, int] | None:
    """Size and stride of one dimension that stands for these, or None where there is none."""
    size, step = 1, 0
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length == 1:
            continue
        if size == 1:
            size, step = length, stride
        elif stride == size * step:
            size *= length
        else:
            return None
    return size, step
