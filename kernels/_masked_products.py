"""The three products of a masked linear layer on tiles, of which those that the mask empties are never visited.

A triangular plan (see fastar.ops.mask_plan) orders rows and columns so that row n of W sees the columns k < reach[n],
and reach never falls. A tile of y then sums k from 0 to the reach of its last row, a tile of dx sums n from the first
row that reaches its first column, and a tile of dW exists if its last row reaches its first column. Only the tiles on
the boundary compare k with reach[n]; the others run the loop of a plain product. Rows of W are read through
`row_order`, which costs nothing since a row is contiguous.

A block plan lists, per strip of the output, the surviving blocks: the full ones first, then those whose mask is read.

What bounds them is the matrix unit, and on the way to it the traffic from L2: hence large tiles, copied
asynchronously. Bulk tensor copies are not used: Hopper's cannot follow `row_order`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastar.kernels import _activation, _tiles
from fastar.kernels._tiles import MAP_BLOCK


@triton.jit
def _write(acc, bias, y, z, row_order, m, first_n, M, N, stride_ym, ACTIVATION: tl.constexpr):
    """Add the bias to a tile of sums, keep z if there is a place for it, and write y."""
    n = first_n + tl.arange(0, acc.shape[1])
    if bias is not None:
        row = n
        if row_order is not None:
            row = tl.load(row_order + n, mask=n < N, other=0)
        acc += tl.load(bias + row, mask=n < N, other=0.0).to(tl.float32)[None, :]
    inside = (m < M)[:, None] & (n < N)[None, :]
    at = m.to(tl.int64)[:, None] * stride_ym + n[None, :]
    if z is not None:
        tl.store(z + at, acc.to(z.dtype.element_ty), mask=inside)
    tl.store(y + at, _activation.apply(acc, ACTIVATION).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _finish(acc, bias, y, z, row_order, m, first_n, M, N, stride_ym, ACTIVATION: tl.constexpr):
    """`_write` in parts of 8192 values: the activation of a large tile at once would not fit the registers."""
    if acc.shape[0] * acc.shape[1] <= 8192:
        _write(acc, bias, y, z, row_order, m, first_n, M, N, stride_ym, ACTIVATION)
    else:
        HALF: tl.constexpr = acc.shape[1] // 2
        # A thread holds columns of both halves, so that nothing moves between threads.
        left, right = tl.split(tl.permute(tl.reshape(acc, (acc.shape[0], 2, HALF)), (0, 2, 1)))
        _finish(left, bias, y, z, row_order, m, first_n, M, N, stride_ym, ACTIVATION)
        _finish(right, bias, y, z, row_order, m, first_n + HALF, M, N, stride_ym, ACTIVATION)


@triton.jit
def forward_kernel(
    x,
    weight,
    bias,
    y,
    z,
    row_order,
    reach,
    mask,
    blocks,
    counts,
    M,
    N,
    K,
    stride_xm,
    stride_xk,
    stride_wn,
    stride_wk,
    stride_ym,
    stride_blocks,
    ACTIVATION: tl.constexpr,
    PACKED: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y[m, n] = act(z[m, n]), z[m, n] = b[n] + sum over the visible k of x[m, k] W[n, k], n in the plan's order."""
    tiles_n = tl.cdiv(N, BLOCK_N)
    tile_m, tile_n = _tiles.tile_of(tl.program_id(0), tl.cdiv(M, BLOCK_M), tiles_n, GROUP)
    # The longest sums start first, so that the short ones fill the end.
    tile_n = tiles_n - 1 - tile_n
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k_step = tl.arange(0, BLOCK_K)
    row = n
    if row_order is not None and not PACKED:
        row = tl.load(row_order + n, mask=n < N, other=0)
    x_rows = x + m.to(tl.int64)[:, None] * stride_xm
    w_rows = weight + row.to(tl.int64)[None, :] * stride_wn

    strip = blocks
    if blocks is not None:
        entry = _tiles.strip_of(tile_n, BLOCK_N)
        strip = blocks + entry * stride_blocks
        full = tl.load(counts + 2 * entry) * (MAP_BLOCK // BLOCK_K)
        steps = tl.load(counts + 2 * entry + 1) * (MAP_BLOCK // BLOCK_K)
    elif reach is not None:
        full = tl.load(reach + tile_n * BLOCK_N) // BLOCK_K
        steps = tl.cdiv(tl.load(reach + tl.minimum(tile_n * BLOCK_N + BLOCK_N, N) - 1), BLOCK_K)
    else:
        full = K // BLOCK_K
        steps = tl.cdiv(K, BLOCK_K)

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i in range(full):
        at = (_tiles.start_of(i, strip, BLOCK_K) + k_step).to(tl.int64)
        x_tile = tl.load(x_rows + at[None, :] * stride_xk, mask=(m < M)[:, None], other=0.0)
        w_tile = tl.load(w_rows + at[:, None] * stride_wk, mask=(n < N)[None, :], other=0.0)
        acc = tl.dot(x_tile, w_tile, acc, input_precision=PRECISION)
    if reach is not None:
        limit = tl.load(reach + n, mask=n < N, other=0)
    for i in range(full, steps):
        k = _tiles.start_of(i, strip, BLOCK_K) + k_step
        at = k.to(tl.int64)
        x_tile = tl.load(x_rows + at[None, :] * stride_xk, mask=(m < M)[:, None] & (k < K)[None, :], other=0.0)
        inside = (n < N)[None, :] & (k < K)[:, None]
        w_tile = tl.load(w_rows + at[:, None] * stride_wk, mask=inside, other=0.0)
        # Selected, not multiplied by zero: what is masked may be infinite, or was never written.
        if reach is not None:
            w_tile = tl.where(k[:, None] < limit[None, :], w_tile, 0.0)
        if mask is not None:
            visible = tl.load(mask + n.to(tl.int64)[None, :] * K + k[:, None], mask=inside, other=0)
            w_tile = tl.where(visible != 0, w_tile, 0.0)
        acc = tl.dot(x_tile, w_tile, acc, input_precision=PRECISION)

    _finish(acc, bias, y, z, row_order, m, tile_n * BLOCK_N, M, N, stride_ym, ACTIVATION)


@triton.jit
def input_gradient_kernel(
    g,
    weight,
    dx,
    row_order,
    reach,
    mask,
    blocks,
    counts,
    M,
    N,
    K,
    stride_gm,
    stride_gn,
    stride_wn,
    stride_wk,
    stride_dm,
    stride_blocks,
    SPAN: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """dx[m, k] = sum over the n that see k of g[m, n] W[n, k], both orders the plan's."""
    # The first columns are seen by most rows: these longest sums start first.
    tile_m, tile_k = _tiles.tile_of(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(K, BLOCK_K), GROUP)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tile_k * BLOCK_K + tl.arange(0, BLOCK_K)
    n_step = tl.arange(0, BLOCK_N)
    g_rows = g + m.to(tl.int64)[:, None] * stride_gm
    w_columns = weight + k.to(tl.int64)[None, :] * stride_wk

    # Steps first_full .. full are plain; then come `boundary` steps from first_boundary, then the ragged end of N.
    strip = blocks
    first_full = 0
    first_boundary = 0
    boundary = 0
    full = N // BLOCK_N
    end = tl.cdiv(N, BLOCK_N)
    if blocks is not None:
        entry = _tiles.strip_of(tile_k, BLOCK_K)
        strip = blocks + entry * stride_blocks
        full = tl.load(counts + 2 * entry) * (MAP_BLOCK // BLOCK_N)
        end = tl.load(counts + 2 * entry + 1) * (MAP_BLOCK // BLOCK_N)
    elif reach is not None:
        first_boundary = _tiles.rows_within(reach, tile_k * BLOCK_K, N, SPAN) // BLOCK_N
        seen_whole = _tiles.rows_within(reach, tl.minimum(tile_k * BLOCK_K + BLOCK_K, K) - 1, N, SPAN)
        first_full = tl.minimum(tl.cdiv(seen_whole, BLOCK_N), full)
        first_boundary = tl.minimum(first_boundary, first_full)
        boundary = first_full - first_boundary

    acc = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    for i in range(first_full, full):
        n = _tiles.start_of(i, strip, BLOCK_N) + n_step
        row = n
        if row_order is not None:
            row = tl.load(row_order + n)
        g_tile = tl.load(g_rows + n.to(tl.int64)[None, :] * stride_gn, mask=(m < M)[:, None], other=0.0)
        w_tile = tl.load(w_columns + row.to(tl.int64)[:, None] * stride_wn, mask=(k < K)[None, :], other=0.0)
        acc = tl.dot(g_tile, w_tile, acc, input_precision=PRECISION)
    for j in range(boundary + end - full):
        i = tl.where(j < boundary, first_boundary + j, full + j - boundary)
        n = _tiles.start_of(i, strip, BLOCK_N) + n_step
        row = n
        if row_order is not None:
            row = tl.load(row_order + n, mask=n < N, other=0)
        g_tile = tl.load(
            g_rows + n.to(tl.int64)[None, :] * stride_gn, mask=(m < M)[:, None] & (n < N)[None, :], other=0.0
        )
        inside = (n < N)[:, None] & (k < K)[None, :]
        w_tile = tl.load(w_columns + row.to(tl.int64)[:, None] * stride_wn, mask=inside, other=0.0)
        if reach is not None:
            limit = tl.load(reach + n, mask=n < N, other=0)
            w_tile = tl.where(k[None, :] < limit[:, None], w_tile, 0.0)
        if mask is not None:
            visible = tl.load(mask + n.to(tl.int64)[:, None] * K + k[None, :], mask=inside, other=0)
            w_tile = tl.where(visible != 0, w_tile, 0.0)
        acc = tl.dot(g_tile, w_tile, acc, input_precision=PRECISION)

    inside = (m < M)[:, None] & (k < K)[None, :]
    tl.store(dx + m.to(tl.int64)[:, None] * stride_dm + k[None, :], acc.to(dx.dtype.element_ty), mask=inside)


@triton.jit
def weight_gradient_kernel(
    g,
    x,
    dw,
    row_order,
    reach,
    mask,
    block_map,
    M,
    N,
    K,
    stride_gm,
    stride_gn,
    stride_xm,
    stride_xk,
    stride_dn,
    WRITE_EMPTY: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """dW[n, k] = sum over m of g[m, n] x[m, k] where n sees k, else 0; rows scattered to their own places."""
    tiles_n = tl.cdiv(N, BLOCK_N)
    tile_k, tile_n = _tiles.tile_of(tl.program_id(0), tl.cdiv(K, BLOCK_K), tiles_n, GROUP)
    tile_n = tiles_n - 1 - tile_n
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tile_k * BLOCK_K + tl.arange(0, BLOCK_K)
    inside = (n < N)[:, None] & (k < K)[None, :]

    # An empty tile sums over no m at all; unless zeros must be written, it is not even touched.
    end = M
    if reach is not None and tl.load(reach + tl.minimum(tile_n * BLOCK_N + BLOCK_N, N) - 1) <= tile_k * BLOCK_K:
        end = 0
    if block_map is not None:
        ROWS: tl.constexpr = (BLOCK_N + MAP_BLOCK - 1) // MAP_BLOCK
        COLUMNS: tl.constexpr = (BLOCK_K + MAP_BLOCK - 1) // MAP_BLOCK
        map_n = tile_n * BLOCK_N // MAP_BLOCK + tl.arange(0, ROWS)
        map_k = tile_k * BLOCK_K // MAP_BLOCK + tl.arange(0, COLUMNS)
        width = tl.cdiv(K, MAP_BLOCK)
        known = (map_n < tl.cdiv(N, MAP_BLOCK))[:, None] & (map_k < width)[None, :]
        states = tl.load(block_map + map_n[:, None] * width + map_k[None, :], mask=known, other=0).to(tl.int32)
        if tl.max(tl.max(states, 1), 0) == 0:
            end = 0
    if not WRITE_EMPTY and end == 0:
        return
    g_columns = g + n.to(tl.int64)[:, None] * stride_gn
    x_columns = x + k.to(tl.int64)[None, :] * stride_xk
    acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for start in range(0, end, BLOCK_M):
        m = (start + tl.arange(0, BLOCK_M)).to(tl.int64)
        g_tile = tl.load(g_columns + m[None, :] * stride_gm, mask=(n < N)[:, None] & (m < M)[None, :], other=0.0)
        x_tile = tl.load(x_columns + m[:, None] * stride_xm, mask=(m < M)[:, None] & (k < K)[None, :], other=0.0)
        acc = tl.dot(g_tile, x_tile, acc, input_precision=PRECISION)
    if reach is not None:
        limit = tl.load(reach + n, mask=n < N, other=0)
        acc = tl.where(k[None, :] < limit[:, None], acc, 0.0)
    if mask is not None:
        visible = tl.load(mask + n.to(tl.int64)[:, None] * K + k[None, :], mask=inside, other=0)
        acc = tl.where(visible != 0, acc, 0.0)
    row = n
    if row_order is not None:
        row = tl.load(row_order + n, mask=n < N, other=0)
    tl.store(dw + row.to(tl.int64)[:, None] * stride_dn + k[None, :], acc.to(dw.dtype.element_ty), mask=inside)
