"""The products of a convolution over surviving taps, on tiles of output positions, in channels-last order.

Position p of the result sums, over the taps that survive and the channels, what the source holds a tap's distance away:
a matrix product whose left side [positions, taps x channels] is never formed. Its tiles are loaded from the source
itself, where a row of a tile is a run of channels, and positions beyond the edge are masked. The weight is packed first
into [taps x channels, columns]: as it comes, taps lie beside each other, and masked ones between them.

What bounds them is the matrix unit; where channels are few, the loads' addresses.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastar.kernels import _activation


@triton.jit
def pack_kernel(
    weight,
    mask,
    table,
    packed,
    masked,
    ROWS,
    COLUMNS,
    T,
    stride_wr,
    stride_wc,
    stride_wt,
    stride_mr,
    stride_mc,
    PAIRED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """packed[t * ROWS + r, c] = weight[r, c, tap t], 0 where t is the masked tap and mask[r, c] is not set.

    PAIRED: columns of a gate's two halves take turns, so that a tile has both of what belongs together.
    """
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    t = row // ROWS
    r = row % ROWS
    known = row < T * ROWS
    tap = tl.load(table + 3 * t + 2, mask=known, other=0)
    inside = known[:, None] & (c < COLUMNS)[None, :]
    column = c
    if PAIRED:
        column = c % 2 * (COLUMNS // 2) + c // 2
    at = r.to(tl.int64)[:, None] * stride_wr + column.to(tl.int64)[None, :] * stride_wc + tap[:, None] * stride_wt
    values = tl.load(weight + at, mask=inside, other=0.0)
    if mask is not None:
        at = r.to(tl.int64)[:, None] * stride_mr + column.to(tl.int64)[None, :] * stride_mc
        seen = tl.load(mask + at, mask=inside, other=0)
        values = tl.where((tap == masked)[:, None] & (seen == 0), 0.0, values)
    tl.store(packed + row.to(tl.int64)[:, None] * COLUMNS + c[None, :], values, mask=inside)


@triton.jit
def _place(p, HEIGHT, WIDTH):
    """Image, row and column of position p."""
    x = p % WIDTH
    rest = p // WIDTH
    return rest // HEIGHT, rest % HEIGHT, x


@triton.jit
def _look(t, table, first, width, top, left, known):
    """(dy, dx) of look number t: counted along the rows of a rectangle, or where there is a table, from that."""
    if table is None:
        dy = top + (first + t) // width
        dx = left + (first + t) % width
    elif known is None:
        dy = tl.load(table + 3 * t)
        dx = tl.load(table + 3 * t + 1)
    else:
        dy = tl.load(table + 3 * t, mask=known, other=0)
        dx = tl.load(table + 3 * t + 1, mask=known, other=0)
    return dy, dx


@triton.jit
def _write(acc, bias, y, z, rows, inside_m, first_n, N, ACTIVATION: tl.constexpr):
    """Add the bias to a tile of sums, keep z if there is a place for it, and write y, whose rows begin at `rows`."""
    n = first_n + tl.arange(0, acc.shape[1])
    if bias is not None:
        acc += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    inside = inside_m[:, None] & (n < N)[None, :]
    at = rows[:, None] + n[None, :]
    if z is not None:
        tl.store(z + at, acc.to(z.dtype.element_ty), mask=inside)
    tl.store(y + at, _activation.apply(acc, ACTIVATION).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _write_gated(acc, bias, y, z, rows, inside_m, first_n, N):
    """`_write` where columns 2 n and 2 n + 1 of the tile are channels n and N / 2 + n of z, and y is their gate.

    Both y and z are channels last, so that rows of z begin at twice what those of y begin at.
    """
    HALF = N // 2
    n = first_n // 2 + tl.arange(0, acc.shape[1] // 2)
    a, b = tl.split(tl.reshape(acc, (acc.shape[0], acc.shape[1] // 2, 2)))
    if bias is not None:
        a += tl.load(bias + n, mask=n < HALF, other=0.0).to(tl.float32)[None, :]
        b += tl.load(bias + HALF + n, mask=n < HALF, other=0.0).to(tl.float32)[None, :]
    inside = inside_m[:, None] & (n < HALF)[None, :]
    if z is not None:
        at = 2 * rows[:, None] + n[None, :]
        tl.store(z + at, a.to(z.dtype.element_ty), mask=inside)
        tl.store(z + at + HALF, b.to(z.dtype.element_ty), mask=inside)
    tl.store(y + rows[:, None] + n[None, :], _activation.gate(a, b).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _finish(acc, bias, y, z, rows, inside_m, first_n, N, ACTIVATION: tl.constexpr):
    """`_write` in parts of 8192 values: the activation of a large tile at once would not fit the registers."""
    if acc.shape[0] * acc.shape[1] <= 8192 and ACTIVATION == "tanh_gate":
        _write_gated(acc, bias, y, z, rows, inside_m, first_n, N)
    elif acc.shape[0] * acc.shape[1] <= 8192:
        _write(acc, bias, y, z, rows, inside_m, first_n, N, ACTIVATION)
    else:
        HALF: tl.constexpr = acc.shape[1] // 2
        left, right = tl.split(tl.permute(tl.reshape(acc, (acc.shape[0], 2, HALF)), (0, 2, 1)))
        _finish(left, bias, y, z, rows, inside_m, first_n, N, ACTIVATION)
        _finish(right, bias, y, z, rows, inside_m, first_n + HALF, N, ACTIVATION)


@triton.jit
def tap_sum_kernel(
    source,
    packed,
    bias,
    y,
    z,
    table,
    M,
    N,
    K,
    T,
    HEIGHT,
    WIDTH,
    SOURCE_HEIGHT,
    SOURCE_WIDTH,
    first,
    width,
    top,
    left,
    step_y,
    step_x,
    stride_si,
    stride_sy,
    stride_sx,
    stride_yi,
    stride_yy,
    stride_yx,
    ACTIVATION: tl.constexpr,
    ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """y[p, n] = act(z[p, n]), z[p, n] = b[n] + sum over taps t and channels k of source[p * step + t, k] W[t, k, n].

    A gate's columns are paired, see `pack_kernel`, and y has N / 2. Where the T taps look: `_look`. ALIGNED: K is a
    multiple of BLOCK_K, so that a step has one tap.
    """
    tiles_n = tl.cdiv(N, BLOCK_N)
    # Tiles of the same positions lie beside each other: what they read of the source is shared through L2.
    tile_m = tl.program_id(0) // tiles_n
    tile_n = tl.program_id(0) % tiles_n
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k_step = tl.arange(0, BLOCK_K)
    image, row, column = _place(m, HEIGHT, WIDTH)
    source_y = row * step_y
    source_x = column * step_x
    base = image.to(tl.int64) * stride_si + source_y.to(tl.int64) * stride_sy + source_x.to(tl.int64) * stride_sx
    w_columns = packed + n[None, :]
    inside_m = m < M

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if ALIGNED:
        per_tap = K // BLOCK_K
        for i in range(T * per_tap):
            t = i // per_tap
            k = (i - t * per_tap) * BLOCK_K + k_step
            dy, dx = _look(t, table, first, width, top, left, None)
            at_y = source_y + dy
            at_x = source_x + dx
            seen = inside_m & (at_y >= 0) & (at_y < SOURCE_HEIGHT) & (at_x >= 0) & (at_x < SOURCE_WIDTH)
            shift = dy.to(tl.int64) * stride_sy + dx.to(tl.int64) * stride_sx
            s_tile = tl.load(source + (base + shift)[:, None] + k[None, :], mask=seen[:, None], other=0.0)
            w_rows = (i * BLOCK_K + k_step).to(tl.int64)
            w_tile = tl.load(w_columns + w_rows[:, None] * N, mask=(n < N)[None, :], other=0.0)
            acc = tl.dot(s_tile, w_tile, acc, input_precision=PRECISION)
    else:
        for i in range(tl.cdiv(T * K, BLOCK_K)):
            at = i * BLOCK_K + k_step
            t = at // K
            known = at < T * K
            dy, dx = _look(t, table, first, width, top, left, known)
            at_y = source_y[:, None] + dy[None, :]
            at_x = source_x[:, None] + dx[None, :]
            seen = (at_y >= 0) & (at_y < SOURCE_HEIGHT) & (at_x >= 0) & (at_x < SOURCE_WIDTH)
            seen = seen & inside_m[:, None] & known[None, :]
            shift = dy.to(tl.int64) * stride_sy + dx.to(tl.int64) * stride_sx + (at - t * K)
            s_tile = tl.load(source + base[:, None] + shift[None, :], mask=seen, other=0.0)
            inside = known[:, None] & (n < N)[None, :]
            w_tile = tl.load(w_columns + at.to(tl.int64)[:, None] * N, mask=inside, other=0.0)
            acc = tl.dot(s_tile, w_tile, acc, input_precision=PRECISION)

    rows = image.to(tl.int64) * stride_yi + row.to(tl.int64) * stride_yy + column.to(tl.int64) * stride_yx
    _finish(acc, bias, y, z, rows, inside_m, tile_n * BLOCK_N, N, ACTIVATION)


@triton.jit
def weight_gradient_kernel(
    source,
    g,
    sums,
    table,
    P,
    N,
    K,
    T,
    HEIGHT,
    WIDTH,
    SOURCE_HEIGHT,
    SOURCE_WIDTH,
    first,
    width,
    top,
    left,
    CHUNK,
    step_y,
    step_x,
    stride_si,
    stride_sy,
    stride_sx,
    stride_gp,
    ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """sums[s, t * K + k, n] = sum over the positions p of chunk s of source[p * step + t, k] g[p, n].

    ALIGNED: K is a multiple of BLOCK_R, so that a tile has one tap.
    """
    tiles_n = tl.cdiv(N, BLOCK_N)
    tile_r = tl.program_id(0) // tiles_n
    tile_n = tl.program_id(0) % tiles_n
    r = tile_r * BLOCK_R + tl.arange(0, BLOCK_R)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    known = r < T * K
    if ALIGNED:
        t = tile_r * BLOCK_R // K
        dy, dx = _look(t, table, first, width, top, left, None)
    else:
        t = r // K
        dy, dx = _look(t, table, first, width, top, left, known)
    shift = dy.to(tl.int64) * stride_sy + dx.to(tl.int64) * stride_sx + (r - t * K)

    begin = tl.program_id(1) * CHUNK
    end = tl.minimum(begin + CHUNK, P)
    acc = tl.zeros((BLOCK_R, BLOCK_N), tl.float32)
    for start in range(begin, end, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        image, row, column = _place(p, HEIGHT, WIDTH)
        source_y = row * step_y
        source_x = column * step_x
        base = image.to(tl.int64) * stride_si + source_y.to(tl.int64) * stride_sy + source_x.to(tl.int64) * stride_sx
        if ALIGNED:
            at_y = source_y + dy
            at_x = source_x + dx
            within = (at_y >= 0) & (at_y < SOURCE_HEIGHT) & (at_x >= 0) & (at_x < SOURCE_WIDTH) & (p < end)
            seen = known[:, None] & within[None, :]
        else:
            at_y = source_y[None, :] + dy[:, None]
            at_x = source_x[None, :] + dx[:, None]
            seen = (at_y >= 0) & (at_y < SOURCE_HEIGHT) & (at_x >= 0) & (at_x < SOURCE_WIDTH)
            seen = seen & known[:, None] & (p < end)[None, :]
        s_tile = tl.load(source + base[None, :] + shift[:, None], mask=seen, other=0.0)
        inside = (p < end)[:, None] & (n < N)[None, :]
        g_tile = tl.load(g + p.to(tl.int64)[:, None] * stride_gp + n[None, :], mask=inside, other=0.0)
        acc = tl.dot(s_tile, g_tile, acc, input_precision=PRECISION)
    out = sums + (tl.program_id(1).to(tl.int64) * T * K + r)[:, None] * N + n[None, :]
    tl.store(out, acc, mask=known[:, None] & (n < N)[None, :])


@triton.jit
def unpack_kernel(
    sums,
    mask,
    places,
    dw,
    masked,
    S,
    ROWS,
    COLUMNS,
    T,
    TAPS,
    SIZE,
    BLOCK: tl.constexpr,
):
    """dw[c, r, tap] = sum over s of sums[s, t * ROWS + r, c] for tap number t = places[tap]; 0 where there is none."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < SIZE
    tap = at % TAPS
    r = at // TAPS % ROWS
    c = at // TAPS // ROWS
    t = tl.load(places + tap, mask=inside, other=-1)
    seen = inside & (t >= 0)
    if mask is not None:
        kept = tl.load(mask + c * ROWS + r, mask=inside, other=0)
        seen = seen & ((tap != masked) | (kept != 0))
    total = tl.zeros((BLOCK,), tl.float32)
    for s in range(S):
        row = (s * T + t.to(tl.int64)) * ROWS + r
        total += tl.load(sums + row * COLUMNS + c, mask=seen, other=0.0)
    tl.store(dw + at, total.to(dw.dtype.element_ty), mask=inside)
