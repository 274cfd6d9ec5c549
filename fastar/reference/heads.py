"""Heads: log p(x) under the parameters that a network gives for each position.

    Bernoulli      x l - log(1 + exp(l))
    categorical    log_softmax(l)[x]
    mixtures       log sum_k softmax(l)_k prod_c p_k(x_c)

with p_k a Gaussian, a Laplace or a logistic that is discretised to levels, as in PixelCNN++: the mean of a later colour
is shifted by multiples of the earlier ones. In float32 at least, whatever the dtype of the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Scales outside exp(-87) .. exp(87) are taken as these: beyond, they or their inverse are no float32.
MOST_LOG_SCALE = 87.0
# What each component's logarithm is bounded by, so that differences of components stay numbers in float32.
MOST_TOTAL = 2e38


@dataclass(frozen=True)
class Head:
    """The law whose parameters lie along `dim`; the log-probability sums over the last `event_dims` of a Bernoulli's.

    Logistic only: `levels` equal steps from -1 to 1, log-scales of at least `min_log_scale`, and the density in the
    place of a bin's mass where that is below `branch`.
    """

    kind: str
    dim: int = -1
    event_dims: int = 0
    levels: int = 256
    min_log_scale: float = -math.inf
    branch: float = 0.0

    @property
    def is_mixture(self) -> bool:
        """Whether the parameters are those of components."""
        return self.kind not in ("bernoulli", "categorical")

    @property
    def half_bin(self) -> float:
        """Half of the distance between two levels."""
        return 1 / (self.levels - 1)

    def components(self, params: int, channels: int) -> int:
        """How many components a mixture with this many parameters has; 0 where the numbers do not fit."""
        per_component = 1 + 2 * channels + channels * (channels - 1) // 2
        return params // per_component if params % per_component == 0 else 0

    def positions(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the log-probabilities under parameters of this shape."""
        if self.kind == "bernoulli":
            return tuple(shape[: len(shape) - self.event_dims])
        dim = self.dim % len(shape)
        return (*shape[:dim], *shape[dim + 1 :])


def log_prob(params: Tensor, x: Tensor, head: Head) -> Tensor:
    """log p(x) for each position: the shape of the parameters without `dim` (and a Bernoulli's event dimensions)."""
    wide = torch.promote_types(params.dtype, torch.float32)
    params = params.to(wide)
    if head.kind == "bernoulli":
        each = -F.binary_cross_entropy_with_logits(params, x.to(wide), reduction="none")
        return each.sum(tuple(range(-head.event_dims, 0))) if head.event_dims else each
    params = params.movedim(head.dim, -1)
    if head.kind == "categorical":
        return torch.log_softmax(params, -1).gather(-1, x.long()[..., None])[..., 0]
    x = x[..., None] if x.dim() < params.dim() else x.movedim(head.dim, -1)
    return torch.logsumexp(totals(params, scaled(x, wide, head), head), -1)


def scaled(x: Tensor, dtype: torch.dtype, head: Head) -> Tensor:
    """x as the law sees it: an integer level's place in [-1, 1], or the value itself."""
    if head.kind == "logistic" and not x.is_floating_point():
        return x.to(dtype) * (2 * head.half_bin) - 1
    return x.to(dtype)


def split(params: Tensor, channels: int, head: Head) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits [..., K], means and log-scales [..., C, K], coefficients [..., C (C - 1) / 2, K]."""
    C, K = channels, head.components(params.shape[-1], channels)
    sizes = [1, C, C, C * (C - 1) // 2]
    logits, *others = params.split([size * K for size in sizes], -1)
    means, log_scales, coefficients = (
        one.unflatten(-1, (size, K)) for one, size in zip(others, sizes[1:], strict=True)
    )
    return logits, means, log_scales, coefficients


def totals(params: Tensor, x: Tensor, head: Head) -> Tensor:
    """log pi_k + sum_c log p_k(x_c) [..., K] for x [..., C]."""
    logits, means, log_scales, coefficients = split(params, x.shape[-1], head)
    total = torch.log_softmax(logits, -1)
    for c in range(x.shape[-1]):
        mean, first = means[..., c, :], c * (c - 1) // 2
        for j in range(c):
            mean = mean + torch.tanh(coefficients[..., first + j, :]) * x[..., j, None]
        total = total + _component(x[..., c, None], mean, log_scales[..., c, :], head)
    return total.clamp(-MOST_TOTAL, MOST_TOTAL)


def _component(x: Tensor, mean: Tensor, log_scale: Tensor, head: Head) -> Tensor:
    """log p_k(x)."""
    log_scale = log_scale.clamp(min=head.min_log_scale)
    inverse = torch.exp(-log_scale.clamp(-MOST_LOG_SCALE, MOST_LOG_SCALE))
    z = (x - mean) * inverse
    if head.kind == "gaussian":
        return -0.5 * z * z - log_scale - 0.5 * math.log(2 * math.pi)
    if head.kind == "laplace":
        return -z.abs() - log_scale - math.log(2)
    half = head.half_bin
    h = half * inverse
    mass = log_mass(z, h)
    density = F.logsigmoid(z) + F.logsigmoid(-z) - log_scale + math.log(2 * half)
    inner = torch.where(thin(mass, h, head), density, mass)
    lowest, highest = x <= half - 1, x >= 1 - half
    return torch.where(lowest, F.logsigmoid(z + h), torch.where(highest, F.logsigmoid(h - z), inner))


def thin(mass: Tensor, h: Tensor, head: Head) -> Tensor:
    """Where the density stands for a bin's mass: below the branch, and for bins so narrow that they are equal."""
    return (mass < (math.log(head.branch) if head.branch > 0 else -math.inf)) | (h < 1e-8)


def log_mass(z: Tensor, h: Tensor) -> Tensor:
    """log(sigmoid(z + h) - sigmoid(z - h))."""
    # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)): no cancellation in either tail.
    return F.logsigmoid(z + h) + F.logsigmoid(h - z) + torch.log(-torch.expm1(-2 * h))
