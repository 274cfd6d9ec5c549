"""An LSTM scanned over images: product with the hidden units before, gates, cell and hidden units in one kernel.

A step's tile of lanes and hidden units needs the hidden units of all channels of the step before, which other tiles
have made. Where one program can hold an image's whole step, that is where its tiles are few, it goes through all steps
by itself: it writes h, which is the result anyway, and reads it back after a barrier of its own threads, from the first
cache level of its multiprocessor, as it does with the cell. Nothing of the state crosses the chip, and one launch makes
the image. Larger states take a launch per step, with a program per tile: the same kernel, for one step.

A pixel's lane and step follow from the order of the scan, so that diagonals are walked in the image as it lies, without
a skewed copy and without the half of its positions that holds no pixel.

Backward, a tile needs what the step behind it says of all gates, which it reads from the result in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastar.kernels import _activation, _launch, _lstm_tiles

# Tiles of a step beyond which one program for a whole image would leave the rest of the card idle for too long.
_TILES_ALONE = 8

# BLOCK_K and warps of a forward launch for each step, by the card's generation and the size of an element. They were
# chosen for compiling without spills: the assembler saves registers that nobody else wants until it just spills.
_EACH_STEP = {(8, 2): (32, 8), (8, 4): (16, 4), (9, 2): (32, 4), (9, 4): (16, 4), (10, 2): (32, 4), (10, 4): (32, 4)}


@triton.jit
def forward_kernel(
    x,
    weight,
    h0,
    c0,
    h,
    cells,
    gates,
    first,
    turns,
    ROWS,
    COLUMNS,
    LANES,
    H,
    KERNEL: tl.constexpr,
    ALONG: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Tiles of lanes x hidden units, counted from the first step's on: `turns` of them from first + program axis 1.

    x and gates [B, ROWS, COLUMNS, 4 H], h and cells [B, ROWS, COLUMNS, H], h0 and c0 [B, COLUMNS, H] or None, weight
    [KERNEL, H, 4 H]. gates may be None.
    """
    image = tl.program_id(0).to(tl.int64)
    x += image * ROWS * COLUMNS * 4 * H
    h += image * ROWS * COLUMNS * H
    cells += image * ROWS * COLUMNS * H
    if gates is not None:
        gates += image * ROWS * COLUMNS * 4 * H
    if h0 is not None:
        h0 += image * COLUMNS * H
        c0 += image * COLUMNS * H
    tiles = tl.cdiv(LANES, BLOCK_N) * tl.cdiv(H, BLOCK_H)
    for turn in range(turns):
        place = first + tl.program_id(1) + turn
        lane, unit = _lstm_tiles.places(place % tiles, H, BLOCK_N, BLOCK_H)
        row, column, here, pixel = _lstm_tiles.pixels(place // tiles, lane, COLUMNS, LANES, ALONG)
        inside = here[:, None] & (unit < H)[None, :]
        at_gate = pixel[:, None] * 4 * H + unit[None, :]
        o, f, i, g = _lstm_tiles.load_gates(x + at_gate, H, inside)
        for tap in range(KERNEL):
            dy, dx = _lstm_tiles.look(tap, KERNEL, ALONG)
            seen_column = column + dx
            beside = here & (seen_column >= 0) & (seen_column < COLUMNS)
            above = row + dy >= 0
            seen = ((row + dy) * COLUMNS + seen_column).to(tl.int64)
            for start in range(0, H, BLOCK_K):
                k = start + tl.arange(0, BLOCK_K)
                a = tl.load(
                    h + seen[:, None] * H + k[None, :],
                    mask=(beside & above)[:, None] & (k < H)[None, :],
                    other=0.0,
                )
                if h0 is not None:
                    a += tl.load(
                        h0 + seen_column[:, None] * H + k[None, :],
                        mask=(beside & (row + dy < 0))[:, None] & (k < H)[None, :],
                        other=0.0,
                    )
                w = weight + (tap * H + k)[:, None] * 4 * H + unit[None, :]
                known = (k < H)[:, None] & (unit < H)[None, :]
                o = tl.dot(a, tl.load(w, mask=known, other=0.0), o, input_precision=PRECISION)
                f = tl.dot(a, tl.load(w + H, mask=known, other=0.0), f, input_precision=PRECISION)
                i = tl.dot(a, tl.load(w + 2 * H, mask=known, other=0.0), i, input_precision=PRECISION)
                g = tl.dot(a, tl.load(w + 3 * H, mask=known, other=0.0), g, input_precision=PRECISION)
        c = _lstm_tiles.cell_before(cells, c0, row, column, unit, here, COLUMNS, H, KERNEL, ALONG)
        o = tl.sigmoid(o)
        f = tl.sigmoid(f)
        i = tl.sigmoid(i)
        g = _activation.tanh(g)
        c = f * c + i * g
        at = pixel[:, None] * H + unit[None, :]
        tl.store(cells + at, c, mask=inside)
        tl.store(h + at, (o * _activation.tanh(c)).to(h.dtype.element_ty), mask=inside)
        if gates is not None:
            _lstm_tiles.store_gates(gates + at_gate, H, inside, o, f, i, g)
        # The next step reads what this one has written. Tiles are a single loop: as one inside that of the steps, what
        # the assembler kept from turn to turn made forward variants spill on each of the cards.
        tl.debug_barrier()


@triton.jit
def backward_kernel(
    grad,
    gates,
    cells,
    c0,
    weight,
    cell_gradient,
    grad_x,
    first,
    turns,
    final_step,
    ROWS,
    COLUMNS,
    LANES,
    H,
    KERNEL: tl.constexpr,
    ALONG: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Tiles as in the forward, counted from those of the scan's last step, final_step, down to the first's.

    grad and cells [B, ROWS, COLUMNS, H], gates and grad_x [B, ROWS, COLUMNS, 4 H], weight [KERNEL, 4 H, H], and
    cell_gradient [B, LANES, H], what a step says of the cell before it. c0 [B, COLUMNS, H] and grad may be None.
    """
    image = tl.program_id(0).to(tl.int64)
    if grad is not None:
        grad += image * ROWS * COLUMNS * H
    gates += image * ROWS * COLUMNS * 4 * H
    cells += image * ROWS * COLUMNS * H
    grad_x += image * ROWS * COLUMNS * 4 * H
    cell_gradient += image * LANES * H
    if c0 is not None:
        c0 += image * COLUMNS * H
    tiles = tl.cdiv(LANES, BLOCK_N) * tl.cdiv(H, BLOCK_H)
    for turn in range(turns):
        place = first + tl.program_id(1) + turn
        step = final_step - place // tiles
        lane, unit = _lstm_tiles.places(place % tiles, H, BLOCK_N, BLOCK_H)
        row, column, here, pixel = _lstm_tiles.pixels(step, lane, COLUMNS, LANES, ALONG)
        inside = here[:, None] & (unit < H)[None, :]
        at = pixel[:, None] * H + unit[None, :]
        dh = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
        if step < final_step:
            for tap in range(KERNEL):
                dy, dx = _lstm_tiles.look(tap, KERNEL, ALONG)
                # The pixel that sees this one by this tap.
                seer_column = column - dx
                known = here & (row - dy < ROWS) & (seer_column >= 0) & (seer_column < COLUMNS)
                seer = ((row - dy) * COLUMNS + seer_column).to(tl.int64)
                for start in range(0, 4 * H, BLOCK_K):
                    k = start + tl.arange(0, BLOCK_K)
                    dz = tl.load(
                        grad_x + seer[:, None] * 4 * H + k[None, :],
                        mask=known[:, None] & (k < 4 * H)[None, :],
                        other=0.0,
                    )
                    w = tl.load(
                        weight + (tap * 4 * H + k)[:, None] * H + unit[None, :],
                        mask=(k < 4 * H)[:, None] & (unit < H)[None, :],
                        other=0.0,
                    )
                    dh = tl.dot(dz, w, dh, input_precision=PRECISION)
        if grad is not None:
            dh += tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        at_gate = pixel[:, None] * 4 * H + unit[None, :]
        o, f, i, g = _lstm_tiles.load_gates(gates + at_gate, H, inside)
        t = _activation.tanh(tl.load(cells + at, mask=inside, other=0.0))
        before = _lstm_tiles.cell_before(cells, c0, row, column, unit, here, COLUMNS, H, KERNEL, ALONG)
        dc_at = cell_gradient + lane[:, None] * H + unit[None, :]
        dc = tl.load(dc_at, mask=inside, other=0.0) + dh * o * (1.0 - t * t)
        tl.store(dc_at, dc * f, mask=inside)
        of_o = dh * t * o * (1.0 - o)
        of_f = dc * before * f * (1.0 - f)
        of_i = dc * g * i * (1.0 - i)
        of_g = dc * i * (1.0 - g * g)
        _lstm_tiles.store_gates(grad_x + at_gate, H, inside, of_o, of_f, of_i, of_g)
        tl.debug_barrier()


def _blocks(x: Tensor, lanes: int, H: int, most_h: int, most_k: int) -> tuple[int, int, int]:
    """BLOCK_N, BLOCK_H and BLOCK_K; under the interpreter small images have several of each."""
    if _launch.target_of(x.device) == _launch.INTERPRETER:
        return 4, 8, 8
    size = triton.next_power_of_2(H)
    return max(16, min(32, triton.next_power_of_2(lanes))), max(16, min(most_h, size)), max(16, min(most_k, size))


def _tiles(lanes: int, H: int, blocks: tuple[int, int, int]) -> int:
    """Tiles of an image's step."""
    return triton.cdiv(lanes, blocks[0]) * triton.cdiv(H, blocks[1])


def _schedule(steps: int, tiles: int) -> Iterator[tuple[int, int, int]]:
    """Programs per image, and the first program's first tile and number of tiles, of each launch."""
    if tiles <= _TILES_ALONE:
        yield 1, 0, steps * tiles
        return
    for step in range(steps):
        yield tiles, step * tiles, 1


def _channels_last(t: Tensor | None) -> Tensor | None:
    """The same with the channels, which are second, last and contiguous."""
    return None if t is None else t.detach().movedim(1, -1).contiguous()


def _sizes(image: Tensor, along: str) -> tuple[int, int]:
    """Lanes and steps of images [B, rows, columns, channels]."""
    rows, columns = image.shape[1:3]
    return (columns, rows) if along == "rows" else (rows, rows + columns - 1)


def _of_both(
    images: Tensor, weight: Tensor, along: str, blocks: tuple[int, int, int], tf32: bool
) -> dict[str, int | str]:
    """The arguments that both kernels take, for images [B, rows, columns, channels]."""
    return {
        "ROWS": images.shape[1],
        "COLUMNS": images.shape[2],
        "LANES": _sizes(images, along)[0],
        "H": weight.shape[1],
        "KERNEL": weight.shape[2],
        "ALONG": along,
        "PRECISION": "tf32" if tf32 else "ieee",
        "BLOCK_N": blocks[0],
        "BLOCK_H": blocks[1],
        "BLOCK_K": blocks[2],
    }


def forward(
    x_gates: Tensor, weight: Tensor, h0: Tensor | None, c0: Tensor | None, along: str, keep: bool, tf32: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """h of all pixels, the cell after the last step, and, to be kept, activated gates and cells of all pixels."""
    x = _channels_last(x_gates)
    assert x is not None
    B, ROWS, COLUMNS, _ = x.shape
    H = weight.shape[1]
    lanes, steps = _sizes(x, along)
    h = x.new_empty(B, ROWS, COLUMNS, H)
    cells = x.new_empty(B, ROWS, COLUMNS, H, dtype=torch.float32)
    gates = torch.empty_like(x) if keep else None
    # Sums and weights of four gates at once: larger tiles spill.
    blocks = _blocks(x, lanes, H, 16, 16)
    tiles = _tiles(lanes, H, blocks)
    BLOCK_K, num_warps = blocks[2], 4
    if tiles > _TILES_ALONE:
        BLOCK_K, num_warps = _EACH_STEP.get((_launch.target_of(x.device).capability // 10, x.itemsize), (BLOCK_K, 4))
    arguments = {
        "x": x,
        "weight": weight.detach().permute(2, 1, 0).contiguous(),
        "h0": _channels_last(h0),
        "c0": _channels_last(c0),
        "h": h,
        "cells": cells,
        "gates": gates,
        **_of_both(x, weight, along, (*blocks[:2], BLOCK_K), tf32),
    }
    for programs, first, turns in _schedule(steps, tiles):
        own = {"first": first, "turns": turns}
        _launch.launch(forward_kernel, (B, programs), x.device, {**arguments, **own}, num_warps=num_warps)
    last = cells[:, -1].movedim(-1, 1)
    return h.movedim(-1, 1), last, *(None if t is None else t.movedim(-1, 1) for t in (gates, cells if keep else None))


def backward(
    grad: Tensor | None,
    grad_c: Tensor | None,
    gates: Tensor,
    cells: Tensor,
    weight: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    along: str,
    tf32: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of the gates before their activation, and of both initial states where there are any."""
    kept = _channels_last(gates)
    assert kept is not None
    B = kept.shape[0]
    H, KERNEL = weight.shape[1:]
    lanes, steps = _sizes(kept, along)
    grad_x = torch.empty_like(kept)
    dc = kept.new_zeros(B, lanes, H, dtype=torch.float32)
    if grad_c is not None:
        dc.copy_(grad_c.movedim(1, -1))
    blocks = _blocks(kept, lanes, H, 32, 64)
    tiles = _tiles(lanes, H, blocks)
    arguments = {
        "grad": _channels_last(grad),
        "gates": kept,
        "cells": _channels_last(cells),
        "c0": _channels_last(c0),
        "weight": weight.detach().permute(2, 0, 1).contiguous(),
        "cell_gradient": dc,
        "grad_x": grad_x,
        "final_step": steps - 1,
        **_of_both(kept, weight, along, blocks, tf32),
    }
    for programs, first, turns in _schedule(steps, tiles):
        own = {"first": first, "turns": turns}
        _launch.launch(backward_kernel, (B, programs), kept.device, {**arguments, **own}, num_warps=4)
    image = grad_x.movedim(-1, 1)
    if h0 is None:
        return image, None, None
    # Above the first row there is no tile: its gradient is a product of that row alone.
    grad_h0 = torch.nn.functional.conv_transpose1d(image[:, :, 0], weight, padding=KERNEL // 2)
    return image, grad_h0, dc.movedim(-1, 1)


def compile_cases() -> Iterator[tuple[str, Callable[[], None]]]:
    """Calls on meta tensors which between them launch both kernels, in every dtype, order and schedule."""

    def case(dtype: torch.dtype, along: str, H: int, k: int, with_state: bool, tf32: bool) -> Callable[[], None]:
        def call() -> None:
            def empty(*shape: int) -> Tensor:
                return torch.empty(shape, dtype=dtype, device="meta")

            x, weight = empty(4, 4 * H, 32, 32), empty(4 * H, H, k)
            state = [empty(4, H, 32) if with_state else None for _ in range(2)]
            for keep in (False, True):
                h, last, gates, cells = forward(x, weight, *state, along, keep, tf32)
            assert gates is not None
            assert cells is not None
            grad_c = last if along == "rows" else None
            backward(h, grad_c, gates, cells, weight, *state, along, tf32)

        return call

    for dtype, along, H, k, with_state, tf32 in (
        (torch.bfloat16, "rows", 64, 3, False, False),
        (torch.bfloat16, "diagonals", 128, 2, False, False),
        (torch.float16, "antidiagonals", 100, 2, False, False),
        (torch.float32, "rows", 64, 3, True, False),
        (torch.float32, "diagonals", 64, 2, False, True),
        (torch.bfloat16, "rows", 512, 3, True, False),
        (torch.float32, "diagonals", 512, 2, False, False),
        (torch.float32, "rows", 512, 3, False, True),
        (torch.float16, "antidiagonals", 500, 2, False, False),
    ):
        name = f"{str(dtype).removeprefix('torch.')}, {along}, H={H}, k={k}" + (", tf32" if tf32 else "")
        yield name, case(dtype, along, H, k, with_state, tf32)
