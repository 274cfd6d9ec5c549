"""Mixtures: the logarithm of each component's density or mass, its derivatives, and the kernels made of them.

One position per row of a tile, one component per column. See fastar.reference.heads for the definition.
"""

import triton
import triton.language as tl

from fastar.kernels import _activation, _tiles

# The bounds of fastar.reference.heads.
MOST_LOG_SCALE = tl.constexpr(87.0)
MOST_TOTAL = tl.constexpr(2e38)


@triton.jit
def exp(x):
    """exp(x) for |x| <= 87: a GPU's exp rounds x log2(e) first, which costs |x| / 2 units in the last place."""
    n = tl.floor(x * 1.4426950408889634 + 0.5)
    r = tl.fma(n, 2.12194440e-4, tl.fma(n, -0.693359375, x))
    return tl.exp(r) * tl.exp2(n)


@triton.jit
def bounded(x, bound):
    """x within -bound .. bound; NaN stays NaN."""
    return tl.where(x > bound, bound, tl.where(x < -bound, -bound, x))


@triton.jit
def inverse_scale(log_scale):
    """exp(-s), never 0 and never infinite."""
    return exp(bounded(-log_scale, MOST_LOG_SCALE))


@triton.jit
def logistic(x, mean, raw_log_scale, half_bin, min_log_scale, branch):
    """log P(bin of x), by the mean, by the log-scale. With z = (x - m) / s, h = half a bin / s, t = exp(-|z|) and
    g = exp(-h) the masses are

        inside    t (1 - g) (1 + g) / ((t + g) (1 + t g)),
        at an end t / (t + g) where x lies further out than the mean, 1 / (1 + t g) where it lies further in,
        thin      t / (1 + t)^2 times the width of a bin.
    """
    log_scale = tl.where(raw_log_scale < min_log_scale, min_log_scale, raw_log_scale)
    inverse = inverse_scale(log_scale)
    z = (x - mean) * inverse
    size = tl.where(tl.abs(z) > 1e37, 1e37, tl.abs(z))
    half = half_bin * inverse
    # Only the difference of the two matters where both are large.
    near_half = tl.minimum(half, 25.0)
    rest = size - (half - near_half)
    near_size = tl.where(rest < 0.0, 0.0, rest)
    lost = -_activation.expm1(-near_half)
    g = tl.exp(-near_half)
    t = tl.exp(-near_size)
    outer = t + g
    inner = 1.0 + t * g
    both = outer * inner
    width = lost * (1.0 + g)
    # A narrow bin's mass is its density, and the latter is the more exact.
    thin = (half < 1e-4) | (width * t < branch * both)
    lowest = x <= half_bin - 1.0
    highest = x >= 1.0 - half_bin
    end = lowest | highest
    outward = (lowest & (z < 0)) | (highest & (z > 0))
    near = 1.0 + t
    by_density = tl.log(2.0 * half_bin) - log_scale - size
    linear = tl.where(end, tl.where(outward, -near_size, 0.0), tl.where(thin, by_density, -near_size))
    above = tl.where(end | thin, 1.0, width)
    below = tl.where(end, tl.where(outward, outer, inner), tl.where(thin, near * near, both))
    value = linear + tl.log(above / below)
    # -dF/d|z|, and h dF/dh: coth(h) less the bin's mass, as a sum of positive terms.
    top = tl.where(end, tl.where(outward, g, -t * g), tl.where(thin, 1.0 - t, (1.0 - t * t) * g))
    slope = top / tl.where(end, tl.where(outward, outer, inner), tl.where(thin, near, both))
    cosines = (1.0 + g * g) * (1.0 + t * t) + 4.0 * t * g
    inside = near_half * g * cosines / (both * tl.maximum(width, 1e-30))
    by_half = tl.where(end, near_half * tl.where(outward, slope, -slope), tl.where(thin, 1.0, inside))
    by_size = tl.where(thin & (end == 0), size, near_size) * slope
    # At an end the mean pulls one way, also where it is x.
    downward = tl.where(end, lowest == outward, z < 0)
    by_mean = tl.where(downward, -inverse, inverse) * slope
    by_log_scale = tl.where(raw_log_scale >= min_log_scale, by_size - by_half, 0.0)
    return value, by_mean, by_log_scale


@triton.jit
def component(x, mean, log_scale, half_bin, min_log_scale, branch, KIND: tl.constexpr):
    """F = log p_k(x), dF/dm and dF/ds."""
    if KIND == "logistic":
        value, by_mean, by_log_scale = logistic(x, mean, log_scale, half_bin, min_log_scale, branch)
    else:
        inverse = inverse_scale(log_scale)
        z = (x - mean) * inverse
        if KIND == "gaussian":
            value = -0.5 * z * z - 0.9189385332046727 - log_scale
            by_mean = z * inverse
            by_log_scale = z * z - 1.0
        else:
            tl.static_assert(KIND == "laplace", "unknown kind of mixture")
            value = -tl.abs(z) - 0.6931471805599453 - log_scale
            by_mean = tl.where(z > 0, inverse, tl.where(z < 0, -inverse, 0.0))
            by_log_scale = tl.abs(z) - 1.0
    return value, by_mean, by_log_scale


@triton.jit
def parameters(row, column, k, K, stride, present):
    """Parameters `column` * K + k of each row as float32; 0 where there are none."""
    return tl.load(row + (column * K + k) * stride, mask=present, other=0.0).to(tl.float32)


@triton.jit
def data(x, n, within, scale, shift):
    """x of positions n as the law sees it: a level's place in [-1, 1], or the value itself."""
    return tl.load(x + n, mask=within, other=0).to(tl.float32) * scale + shift


@triton.jit
def shifted_mean(
    row, x, n, within, k, K, stride, present, scale, shift, C: tl.constexpr, CHANNELS: tl.constexpr, positions
):
    """The mean of channel C: its own plus the earlier channels' shares."""
    mean = parameters(row, 1 + C, k, K, stride, present)
    for j in tl.static_range(C):
        c = parameters(row, 1 + 2 * CHANNELS + C * (C - 1) // 2 + j, k, K, stride, present)
        earlier = data(x, j * positions + n, within, scale, shift)
        mean += _activation.tanh(c) * earlier[:, None]
    return mean


@triton.jit
def totals(
    row,
    x,
    n,
    within,
    k,
    K,
    stride,
    positions,
    scale,
    shift,
    half_bin,
    min_log_scale,
    branch,
    KIND: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Logit less the greatest one [n, k], and that plus F summed over the channels; -inf beyond the last component."""
    exists = (k < K)[None, :]
    present = within[:, None] & exists
    logits = tl.where(exists, parameters(row, 0, k[None, :], K, stride, present), float("-inf"))
    logits = logits - tl.max(logits, 1)[:, None]
    total = logits
    for c in tl.static_range(CHANNELS):
        value = data(x, c * positions + n, within, scale, shift)
        mean = shifted_mean(row, x, n, within, k[None, :], K, stride, present, scale, shift, c, CHANNELS, positions)
        log_scale = parameters(row, 1 + CHANNELS + c, k[None, :], K, stride, present)
        total += component(value[:, None], mean, log_scale, half_bin, min_log_scale, branch, KIND)[0]
    return logits, tl.where(exists, bounded(total, MOST_TOTAL), float("-inf"))


@triton.jit
def mixture_kernel(
    params,
    x,
    log_prob,
    positions,
    K,
    N,
    stride_b,
    stride_p,
    stride_n,
    scale,
    shift,
    half_bin,
    min_log_scale,
    branch,
    KIND: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """log_prob[n] = logsumexp_k(logit + F) - logsumexp_k(logit), for x [CHANNELS, N]."""
    b, n, within = _tiles.place(N, BLOCK_N)
    row = (params + b * stride_b + n * stride_n)[:, None]
    logits, total = totals(
        row, x, b * N + n, within, tl.arange(0, BLOCK_K).to(tl.int64), K, stride_p, positions, scale, shift, half_bin,
        min_log_scale, branch, KIND, CHANNELS,
    )  # fmt: skip
    top = tl.max(total, 1)
    quotient = tl.sum(tl.exp(total - top[:, None]), 1) / tl.sum(tl.exp(logits), 1)
    tl.store(log_prob + b * N + n, top + tl.log(quotient), mask=within)


@triton.jit
def mixture_gradient_kernel(
    grad,
    params,
    x,
    grad_params,
    grad_x,
    positions,
    K,
    N,
    stride_b,
    stride_p,
    stride_n,
    stride_gb,
    stride_gp,
    stride_gn,
    scale,
    shift,
    half_bin,
    min_log_scale,
    branch,
    limit,
    KIND: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The posterior weights of the components give every gradient; each channel is evaluated a second time for its own.

    Keeping all channels' derivatives until the weights are known would take 7 tiles of registers for three colours.
    """
    b, n, within = _tiles.place(N, BLOCK_N)
    at = b * N + n
    k = tl.arange(0, BLOCK_K).to(tl.int64)
    row = (params + b * stride_b + n * stride_n)[:, None]
    out = (grad_params + b * stride_gb + n * stride_gn)[:, None]
    logits, total = totals(
        row, x, at, within, k, K, stride_p, positions, scale, shift, half_bin, min_log_scale, branch, KIND, CHANNELS
    )
    weight = tl.exp(total - tl.max(total, 1)[:, None])
    posterior = weight / tl.sum(weight, 1)[:, None]
    prior = tl.exp(logits)
    prior = prior / tl.sum(prior, 1)[:, None]
    g = tl.load(grad + at, mask=within, other=0.0)[:, None]
    k = k[None, :]
    present = within[:, None] & (k < K)
    element = grad_params.dtype.element_ty
    tl.store(out + k * stride_gp, (g * (posterior - prior)).to(element), mask=present)
    for c in tl.static_range(CHANNELS):
        value = data(x, c * positions + at, within, scale, shift)
        mean = shifted_mean(row, x, at, within, k, K, stride_p, present, scale, shift, c, CHANNELS, positions)
        log_scale = parameters(row, 1 + CHANNELS + c, k, K, stride_p, present)
        _, by_mean, by_log_scale = component(value[:, None], mean, log_scale, half_bin, min_log_scale, branch, KIND)
        by_mean = posterior * bounded(by_mean, limit)
        by_log_scale = posterior * bounded(by_log_scale, limit)
        tl.store(out + ((1 + c) * K + k) * stride_gp, (g * by_mean).to(element), mask=present)
        tl.store(out + ((1 + CHANNELS + c) * K + k) * stride_gp, (g * by_log_scale).to(element), mask=present)
        for j in tl.static_range(c):
            column = 1 + 2 * CHANNELS + c * (c - 1) // 2 + j
            share = _activation.tanh(parameters(row, column, k, K, stride_p, present))
            earlier = data(x, j * positions + at, within, scale, shift)
            by_share = by_mean * earlier[:, None] * (1.0 - share * share)
            tl.store(out + (column * K + k) * stride_gp, (g * by_share).to(element), mask=present)
        if grad_x is not None:
            by_x = -tl.sum(tl.where(present, by_mean, 0.0), 1)[:, None]
            tl.store(grad_x + at[:, None], g * bounded(by_x, limit), mask=within[:, None])
