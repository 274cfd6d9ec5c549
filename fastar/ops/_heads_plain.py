"""Heads in plain PyTorch, for devices and dtypes that no other implementation takes: the reference, and its gradients.

The gradients are in closed form: inside an op autograd does not record. They are what the fused implementations
compute, so this is also where to read them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastar.reference import heads as reference
from fastar.reference.heads import MOST_LOG_SCALE, Head


def value_range(size: int, levels: bool, head: Head) -> tuple[float, float]:
    """The least and the greatest value that x may hold.

    `size`: logits of a categorical. `levels`: a logistic's x is given as numbers of levels.
    """
    if head.kind == "bernoulli":
        return 0, 1
    if head.kind == "categorical":
        return 0, size - 1
    if head.kind == "logistic":
        return (0, head.levels - 1) if levels else (-1, 1)
    return -math.inf, math.inf


def check_values(params: Tensor, x: Tensor, head: Head) -> None:
    """ValueError that names the first value of x that the head cannot take; waits for the device that x lies on."""
    size = params.shape[head.dim] if head.kind == "categorical" else 0
    low, high = value_range(size, not x.is_floating_point(), head)
    bad = ((x >= low) & (x <= high)).logical_not().flatten().nonzero()
    if bad.numel() == 0:
        return
    at, rest = [], int(bad[0])
    value = x.flatten()[rest].item()
    for size in reversed(x.shape):
        at.append(rest % size)
        rest //= size
    raise ValueError(f"x: expected values in [{low}, {high}] for a {head.kind} head, got {value} at {at[::-1]}")


def forward(params: Tensor, x: Tensor, head: Head) -> Tensor:
    """log p(x) for each position."""
    if x.device.type == "cpu":
        check_values(params, x, head)
    return reference.log_prob(params, x, head)


def backward(grad: Tensor, params: Tensor, x: Tensor, head: Head, need_x: bool) -> tuple[Tensor, Tensor | None]:
    """Gradients of the parameters and, for mixtures of Gaussians and of Laplaces where needed, of x."""
    wide = torch.promote_types(params.dtype, torch.float32)
    p = params.to(wide)
    if head.kind == "bernoulli":
        by_row = grad.reshape(*grad.shape, *(1,) * head.event_dims)
        return (by_row * (x.to(wide) - torch.sigmoid(p))).to(params.dtype), None
    p = p.movedim(head.dim, -1)
    if head.kind == "categorical":
        by_logit = -torch.softmax(p, -1)
        by_logit.scatter_add_(-1, x.long()[..., None], torch.ones_like(by_logit[..., :1]))
        return (grad[..., None] * by_logit).movedim(-1, head.dim).to(params.dtype), None
    x = x[..., None] if x.dim() < p.dim() else x.movedim(head.dim, -1)
    by_params, by_x = _mixture(p, reference.scaled(x, wide, head), head, torch.finfo(params.dtype).max)
    grad_params = (grad[..., None] * by_params).movedim(-1, head.dim).to(params.dtype)
    return grad_params, grad * by_x if need_x else None


def _mixture(params: Tensor, x: Tensor, head: Head, limit: float) -> tuple[Tensor, Tensor]:
    """Derivatives by the parameters [..., P] and by x [...], each bounded by `limit`."""
    C = x.shape[-1]
    logits, means, log_scales, coefficients = reference.split(params, C, head)
    # The posterior weights of the components give every gradient.
    posterior = torch.softmax(reference.totals(params, x, head), -1)
    by_means, by_log_scales, by_coefficients = [], [], []
    for c in range(C):
        pairs = range(c * (c - 1) // 2, c * (c + 1) // 2)
        shares = [torch.tanh(coefficients[..., pair, :]) for pair in pairs]
        shift = sum((share * x[..., j, None] for j, share in enumerate(shares)), torch.zeros_like(logits))
        by_mean, by_log_scale = _slopes(x[..., c, None], means[..., c, :] + shift, log_scales[..., c, :], head)
        by_means.append(posterior * by_mean.clamp(-limit, limit))
        by_log_scales.append(posterior * by_log_scale.clamp(-limit, limit))
        by_coefficients += [by_means[-1] * x[..., j, None] * (1 - share * share) for j, share in enumerate(shares)]
    by_params = [posterior - torch.softmax(logits, -1), *by_means, *by_log_scales, *by_coefficients]
    return torch.cat(by_params, -1), -by_means[0].sum(-1).clamp(-limit, limit)


def _slopes(x: Tensor, mean: Tensor, raw_log_scale: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """Derivatives of log p_k(x) by its mean and its log-scale."""
    log_scale = raw_log_scale.clamp(min=head.min_log_scale)
    inverse = torch.exp(-log_scale.clamp(-MOST_LOG_SCALE, MOST_LOG_SCALE))
    z = (x - mean) * inverse
    if head.kind == "gaussian":
        return z * inverse, z * z - 1
    if head.kind == "laplace":
        return z.sign() * inverse, z.abs() - 1
    # An infinite z times a slope of 0 would be no number.
    z, h = z.clamp(-1e37, 1e37), head.half_bin * inverse
    # By z, and h times that by h.
    left, right = torch.sigmoid(z - h), torch.sigmoid(-(z + h))
    by_z, by_h = right - left, h * (right + left + 2 / torch.expm1(2 * h))
    thin = reference.thin(reference.log_mass(z, h), h, head)
    by_z, by_h = torch.where(thin, -torch.tanh(z / 2), by_z), torch.where(thin, 1.0, by_h)
    lowest, highest = x <= head.half_bin - 1, x >= 1 - head.half_bin
    by_z = torch.where(lowest, right, torch.where(highest, -left, by_z))
    by_h = torch.where(lowest, h * right, torch.where(highest, h * left, by_h))
    by_log_scale = torch.where(raw_log_scale >= head.min_log_scale, -z * by_z - by_h, 0.0)
    return -by_z * inverse, by_log_scale
