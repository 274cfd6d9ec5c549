"""Tiles of a matrix product: their order, the steps that a mask leaves of the reduced dimension, and their sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastar.kernels import _launch, _tuning
from fastar.kernels._launch import Config, Target

# Rows and columns of one entry of a block map: fastar.ops.mask_plan.BLOCK.
BLOCK = 64
MAP_BLOCK = tl.constexpr(BLOCK)

# Rows, columns and warps of a tile, from large to small, and the step of the reduction, by element size and precision.
# float32 without tf32 multiplies on the plain units, from registers: small tiles, short steps.
_SIZES: dict[tuple[int, str], tuple[int, list[tuple[int, int, int]]]] = {
    (2, "ieee"): (64, [(128, 128, 8), (64, 128, 4), (64, 64, 4), (32, 64, 4), (16, 64, 4)]),
    (4, "tf32"): (32, [(128, 128, 8), (64, 128, 4), (64, 64, 4), (32, 64, 4), (16, 64, 4)]),
    (4, "ieee"): (16, [(128, 64, 8), (64, 64, 4), (64, 32, 4), (32, 32, 4), (16, 32, 2)]),
}

# Where the sums of a tile need not share the registers with its operands, twice that size halves the traffic to L2. Of
# the two shapes the one that compiles without spills on the card in question.
_LARGEST = {9: (256, 128, 8), 10: (128, 256, 8)}

# Tiles of one wave share what they read through the L2 cache: this many strips lie beside each other.
GROUP = 8


@triton.jit
def tile_of(pid, tiles_m, tiles_n, GROUP: tl.constexpr):
    """The tile of a program: in groups of GROUP tiles of n, all m of one group before the next group."""
    group = pid // (GROUP * tiles_m)
    first = group * GROUP
    width = tl.minimum(tiles_n - first, GROUP)
    place = pid % (GROUP * tiles_m)
    return place // width, first + place % width


@triton.jit
def place(N, BLOCK_N: tl.constexpr):
    """Of a program: the outer entry, the positions n within it, and which of them exist."""
    tiles = tl.cdiv(N, BLOCK_N)
    b = (tl.program_id(0) // tiles).to(tl.int64)
    n = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    return b, n, n < N


@triton.jit
def rows_within(reach, k, N, SPAN: tl.constexpr):
    """How many rows have reach <= k: the first row that sees column k. Two rounds of SPAN loads, SPAN^2 >= N."""
    span = tl.arange(0, SPAN)
    last = tl.minimum(span * SPAN + SPAN - 1, N - 1)
    far = tl.load(reach + last)
    strips = tl.sum(((far <= k) & (span * SPAN < N)).to(tl.int32), 0)
    n = strips * SPAN + span
    near = tl.load(reach + n, mask=n < N, other=2147483647)
    return tl.minimum(strips * SPAN, N) + tl.sum((near <= k).to(tl.int32), 0)


@triton.jit
def start_of(i, blocks, STEP: tl.constexpr):
    """Where step i of the reduction starts: step by step, or where the list of blocks says."""
    if blocks is None:
        start = i * STEP
    else:
        PER_BLOCK: tl.constexpr = MAP_BLOCK // STEP
        entry = i // PER_BLOCK
        start = tl.load(blocks + entry) * MAP_BLOCK + (i - entry * PER_BLOCK) * STEP
    return start


@triton.jit
def strip_of(tile, TILE: tl.constexpr):
    """The strip of a block list that holds this tile: its own, or for tiles smaller than a map's entry a shared one."""
    strip = tile
    if TILE < MAP_BLOCK:
        strip = tile * TILE // MAP_BLOCK
    return strip


@triton.jit
def list_blocks_kernel(
    block_map,
    blocks,
    counts,
    ACROSS,
    ALONG,
    stride_across,
    stride_along,
    length,
    PER_STRIP: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Per strip of PER_STRIP map entries across: the entries along it that survive, full ones first, and both counts.

    A full block that sticks out of the matrix, `length` elements along, is listed as partial: full ones have no edge.
    """
    strip = tl.program_id(0)
    across = strip * PER_STRIP + tl.arange(0, PER_STRIP)
    out = blocks + strip * ALONG
    # First the full ones, then the partial ones are appended; both in their order along the strip.
    kept = 0
    for wanted in tl.static_range(2, 0, -1):
        for start in range(0, ALONG, SPAN):
            along = start + tl.arange(0, SPAN)
            known = (across < ACROSS)[:, None] & (along < ALONG)[None, :]
            at = across[:, None] * stride_across + along[None, :] * stride_along
            states = tl.load(block_map + at, mask=known, other=0).to(tl.int32)
            # What lies outside across counts as full: it has no effect.
            lowest = tl.min(tl.where((across < ACROSS)[:, None], states, 2), 0)
            highest = tl.max(states, 0)
            full = (lowest == 2) & ((along + 1) * MAP_BLOCK <= length)
            state = tl.where(full, 2, tl.where(highest > 0, 1, 0))
            hit = ((state == wanted) & (along < ALONG)).to(tl.int32)
            place = kept + tl.cumsum(hit, 0) - hit
            tl.store(out + place, along, mask=hit != 0)
            kept += tl.sum(hit, 0)
        tl.store(counts + 2 * strip + (2 - wanted), kept)


def listed_blocks(block_map: Tensor, tile: int, axis: int, length: int) -> tuple[Tensor, Tensor]:
    """Lists and counts of `list_blocks_kernel` for strips of `tile` rows (axis 0) or columns (axis 1) of the mask."""
    across, along = block_map.shape[axis], block_map.shape[1 - axis]
    per_strip = max(1, tile // BLOCK)
    strips = triton.cdiv(across, per_strip)
    blocks = block_map.new_empty(strips, along, dtype=torch.int32)
    counts = block_map.new_empty(strips, 2, dtype=torch.int32)
    arguments = {
        "block_map": block_map,
        "blocks": blocks,
        "counts": counts,
        "ACROSS": across,
        "ALONG": along,
        "stride_across": block_map.stride(axis),
        "stride_along": block_map.stride(1 - axis),
        "length": length,
        "PER_STRIP": per_strip,
        "SPAN": min(1024, triton.next_power_of_2(max(along, 1))),
    }
    _launch.launch(list_blocks_kernel, (strips,), block_map.device, arguments, num_warps=4)
    return blocks, counts


def span(size: int) -> int:
    """SPAN of `rows_within` for this many rows."""
    return triton.next_power_of_2(max(16, math.isqrt(max(size - 1, 0)) + 1))


def configs(target: Target, dtype: torch.dtype, precision: str, rows: int, columns: int) -> list[Config]:
    """Tile sizes for an output of rows x columns on a card, best guess first, three at most.

    All of them reduce in steps of the same size, so that they give the same bits.
    """
    if target == _launch.INTERPRETER:
        return [Config(32, 32, 32, 4, 1)]
    reduced, sizes = _SIZES[(dtype.itemsize, precision)]
    if reduced > 16 and target.capability // 10 in _LARGEST:
        sizes = [_LARGEST[target.capability // 10], *sizes]
    fitting = [one for one in sizes if one[0] < 2 * rows or one[0] == sizes[-1][0]]
    filling = [one for one in fitting if triton.cdiv(rows, one[0]) * triton.cdiv(columns, one[1]) >= target.processors]
    start = fitting.index(filling[0]) if filling else len(fitting) - 1
    chosen = []
    for height, width, warps in fitting[start : start + 3]:
        stage = (height + width) * reduced * dtype.itemsize
        # What is left over holds the tile on its way out and the barriers. Plain units never wait for a fourth stage.
        stages = max(2, min(3 if reduced == 16 else 4, (target.shared - 4096) // stage))
        chosen.append(Config(height, width, reduced, warps, stages))
    return chosen


def launch_product(
    kernel: Any, rows: int, columns: int, config: Config, device: torch.device, arguments: dict[str, Any]
) -> None:
    """One program per tile of an output of rows x columns."""
    grid = (triton.cdiv(rows, config.rows) * triton.cdiv(columns, config.columns),)
    stages = config.num_stages
    if arguments.get("blocks") is not None:
        # The address of a tile waits for the list of blocks: that takes a stage of the pipeline, and no buffer.
        stages += 1
    _launch.launch(kernel, grid, device, arguments, num_warps=config.num_warps, num_stages=stages)


def tuned(
    name: str, plan: str, like: Tensor, precision: str, sizes: tuple[int, int, int], run: Callable[[Config], None]
) -> None:
    """Run a product of sizes rows x columns x reduced, in the dtype of `like`, with the best of its candidate tiles."""
    candidates = configs(_launch.target_of(like.device), like.dtype, precision, sizes[0], sizes[1])
    key = (plan, like.dtype, precision, *(_tuning.bucket(size) for size in sizes))
    run(_tuning.choose(name, key, candidates, like.device, run))
