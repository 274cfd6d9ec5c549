"""The products of a causal convolution, on tiles of times, from tensors [batch, channels, time] of any strides.

A tap's delay shifts the times that a tile is loaded from; what lies before the first or after the last is masked, so
that nothing is padded or unfolded. Either times or channels may lie side by side: the compiler knows which stride is 1
and loads along it. Delays that are multiples of 16 keep loads along time whole vectors; others take single elements,
which the first cache level then serves.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastar.kernels import _activation


@triton.jit
def load_delayed(
    x,
    history,
    index,
    b,
    t,
    c,
    inside_c,
    delay,
    LENGTH,
    REACH,
    stride_xb,
    stride_xc,
    stride_xt,
    stride_hb,
    stride_hc,
    stride_ib,
    KNOWN: tl.constexpr,
):
    """x[b, c, t - delay] as [t, c]: zeros or the history before time 0, zeros across the border of two sequences.

    KNOWN: wherever t is beyond the last time, so is what it sees, as where delays are negative.
    """
    at = t - delay
    seen = (at >= 0) & (at < LENGTH)
    if not KNOWN:
        seen = seen & (t < LENGTH)
    if index is not None:
        row = index + b.to(tl.int64) * stride_ib
        here = tl.load(row + t, mask=seen, other=0)
        there = tl.load(row + at, mask=seen, other=1)
        seen = seen & (here == there)
    places = c.to(tl.int64)[None, :] * stride_xc + at.to(tl.int64)[:, None] * stride_xt
    tile = tl.load(x + b.to(tl.int64) * stride_xb + places, mask=seen[:, None] & inside_c[None, :], other=0.0)
    if history is not None:
        early = (at < 0) & (at + REACH >= 0)
        places = c.to(tl.int64)[None, :] * stride_hc + (at + REACH)[:, None]
        past = tl.load(
            history + b.to(tl.int64) * stride_hb + places, mask=early[:, None] & inside_c[None, :], other=0.0
        )
        tile = tl.where(early[:, None], past, tile)
    return tile


@triton.jit
def conv_kernel(
    x,
    history,
    index,
    packed,
    bias,
    plus,
    y,
    z,
    first,
    COUNT,
    LENGTH,
    REACH,
    G,
    C,
    N,
    K,
    dilation,
    scale,
    plus_scale,
    stride_xb,
    stride_xc,
    stride_xt,
    stride_hb,
    stride_hc,
    stride_ib,
    stride_pb,
    stride_pc,
    stride_pt,
    ADJOINT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y[b, g N + n, t] = act(z), z = bias + sum over k and c of x[b, g C + c, t - delay_k] W[g, k, c, n].

    Times t are first + [0, COUNT), and y [batch, G N, COUNT] is contiguous. The delay of tap k is (K - 1 - k) dilation;
    ADJOINT: the tap looks that far ahead. z is multiplied by `scale`; plus_scale `plus` [batch, G N, COUNT] is added.
    """
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles_m = tl.cdiv(COUNT, BLOCK_M)
    pid = tl.program_id(0)
    # Tiles of the same times lie beside each other: what they read of x is shared through L2.
    tile_n = pid % tiles_n
    tile_m = pid // tiles_n % tiles_m
    row = pid // (tiles_n * tiles_m)
    b = row // G
    g = row % G
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k_step = tl.arange(0, BLOCK_K)
    t = first + m
    steps = tl.cdiv(C, BLOCK_K)
    weight = packed + g.to(tl.int64) * K * C * N
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i in range(K * steps):
        tap = i // steps
        c = (i - tap * steps) * BLOCK_K + k_step
        delay = (K - 1 - tap) * dilation
        if ADJOINT:
            delay = -delay
        x_tile = load_delayed(
            x, history, index, b, t, g * C + c, c < C, delay, LENGTH, REACH, stride_xb, stride_xc, stride_xt,
            stride_hb, stride_hc, stride_ib, ADJOINT,
        )  # fmt: skip
        w_rows = (tap * C + c).to(tl.int64)
        w_tile = tl.load(weight + w_rows[:, None] * N + n[None, :], mask=(c < C)[:, None] & (n < N)[None, :], other=0.0)
        acc = tl.dot(x_tile, w_tile, acc, input_precision=PRECISION)
    channel = g * N + n
    if bias is not None:
        acc += tl.load(bias + channel, mask=n < N, other=0.0).to(tl.float32)[None, :]
    acc *= scale
    inside = (m < COUNT)[:, None] & (n < N)[None, :]
    if plus is not None:
        places = channel.to(tl.int64)[None, :] * stride_pc + m.to(tl.int64)[:, None] * stride_pt
        added = tl.load(plus + b.to(tl.int64) * stride_pb + places, mask=inside, other=0.0)
        acc += plus_scale * added.to(tl.float32)
    out = (b.to(tl.int64) * G * N + channel)[None, :] * COUNT + m[:, None]
    if z is not None:
        tl.store(z + out, acc.to(z.dtype.element_ty), mask=inside)
    tl.store(y + out, _activation.apply(acc, ACTIVATION).to(y.dtype.element_ty), mask=inside)


@triton.jit
def weight_gradient_kernel(
    x,
    history,
    index,
    grad,
    sums,
    RUNS,
    PER_CHUNK,
    LENGTH,
    REACH,
    G,
    C,
    N,
    K,
    dilation,
    stride_xb,
    stride_xc,
    stride_xt,
    stride_hb,
    stride_hc,
    stride_ib,
    stride_gb,
    stride_gc,
    stride_gt,
    PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """sums[s, g, k, c, n] = the sum over the times of chunk s of x[b, g C + c, t - delay_k] grad[b, g N + n, t].

    Runs of BLOCK_T times are numbered through the rows of the batch; a chunk has PER_CHUNK of all RUNS.
    """
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles_c = tl.cdiv(C, BLOCK_C)
    pid = tl.program_id(0)
    tile_n = pid % tiles_n
    tile_c = pid // tiles_n % tiles_c
    place = pid // (tiles_n * tiles_c)
    tap = place % K
    g = place // K % G
    chunk = place // (K * G)
    c = tile_c * BLOCK_C + tl.arange(0, BLOCK_C)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    per_row = tl.cdiv(LENGTH, BLOCK_T)
    delay = (K - 1 - tap) * dilation
    begin = chunk * PER_CHUNK
    acc = tl.zeros((BLOCK_C, BLOCK_N), tl.float32)
    for run in range(begin, tl.minimum(begin + PER_CHUNK, RUNS)):
        b = run // per_row
        t = run % per_row * BLOCK_T + tl.arange(0, BLOCK_T)
        x_tile = load_delayed(
            x, history, index, b, t, g * C + c, c < C, delay, LENGTH, REACH, stride_xb, stride_xc, stride_xt,
            stride_hb, stride_hc, stride_ib, False,
        )  # fmt: skip
        places = (g * N + n).to(tl.int64)[None, :] * stride_gc + t.to(tl.int64)[:, None] * stride_gt
        inside = (t < LENGTH)[:, None] & (n < N)[None, :]
        g_tile = tl.load(grad + b.to(tl.int64) * stride_gb + places, mask=inside, other=0.0)
        acc = tl.dot(tl.trans(x_tile), g_tile, acc, input_precision=PRECISION)
    out = (place.to(tl.int64) * C + c)[:, None] * N + n[None, :]
    tl.store(sums + out, acc, mask=(c < C)[:, None] & (n < N)[None, :])


@triton.jit
def activation_gradient_kernel(
    grad,
    saved,
    g,
    sums,
    CHANNELS,
    LENGTH,
    stride_gb,
    stride_gc,
    stride_gt,
    ACTIVATION: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """g = grad * act'(saved), contiguous, and sums[b, c, p] = its sum over the STEPS blocks of times of part p."""
    parts = tl.cdiv(LENGTH, STEPS * BLOCK)
    row = tl.program_id(0) // parts
    part = tl.program_id(0) % parts
    b = row // CHANNELS
    source = grad + b.to(tl.int64) * stride_gb + (row % CHANNELS).to(tl.int64) * stride_gc
    total = tl.zeros((BLOCK,), tl.float32)
    for step in range(STEPS):
        t = (part * STEPS + step) * BLOCK + tl.arange(0, BLOCK)
        inside = t < LENGTH
        values = tl.load(source + t.to(tl.int64) * stride_gt, mask=inside, other=0.0).to(tl.float32)
        out = row.to(tl.int64) * LENGTH + t
        if saved is not None:
            kept = tl.load(saved + out, mask=inside, other=0.0).to(tl.float32)
            values *= _activation.derivative(kept, ACTIVATION)
        total += values
        if g is not None:
            tl.store(g + out, values.to(g.dtype.element_ty), mask=inside)
    if sums is not None:
        tl.store(sums + tl.program_id(0), tl.sum(total, 0))
