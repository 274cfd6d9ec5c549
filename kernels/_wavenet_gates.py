"""One layer of a WaveNet on tiles of times: z and h stay on the chip.

The gates' tile [times, channels] comes from two products side by side, that of the filter and that of the gate. Where
it holds all channels, h goes from the registers into the products with the residual's and the skip's weights at once.
Where channels are too many for that, each program takes some of them and h is written.

What bounds the narrow layers is the memory traffic of their inputs and outputs, the wide ones the matrix unit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastar.kernels import _activation
from fastar.kernels._causal_products import load_delayed


@triton.jit
def gates(
    x,
    packed,
    bias,
    conditioning,
    b,
    t,
    n,
    LENGTH,
    R,
    G,
    K,
    dilation,
    FRAMES,
    hop,
    stride_xb,
    stride_xc,
    stride_xt,
    PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """tanh(z_f) and sigmoid(z_g) as [t, n]; packed is W as [K, R, 2 G], conditioning [batch, 2 G, FRAMES]."""
    k_step = tl.arange(0, BLOCK_K)
    steps = tl.cdiv(R, BLOCK_K)
    filtered = tl.zeros((t.shape[0], n.shape[0]), tl.float32)
    opened = tl.zeros((t.shape[0], n.shape[0]), tl.float32)
    for i in range(K * steps):
        tap = i // steps
        c = (i - tap * steps) * BLOCK_K + k_step
        x_tile = load_delayed(
            x, None, None, b, t, c, c < R, (K - 1 - tap) * dilation, LENGTH, 0, stride_xb, stride_xc, stride_xt, 0, 0,
            0, False,
        )  # fmt: skip
        rows = packed + ((tap * R + c).to(tl.int64) * 2 * G)[:, None] + n[None, :]
        inside = (c < R)[:, None] & (n < G)[None, :]
        filtered = tl.dot(x_tile, tl.load(rows, mask=inside, other=0.0), filtered, input_precision=PRECISION)
        opened = tl.dot(x_tile, tl.load(rows + G, mask=inside, other=0.0), opened, input_precision=PRECISION)
    if bias is not None:
        filtered += tl.load(bias + n, mask=n < G, other=0.0).to(tl.float32)[None, :]
        opened += tl.load(bias + G + n, mask=n < G, other=0.0).to(tl.float32)[None, :]
    if conditioning is not None:
        # A frame's value is read for each of its times, from the first cache level.
        row = b.to(tl.int64) * 2 * G + n
        frame = (t // hop)[:, None]
        inside = (t < LENGTH)[:, None] & (n < G)[None, :]
        at = conditioning + row[None, :] * FRAMES + frame
        filtered += tl.load(at, mask=inside, other=0.0).to(tl.float32)
        at = conditioning + (row + G)[None, :] * FRAMES + frame
        opened += tl.load(at, mask=inside, other=0.0).to(tl.float32)
    return _activation.tanh(filtered), tl.sigmoid(opened)


@triton.jit
def _mix(
    h,
    weight,
    bias,
    before,
    after,
    out,
    b,
    t,
    g,
    LENGTH,
    ROWS,
    G,
    scale,
    stride_bb,
    stride_bc,
    stride_bt,
    stride_ab,
    stride_ac,
    stride_at,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """out[b, r, t] = (W h + bias + before) scale + after, `weight` being W transposed, [G, ROWS]."""
    for start in range(0, ROWS, BLOCK_N):
        r = start + tl.arange(0, BLOCK_N)
        inside_w = (g < G)[:, None] & (r < ROWS)[None, :]
        w_tile = tl.load(weight + g[:, None] * ROWS + r[None, :], mask=inside_w, other=0.0)
        acc = tl.dot(h, w_tile, input_precision=PRECISION)
        if bias is not None:
            acc += tl.load(bias + r, mask=r < ROWS, other=0.0).to(tl.float32)[None, :]
        inside = (t < LENGTH)[:, None] & (r < ROWS)[None, :]
        if before is not None:
            at = r.to(tl.int64)[None, :] * stride_bc + t.to(tl.int64)[:, None] * stride_bt
            acc += tl.load(before + b.to(tl.int64) * stride_bb + at, mask=inside, other=0.0).to(tl.float32)
        acc *= scale
        if after is not None:
            at = r.to(tl.int64)[None, :] * stride_ac + t.to(tl.int64)[:, None] * stride_at
            acc += tl.load(after + b.to(tl.int64) * stride_ab + at, mask=inside, other=0.0).to(tl.float32)
        place = (b.to(tl.int64) * ROWS + r)[None, :] * LENGTH + t[:, None]
        tl.store(out + place, acc.to(out.dtype.element_ty), mask=inside)


@triton.jit
def forward_kernel(
    x,
    packed,
    bias,
    conditioning,
    residual_weight,
    residual_bias,
    skip_weight,
    skip_bias,
    skip_sum,
    residual,
    skip,
    h_out,
    LENGTH,
    R,
    G,
    S,
    K,
    dilation,
    FRAMES,
    hop,
    residual_scale,
    skip_scale,
    stride_xb,
    stride_xc,
    stride_xt,
    stride_sb,
    stride_sc,
    stride_st,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Both outputs of a tile of times where BLOCK_G holds all channels; else, given h_out, some channels of h there."""
    tiles_m = tl.cdiv(LENGTH, BLOCK_M)
    tiles_g = tl.cdiv(G, BLOCK_G)
    pid = tl.program_id(0)
    n = pid % tiles_g * BLOCK_G + tl.arange(0, BLOCK_G)
    t = pid // tiles_g % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    b = pid // (tiles_g * tiles_m)
    filtered, opened = gates(
        x, packed, bias, conditioning, b, t, n, LENGTH, R, G, K, dilation, FRAMES, hop, stride_xb, stride_xc,
        stride_xt, PRECISION, BLOCK_K,
    )  # fmt: skip
    h = (filtered * opened).to(x.dtype.element_ty)
    if h_out is not None:
        place = (b.to(tl.int64) * G + n)[None, :] * LENGTH + t[:, None]
        tl.store(h_out + place, h, mask=(t < LENGTH)[:, None] & (n < G)[None, :])
    else:
        _mix(
            h, residual_weight, residual_bias, x, None, residual, b, t, n, LENGTH, R, G, residual_scale, stride_xb,
            stride_xc, stride_xt, 0, 0, 0, PRECISION, BLOCK_N,
        )  # fmt: skip
        _mix(
            h, skip_weight, skip_bias, None, skip_sum, skip, b, t, n, LENGTH, S, G, skip_scale, 0, 0, 0, stride_sb,
            stride_sc, stride_st, PRECISION, BLOCK_N,
        )  # fmt: skip


@triton.jit
def _back(
    grad,
    weight,
    b,
    t,
    n,
    LENGTH,
    ROWS,
    G,
    stride_gb,
    stride_gc,
    stride_gt,
    PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """(W^T grad)[n, t] as [t, n], `weight` being W [ROWS, G]."""
    acc = tl.zeros((t.shape[0], n.shape[0]), tl.float32)
    for start in range(0, ROWS, BLOCK_K):
        r = start + tl.arange(0, BLOCK_K)
        at = r.to(tl.int64)[None, :] * stride_gc + t.to(tl.int64)[:, None] * stride_gt
        inside = (t < LENGTH)[:, None] & (r < ROWS)[None, :]
        g_tile = tl.load(grad + b.to(tl.int64) * stride_gb + at, mask=inside, other=0.0)
        inside_w = (r < ROWS)[:, None] & (n < G)[None, :]
        w_tile = tl.load(weight + r[:, None] * G + n[None, :], mask=inside_w, other=0.0)
        acc = tl.dot(g_tile, w_tile, acc, input_precision=PRECISION)
    return acc


@triton.jit
def backward_kernel(
    x,
    packed,
    bias,
    conditioning,
    residual_weight,
    skip_weight,
    grad_residual,
    grad_skip,
    h_out,
    grad_z,
    LENGTH,
    R,
    G,
    S,
    K,
    dilation,
    FRAMES,
    hop,
    residual_scale,
    skip_scale,
    stride_xb,
    stride_xc,
    stride_xt,
    stride_rb,
    stride_rc,
    stride_rt,
    stride_sb,
    stride_sc,
    stride_st,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """h again, and the gradient of z, [batch, 2 G, LENGTH], of a tile of times and channels."""
    tiles_m = tl.cdiv(LENGTH, BLOCK_M)
    tiles_g = tl.cdiv(G, BLOCK_G)
    pid = tl.program_id(0)
    n = pid % tiles_g * BLOCK_G + tl.arange(0, BLOCK_G)
    t = pid // tiles_g % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    b = pid // (tiles_g * tiles_m)
    # First the gradient of h, so that no more than three tiles of sums are alive at once.
    grad_h = tl.zeros((BLOCK_M, BLOCK_G), tl.float32)
    if grad_residual is not None:
        grad_h = residual_scale * _back(
            grad_residual, residual_weight, b, t, n, LENGTH, R, G, stride_rb, stride_rc, stride_rt, PRECISION, BLOCK_K
        )
    if grad_skip is not None:
        grad_h += skip_scale * _back(
            grad_skip, skip_weight, b, t, n, LENGTH, S, G, stride_sb, stride_sc, stride_st, PRECISION, BLOCK_K
        )
    filtered, opened = gates(
        x, packed, bias, conditioning, b, t, n, LENGTH, R, G, K, dilation, FRAMES, hop, stride_xb, stride_xc,
        stride_xt, PRECISION, BLOCK_K,
    )  # fmt: skip
    inside = (t < LENGTH)[:, None] & (n < G)[None, :]
    place = (b.to(tl.int64) * G + n)[None, :] * LENGTH + t[:, None]
    tl.store(h_out + place, (filtered * opened).to(h_out.dtype.element_ty), mask=inside)
    row = b.to(tl.int64) * 2 * G + n
    first = grad_h * opened * (1.0 - filtered * filtered)
    place = row[None, :] * LENGTH + t[:, None]
    tl.store(grad_z + place, first.to(grad_z.dtype.element_ty), mask=inside)
    second = grad_h * filtered * opened * (1.0 - opened)
    place = (row + G)[None, :] * LENGTH + t[:, None]
    tl.store(grad_z + place, second.to(grad_z.dtype.element_ty), mask=inside)
