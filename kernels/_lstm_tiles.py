"""Where a tile of an LSTM's scan lies in the image, and what both directions read and write there.

A step's tile is some lanes by some hidden units. A lane is a column where the scan goes along rows, and a row where it
goes along diagonals; which pixel it has at a step follows from the order alone.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def places(tile, H, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr):
    """The lanes and the hidden units of a step's tile, counted along the units first."""
    h_tiles = tl.cdiv(H, BLOCK_H)
    lane = (tile // h_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    unit = (tile % h_tiles) * BLOCK_H + tl.arange(0, BLOCK_H)
    return lane, unit


@triton.jit
def pixels(step, lane, COLUMNS, LANES, ALONG: tl.constexpr):
    """Row and column of each lane's pixel at a step, whether it is one of the image, and its number in raster order."""
    if ALONG == "rows":
        row = step + lane * 0
        column = lane
    elif ALONG == "diagonals":
        row = lane
        column = step - lane
    else:
        row = lane
        column = COLUMNS - 1 - (step - lane)
    here = (lane < LANES) & (column >= 0) & (column < COLUMNS)
    return row, column, here, (row * COLUMNS + column).to(tl.int64)


@triton.jit
def look(tap, KERNEL: tl.constexpr, ALONG: tl.constexpr):
    """Rows and columns from a pixel to what tap number `tap` sees."""
    if ALONG == "rows":
        dy = -1
        dx = tap - KERNEL // 2
    elif ALONG == "diagonals":
        dy = tap - 1
        dx = -tap
    else:
        dy = tap - 1
        dx = tap
    return dy, dx


@triton.jit
def cell_before(cells, c0, row, column, unit, here, COLUMNS, H, KERNEL: tl.constexpr, ALONG: tl.constexpr):
    """The cell of the row above, or of the neighbour that tap 1 sees; c0's above the image, which may be None."""
    dy, dx = look(KERNEL // 2, KERNEL, ALONG)
    old_column = column + dx
    has_old = here & (row + dy >= 0) & (old_column >= 0) & (old_column < COLUMNS)
    old = ((row + dy) * COLUMNS + old_column).to(tl.int64)
    c = tl.load(cells + old[:, None] * H + unit[None, :], mask=has_old[:, None] & (unit < H)[None, :], other=0.0)
    if c0 is not None:
        at_start = (here & (row + dy < 0))[:, None] & (unit < H)[None, :]
        c += tl.load(c0 + old_column[:, None] * H + unit[None, :], mask=at_start, other=0.0).to(tl.float32)
    return c


@triton.jit
def load_gates(at, H, inside):
    """Four gates in float32 from the addresses of the first: o, f, i, g."""
    o = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    f = tl.load(at + H, mask=inside, other=0.0).to(tl.float32)
    i = tl.load(at + 2 * H, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(at + 3 * H, mask=inside, other=0.0).to(tl.float32)
    return o, f, i, g


@triton.jit
def store_gates(at, H, inside, o, f, i, g):
    """The reverse of `load_gates`."""
    kind = at.dtype.element_ty
    tl.store(at, o.to(kind), mask=inside)
    tl.store(at + H, f.to(kind), mask=inside)
    tl.store(at + 2 * H, i.to(kind), mask=inside)
    tl.store(at + 3 * H, g.to(kind), mask=inside)
