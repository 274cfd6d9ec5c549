"""Causal convolutions whose groups have one input each: bound by memory, products on the plain units.

A program takes a few channels and a run of times. The taps read the same run, delayed: after the first of them from the
first cache level.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastar.kernels import _activation
from fastar.kernels._causal_products import load_delayed


@triton.jit
def sum_kernel(
    x,
    history,
    index,
    weight,
    bias,
    y,
    LENGTH,
    REACH,
    CHANNELS,
    MULTIPLIER,
    K,
    dilation,
    stride_xb,
    stride_xc,
    stride_xt,
    stride_hb,
    stride_hc,
    stride_ib,
    stride_wo,
    stride_wk,
    ACTIVATION: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """y[b, o, t] = act(bias[o] + sum over k of W[o, k] x[b, o // MULTIPLIER, t - (K - 1 - k) dilation])."""
    tiles_t = tl.cdiv(LENGTH, BLOCK_T)
    tiles_c = tl.cdiv(CHANNELS, BLOCK_C)
    pid = tl.program_id(0)
    t = pid % tiles_t * BLOCK_T + tl.arange(0, BLOCK_T)
    o = pid // tiles_t % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    b = pid // (tiles_t * tiles_c)
    inside_o = o < CHANNELS
    acc = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
    if bias is not None:
        acc += tl.load(bias + o, mask=inside_o, other=0.0).to(tl.float32)[None, :]
    for k in range(K):
        tile = load_delayed(
            x, history, index, b, t, o // MULTIPLIER, inside_o, (K - 1 - k) * dilation, LENGTH, REACH, stride_xb,
            stride_xc, stride_xt, stride_hb, stride_hc, stride_ib, False,
        )  # fmt: skip
        w = tl.load(weight + o * stride_wo + k * stride_wk, mask=inside_o, other=0.0).to(tl.float32)
        acc += tile.to(tl.float32) * w[None, :]
    out = (b.to(tl.int64) * CHANNELS + o)[None, :] * LENGTH + t[:, None]
    inside = (t < LENGTH)[:, None] & inside_o[None, :]
    tl.store(y + out, _activation.apply(acc, ACTIVATION).to(y.dtype.element_ty), mask=inside)


@triton.jit
def adjoint_kernel(
    grad,
    index,
    weight,
    dx,
    first,
    COUNT,
    LENGTH,
    INPUTS,
    MULTIPLIER,
    K,
    dilation,
    stride_gb,
    stride_gc,
    stride_gt,
    stride_ib,
    stride_wo,
    stride_wk,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """dx[b, c, t] = sum over k and outputs o of c of W[o, k] grad[b, o, t + (K - 1 - k) dilation], t from `first`."""
    tiles_t = tl.cdiv(COUNT, BLOCK_T)
    tiles_c = tl.cdiv(INPUTS, BLOCK_C)
    pid = tl.program_id(0)
    m = pid % tiles_t * BLOCK_T + tl.arange(0, BLOCK_T)
    c = pid // tiles_t % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    b = pid // (tiles_t * tiles_c)
    inside_c = c < INPUTS
    acc = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
    for i in range(K * MULTIPLIER):
        k = i // MULTIPLIER
        o = c * MULTIPLIER + i % MULTIPLIER
        tile = load_delayed(
            grad, None, index, b, first + m, o, inside_c, (k + 1 - K) * dilation, LENGTH, 0, stride_gb, stride_gc,
            stride_gt, 0, 0, stride_ib, True,
        )  # fmt: skip
        w = tl.load(weight + o * stride_wo + k * stride_wk, mask=inside_c, other=0.0).to(tl.float32)
        acc += tile.to(tl.float32) * w[None, :]
    out = (b.to(tl.int64) * INPUTS + c)[None, :] * COUNT + m[:, None]
    tl.store(dx + out, acc.to(dx.dtype.element_ty), mask=(m < COUNT)[:, None] & inside_c[None, :])


@triton.jit
def weight_gradient_kernel(
    x,
    history,
    index,
    grad,
    sums,
    LENGTH,
    REACH,
    CHANNELS,
    MULTIPLIER,
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
    STEPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """sums[b, p, k, o] = the sum over the STEPS blocks of times of part p of grad[b, o, t] x[b, o's, t - delay_k]."""
    parts = tl.cdiv(LENGTH, STEPS * BLOCK_T)
    tiles_c = tl.cdiv(CHANNELS, BLOCK_C)
    pid = tl.program_id(0)
    o = pid % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    place = pid // tiles_c
    part = place % parts
    b = place // parts
    inside_o = o < CHANNELS
    # Tap by tap: what the first reads, 32 KiB of each tensor at most, the others find in the first cache level.
    for k in range(K):
        total = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
        for step in range(STEPS):
            t = (part * STEPS + step) * BLOCK_T + tl.arange(0, BLOCK_T)
            tile = load_delayed(
                x, history, index, b, t, o // MULTIPLIER, inside_o, (K - 1 - k) * dilation, LENGTH, REACH, stride_xb,
                stride_xc, stride_xt, stride_hb, stride_hc, stride_ib, False,
            )  # fmt: skip
            places = o.to(tl.int64)[None, :] * stride_gc + t.to(tl.int64)[:, None] * stride_gt
            inside = (t < LENGTH)[:, None] & inside_o[None, :]
            g = tl.load(grad + b.to(tl.int64) * stride_gb + places, mask=inside, other=0.0)
            total += tile.to(tl.float32) * g.to(tl.float32)
        out = (place.to(tl.int64) * K + k) * CHANNELS + o
        tl.store(sums + out, tl.sum(total, 0), mask=inside_o)
