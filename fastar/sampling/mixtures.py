"""Laws with a mean and a scale, alone or mixed: normal; mixtures of Gaussians, Laplaces and (discretised) logistics."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fastar.sampling.categorical import pick
from fastar.sampling.instructions import Head


def split(head: Head, params: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits [B, K], means and log-scales [B, C, K], coefficients [B, C (C - 1) / 2, K], log-scales clamped."""
    B, K, C = params.shape[0], head.components, head.channels
    if head.kind == "normal":
        params = torch.cat([torch.zeros_like(params[:, :1]), params], 1)
    logits, means, log_scales, coefficients = torch.split(params, [K, C * K, C * K, C * (C - 1) // 2 * K], 1)
    if head.min_log_scale is not None:
        log_scales = log_scales.clamp(min=head.min_log_scale)
    return logits, means.view(B, C, K), log_scales.view(B, C, K), coefficients.view(B, -1, K)


def scaled(head: Head, value: Tensor, integer: bool) -> Tensor:
    """A value as the law sees it: a level's place in [low, high], or the value itself."""
    if head.levels is None or head.low is None or head.high is None or not integer:
        return value.double()
    return head.low + value.double() * ((head.high - head.low) / (head.levels - 1))


def _half_bin(head: Head) -> float:
    assert head.levels is not None
    assert head.low is not None
    assert head.high is not None
    return (head.high - head.low) / (head.levels - 1) / 2


def _shift(coefficients: Tensor, earlier: list[Tensor]) -> Tensor | float:
    # What the colours drawn so far add to the next one's means: its rows among the pairs (1,0), (2,0), (2,1), ...
    c = len(earlier)
    first = c * (c - 1) // 2
    return sum((torch.tanh(coefficients[:, first + j]) * x[:, None] for j, x in enumerate(earlier)), 0.0)


def log_prob(head: Head, params: Tensor, value: Tensor, integer: bool) -> Tensor:
    """log sum_k pi_k prod_c p(x_c; k, x_<c) for values [B, C]."""
    logits, means, log_scales, coefficients = split(head, params)
    x = scaled(head, value, integer)
    total = torch.log_softmax(logits, 1)
    earlier: list[Tensor] = []
    for c in range(head.channels):
        mean = means[:, c] + _shift(coefficients, earlier)
        total = total + _component(head, x[:, c : c + 1], mean, log_scales[:, c])
        earlier.append(x[:, c])
    return torch.logsumexp(total, 1)


def _component(head: Head, x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    z = (x - mean) * torch.exp(-log_scale)
    if head.kind in ("normal", "gaussian"):
        return -0.5 * z * z - log_scale - 0.5 * math.log(2 * math.pi)
    if head.kind == "laplace":
        return -z.abs() - log_scale - math.log(2)
    density = logsigmoid(z) + logsigmoid(-z) - log_scale
    if head.levels is None:
        return density
    assert head.low is not None
    assert head.high is not None
    half = _half_bin(head)
    below, above = z - half * torch.exp(-log_scale), z + half * torch.exp(-log_scale)
    # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)): no cancellation in either tail.
    inner = logsigmoid(above) + logsigmoid(-below) + torch.log(-torch.expm1(below - above))
    if head.branch > 0:
        inner = torch.where(inner < math.log(head.branch), density + math.log(2 * half), inner)
    lowest, highest = x <= head.low + half, x >= head.high - half
    return torch.where(lowest, logsigmoid(above), torch.where(highest, logsigmoid(-below), inner))


def draw(
    head: Head,
    params: Tensor,
    u: Tensor,
    temperature: float,
    greedy: bool,
    low: Tensor | None,
    high: Tensor | None,
    integer: bool,
) -> Tensor:
    """Values [B, C]: the component at u[:, 0], colour c by the inverse CDF at u[:, 1 + c]."""
    logits, means, log_scales, coefficients = split(head, params)
    edges = _edges(head, low, high, integer)
    if edges is not None:
        mass = _log_mass(head, means[:, 0], log_scales[:, 0], edges[0][:, :1], edges[1][:, :1])
        within = logits + mass
        logits = torch.where(torch.isinf(within).all(1, keepdim=True), logits, within)
    logits = logits / temperature
    k = logits.argmax(1) if greedy else pick(torch.softmax(logits, 1), u[:, 0])
    first = 0 if head.kind == "normal" else 1
    columns: list[Tensor] = []
    earlier: list[Tensor] = []
    for c in range(head.channels):
        mean = _of(means[:, c] + _shift(coefficients, earlier), k)
        scale = torch.exp(_of(log_scales[:, c], k)) * temperature
        if greedy:
            x = mean
        elif edges is None:
            x = mean + scale * _quantile(head, u[:, first + c])
        else:
            a, b = (edges[0][:, c] - mean) / scale, (edges[1][:, c] - mean) / scale
            x = mean + scale * _quantile_between(head, u[:, first + c], a, b)
        if edges is not None:
            x = torch.minimum(torch.maximum(x, edges[0][:, c]), edges[1][:, c])
        level, x = _grid(head, x, low if low is None else low[:, c], high if high is None else high[:, c], integer)
        earlier.append(x)
        columns.append(level if integer else x)
    return torch.stack(columns, 1)


def _of(per_component: Tensor, k: Tensor) -> Tensor:
    return per_component.gather(1, k[:, None])[:, 0]


def _grid(head: Head, x: Tensor, low: Tensor | None, high: Tensor | None, integer: bool) -> tuple[Tensor, Tensor]:
    # The value and the scaled value that it stands for, inside the data's range and the support.
    if head.low is not None:
        x = x.clamp(head.low, head.high)
    if head.levels is None:
        return x, x
    assert head.low is not None
    level = torch.floor((x - head.low) / (2 * _half_bin(head)) + 0.5)
    if integer and low is not None and high is not None:
        # An edge between two bins belongs to both, so rounding may step just outside the support.
        level = torch.minimum(torch.maximum(level, low), high)
    return level, scaled(head, level, True)


def _edges(head: Head, low: Tensor | None, high: Tensor | None, integer: bool) -> tuple[Tensor, Tensor] | None:
    if low is None or high is None:
        return None
    a, b = scaled(head, low, integer), scaled(head, high, integer)
    if head.levels is None or head.low is None or head.high is None:
        return a, b
    half = _half_bin(head)
    return (
        torch.where(a <= head.low + half, -math.inf, a - half),
        torch.where(b >= head.high - half, math.inf, b + half),
    )


def _cdf(head: Head, z: Tensor) -> Tensor:
    if head.kind == "logistic":
        return 1 / (1 + torch.exp(-z))
    if head.kind == "laplace":
        return torch.where(z < 0, 0.5 * torch.exp(-z.abs()), 1 - 0.5 * torch.exp(-z.abs()))
    p: Tensor = torch.special.ndtr(z)
    return p


def _quantile(head: Head, u: Tensor) -> Tensor:
    if head.kind == "logistic":
        return torch.log(u) - torch.log1p(-u)
    if head.kind == "laplace":
        return torch.where(u < 0.5, torch.log(2 * u), -torch.log(2 * (1 - u)))
    z: Tensor = torch.special.ndtri(u)
    return z


def _flipped(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # Symmetric laws: a range above 0 is taken by its mirror image, where CDF differences do not cancel.
    flip = a > 0
    return flip, torch.where(flip, -b, a), torch.where(flip, -a, b)


def _log_mass(head: Head, mean: Tensor, log_scale: Tensor, low: Tensor, high: Tensor) -> Tensor:
    scale = torch.exp(log_scale)
    _, a, b = _flipped((low - mean) / scale, (high - mean) / scale)
    return torch.log(_cdf(head, b) - _cdf(head, a))


def _quantile_between(head: Head, u: Tensor, a: Tensor, b: Tensor) -> Tensor:
    flip, a, b = _flipped(a, b)
    u = torch.where(flip, 1 - u, u)
    at = _cdf(head, a) + u * (_cdf(head, b) - _cdf(head, a))
    z = _quantile(head, at)
    # Where the range holds no representable probability, and where u reaches its end: the end nearer to the mean.
    z = torch.where((at <= 0) | (at >= 1), b, z)
    return torch.where(flip, -z, z)
