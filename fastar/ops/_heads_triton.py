"""Heads on Triton's kernels: layouts and launches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastar.ops._heads_layout import bernoulli_layout, colours_first, empty_gradient, gradient_strides, lay_out
from fastar.reference.heads import Head


def _kernels() -> Any:
    from fastar.kernels import heads as kernels

    return kernels


def _bits(x: Tensor) -> Tensor:
    return (x.view(torch.uint8) if x.dtype == torch.bool else x).contiguous()


def _law(params: Tensor, x: Tensor, head: Head) -> Any:
    channels = x.shape[head.dim] if x.dim() == params.dim() else 1
    levels = head.kind == "logistic" and not x.is_floating_point()
    return _kernels().Mixture(
        kind=head.kind,
        components=head.components(params.shape[head.dim], channels),
        scale=2 * head.half_bin if levels else 1.0,
        shift=-1.0 if levels else 0.0,
        half_bin=head.half_bin,
        min_log_scale=head.min_log_scale,
        branch=head.branch,
    )


def forward(params: Tensor, x: Tensor, head: Head) -> Tensor:
    """log p(x) in float32; NaN where x is none of a categorical's levels."""
    kernels, shape = _kernels(), head.positions(params.shape)
    if head.kind == "bernoulli":
        logits, layout = bernoulli_layout(params, head.event_dims)
        summed = layout.sizes[1] if head.event_dims else 0
        out: Tensor = kernels.bernoulli(logits, _bits(x), summed)
        return out.view(shape)
    laid_out, layout = lay_out(params, head.dim)
    if head.kind == "categorical":
        out = kernels.categorical(laid_out, x.long().contiguous(), layout.sizes, layout.strides)
    else:
        data = colours_first(x, params, head.dim)
        out = kernels.mixture(laid_out, data, layout.sizes, layout.strides, _law(params, x, head))
    return out.view(shape)


def backward(grad: Tensor, params: Tensor, x: Tensor, head: Head, need_x: bool) -> tuple[Tensor, Tensor | None]:
    """Gradients of the parameters and, for mixtures of Gaussians and of Laplaces where needed, of x."""
    kernels, grad = _kernels(), grad.contiguous()
    if head.kind == "bernoulli":
        logits, layout = bernoulli_layout(params, head.event_dims)
        summed = layout.sizes[1] if head.event_dims else 0
        return kernels.bernoulli_gradient(grad, logits, _bits(x), summed), None
    laid_out, layout = lay_out(params, head.dim)
    grad_params = empty_gradient(params, head.dim)
    places = (layout.sizes, layout.strides, gradient_strides(params, head.dim, layout.sizes))
    if head.kind == "categorical":
        kernels.categorical_gradient(grad, laid_out, x.long().contiguous(), grad_params, *places)
        return grad_params, None
    data = colours_first(x, params, head.dim)
    grad_x = kernels.mixture_gradient(grad, laid_out, data, grad_params, need_x, *places, _law(params, x, head))
    return grad_params, None if grad_x is None else grad_x.view(grad.shape)
