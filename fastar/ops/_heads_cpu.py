"""Heads on the CPU: native code, in float32 inside.

A position's log-probability and gradient need its own parameters alone, so blocks of positions are shared out over
threads and no result depends on their number. The backward starts from the parameters again: a gradient made in the
forward, to be multiplied by the one that comes in, would move 4 times the parameters' bytes in all, this moves 3.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from fastar.native import core
from fastar.ops import _heads_plain, _packed
from fastar.ops._heads_layout import Layout, bernoulli_layout, colours_first, empty_gradient, gradient_strides, lay_out
from fastar.ops._native import DTYPES, name
from fastar.reference.heads import Head

# What the native code reads of a Bernoulli's x as it is, without a copy.
_X_DTYPES = (*DTYPES, torch.int64, torch.uint8)


def _prepared(x: Tensor, params: Tensor, head: Head) -> Tensor:
    """x as the native code reads it: contiguous, colours in front, a boolean as a byte."""
    if head.kind == "bernoulli":
        x = x.contiguous()
        x = x.view(torch.uint8) if x.dtype in (torch.bool, torch.int8) else x
        return x if x.dtype in _X_DTYPES else x.float()
    if head.kind == "categorical":
        return x.long().contiguous()
    return colours_first(x.float(), params, head.dim)


@functools.lru_cache(maxsize=1024)
def _described(
    head: Head, dtype: torch.dtype, layout: Layout, x_dtype: torch.dtype, channels: int, levels: bool
) -> Any:
    """The native description of the head; `levels`: x is given as numbers of a logistic's levels.

    Kept from call to call: making one takes longer than a small head does.
    """
    native = core().Heads(
        kind=head.kind,
        dtype=name(dtype),
        sizes=layout.sizes,
        strides=layout.strides,
        x_dtype=name(x_dtype),
        components=head.components(layout.sizes[1], channels),
        channels=channels,
    )
    native.x_scale, native.x_offset = (2 * head.half_bin, -1.0) if levels else (1.0, 0.0)
    native.x_low, native.x_high = _heads_plain.value_range(layout.sizes[1], levels, head)
    native.half_bin, native.min_log_scale, native.branch = head.half_bin, head.min_log_scale, head.branch
    return native


def _native(params: Tensor, layout: Layout, x: Tensor, raw_x: Tensor, head: Head) -> Any:
    channels = x.shape[0] if head.is_mixture else 1
    levels = head.kind == "logistic" and not raw_x.is_floating_point()
    return _described(head, params.dtype, layout, x.dtype, channels, levels)


def forward(params: Tensor, x: Tensor, head: Head) -> Tensor:
    """log p(x) in float32; ValueError where x holds what the head cannot take."""
    laid_out, layout = (
        bernoulli_layout(params, head.event_dims) if head.kind == "bernoulli" else lay_out(params, head.dim)
    )
    prepared = _prepared(x, params, head)
    native = _native(laid_out, layout, prepared, x, head)
    out = torch.empty(head.positions(params.shape), dtype=torch.float32)
    if not core().heads_forward(
        native, laid_out.data_ptr(), prepared.data_ptr(), out.data_ptr(), torch.get_num_threads()
    ):
        _heads_plain.check_values(params, x, head)
    return out


def backward(grad: Tensor, params: Tensor, x: Tensor, head: Head, need_x: bool) -> tuple[Tensor, Tensor | None]:
    """Gradients of the parameters and, for mixtures of Gaussians and of Laplaces where needed, of x."""
    laid_out, layout = (
        bernoulli_layout(params, head.event_dims) if head.kind == "bernoulli" else lay_out(params, head.dim)
    )
    prepared, grad = _prepared(x, params, head), grad.float().contiguous()
    if head.kind == "bernoulli":
        grad_params, strides = torch.empty_like(laid_out), layout.strides
    else:
        grad_params = empty_gradient(params, head.dim)
        strides = gradient_strides(params, head.dim, layout.sizes)
    if grad_params.nbytes >= _packed.HUGE_BYTES:
        core().prefer_huge_pages(grad_params.data_ptr(), grad_params.nbytes)
    grad_x = torch.empty(grad.shape) if need_x else None
    core().heads_backward(
        _native(laid_out, layout, prepared, x, head),
        params=laid_out.data_ptr(),
        x=prepared.data_ptr(),
        grad=grad.data_ptr(),
        grad_params=grad_params.data_ptr(),
        strides=strides,
        grad_x=0 if grad_x is None else grad_x.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return grad_params, grad_x
