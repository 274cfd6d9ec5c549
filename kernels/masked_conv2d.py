"""y = act(conv2d(x, W * M) + b) and its gradients over surviving taps: packing, launches, sizes of tiles.

The products themselves are in `_tap_products`. A `look` is (dy, dx, tap): by this tap, the result at p sees the source
at p * step + (dy, dx). Sources and results are channels last here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from fastar.kernels import _columns, _gate, _launch, _tap_products, _tiles, _tuning
from fastar.kernels._launch import Config

Look = tuple[int, int, int]

# Positions that one sum of the weight's gradient runs over at least, where several share the work.
_LEAST_CHUNK = 512


def _precision(dtype: torch.dtype, allow_tf32: bool) -> str:
    return "tf32" if dtype == torch.float32 and allow_tf32 else "ieee"


@cache
def _table(looks: tuple[Look, ...], device: torch.device) -> Tensor:
    # Kept: a copy to the device in each call would be one that a CUDA graph cannot hold.
    return torch.tensor(looks, dtype=torch.int32, device=_holding(device))


def _holding(device: torch.device) -> torch.device:
    """A device whose tensors have values: those of the meta device stand for launches that are recorded and counted."""
    return torch.device("cpu") if device.type == "meta" else device


def _where(looks: tuple[Look, ...], device: torch.device) -> dict[str, Any]:
    """The kernels' arguments that say where the looks go, which are in rising order.

    Mostly they are neighbours along the rows of a rectangle. Then no table is read: loads whose addresses wait for
    another load are harder to keep in flight.
    """
    left = min(dx for _, dx, _ in looks)
    width = max(dx for _, dx, _ in looks) - left + 1
    top, first = looks[0][0], looks[0][1] - left
    counted = all(look[:2] == (top + (first + t) // width, left + (first + t) % width) for t, look in enumerate(looks))
    table = None if counted else _table(looks, device)
    return {"table": table, "first": first, "width": width, "top": top, "left": left}


@cache
def _places(taps: tuple[int, ...], count: int, device: torch.device) -> Tensor:
    places = [-1] * count
    for place, tap in enumerate(taps):
        places[tap] = place
    return torch.tensor(places, dtype=torch.int32, device=_holding(device))


def channels_last(t: Tensor) -> Tensor:
    """The tensor [batch, channels, height, width] with its channels side by side; a copy where they are not."""
    return t if t.stride(1) == 1 else t.contiguous(memory_format=torch.channels_last)


def _matrix(t: Tensor) -> Tensor:
    """The tensor [batch, channels, height, width] as [positions, channels]; a copy where its strides allow no view."""
    return t.permute(0, 2, 3, 1).reshape(-1, t.shape[1])


def _packed(
    weight: Tensor,
    looks: tuple[Look, ...],
    transposed: bool,
    channel_mask: Tensor | None,
    masked: int,
    paired: bool,
) -> Tensor:
    """W [out, in, h, w] as [taps x in, out], or transposed as [taps x out, in], masked; paired for a gate."""
    flat = weight.flatten(2)
    rows, columns = (0, 1) if transposed else (1, 0)
    depth = len(looks) * weight.shape[rows]
    packed = weight.new_empty(depth, weight.shape[columns])
    mask = channel_mask if any(look[2] == masked for look in looks) else None
    block_rows, block_columns = 32, 64
    arguments = {
        "weight": flat,
        "mask": mask,
        "table": _table(looks, weight.device),
        "packed": packed,
        "masked": masked,
        "ROWS": weight.shape[rows],
        "COLUMNS": weight.shape[columns],
        "T": len(looks),
        "stride_wr": flat.stride(rows),
        "stride_wc": flat.stride(columns),
        "stride_wt": flat.stride(2),
        "stride_mr": 0 if mask is None else mask.stride(rows),
        "stride_mc": 0 if mask is None else mask.stride(columns),
        "PAIRED": paired,
        "BLOCK_R": block_rows,
        "BLOCK_C": block_columns,
    }
    grid = (triton.cdiv(depth, block_rows), triton.cdiv(weight.shape[columns], block_columns))
    _launch.launch(_tap_products.pack_kernel, grid, weight.device, arguments, num_warps=4)
    return packed


def _fitting(candidates: list[Config], K: int) -> list[Config]:
    """Those whose addresses fit the registers too: where a step has several taps, each element has its own."""
    if K % candidates[0].reduced == 0:
        return candidates
    return [one for one in candidates if one.rows * one.columns <= 128 * 128] or candidates[-1:]


def tap_sum(
    source: Tensor,
    looks: Sequence[Look],
    step: tuple[int, int],
    weight: Tensor,
    transposed: bool,
    channel_mask: Tensor | None,
    masked: int,
    bias: Tensor | None,
    y: Tensor,
    z: Tensor | None,
    activation: str,
    allow_tf32: bool,
) -> None:
    """y[p] = act(z[p]), z[p] = b + the looks' sum of W[tap] source[p * step + (dy, dx)], into y and, if given, z.

    `source`, `y` and `z` (laid out as y) have their channels side by side; y may be every n-th row and column of a
    tensor. With no looks the sum is empty. A gate leaves y half of z's channels.
    """
    listed = tuple(looks)
    gated = activation == "tanh_gate"
    N, K = y.shape[1] * (2 if gated else 1), source.shape[1]
    M = y.shape[0] * y.shape[2] * y.shape[3]
    if M * N == 0:
        return
    packed = _packed(weight, listed, transposed, channel_mask, masked, gated) if listed and K else weight
    precision = _precision(source.dtype, allow_tf32)

    def run(config: Config) -> None:
        arguments = {
            "source": source,
            "packed": packed,
            "bias": bias,
            "y": y,
            "z": z,
            **_where(listed or ((0, 0, 0),), source.device),
            "M": M,
            "N": N,
            "K": max(K, 1),
            "T": len(listed) if K else 0,
            "HEIGHT": y.shape[2],
            "WIDTH": y.shape[3],
            "SOURCE_HEIGHT": source.shape[2],
            "SOURCE_WIDTH": source.shape[3],
            "step_y": step[0],
            "step_x": step[1],
            "stride_si": source.stride(0),
            "stride_sy": source.stride(2),
            "stride_sx": source.stride(3),
            "stride_yi": y.stride(0),
            "stride_yy": y.stride(2),
            "stride_yx": y.stride(3),
            "ACTIVATION": activation,
            "ALIGNED": K % config.reduced == 0,
            "PRECISION": precision,
            "BLOCK_M": config.rows,
            "BLOCK_N": config.columns,
            "BLOCK_K": config.reduced,
        }
        _tiles.launch_product(_tap_products.tap_sum_kernel, M, N, config, source.device, arguments)

    depth = len(listed) * K
    candidates = _fitting(_tiles.configs(_launch.target_of(source.device), source.dtype, precision, M, N), K)
    key = (source.dtype, precision, K % candidates[0].reduced == 0, *(_tuning.bucket(size) for size in (M, N, depth)))
    run(_tuning.choose("masked_conv2d.tap_sum", key, candidates, source.device, run))


def weight_gradient(
    source: Tensor,
    looks: Sequence[Look],
    step: tuple[int, int],
    g: Tensor,
    weight: Tensor,
    channel_mask: Tensor | None,
    masked: int,
    allow_tf32: bool,
) -> Tensor:
    """dW[n, k, tap] = sum over p of g[p, n] source[p * step + (dy, dx), k], 0 where masked.

    There are few tiles of dW and many positions: several blocks share the positions of one tile, and their sums are
    added in a fixed order, without atomics.
    """
    listed = tuple(looks)
    N, K = weight.shape[:2]
    P = g.shape[0] * g.shape[2] * g.shape[3]
    if not listed or P * N * K * source.numel() == 0:
        return torch.zeros_like(weight, memory_format=torch.contiguous_format)
    rows_of_g = _matrix(channels_last(g))
    precision = _precision(source.dtype, allow_tf32)
    rows = len(listed) * K
    target = _launch.target_of(source.device)
    most = triton.cdiv(P, _LEAST_CHUNK)
    # The chunks fill the card, so that tiles may be large: unless they hold several taps and many addresses.
    candidates = _tiles.configs(target, source.dtype, precision, rows * most, N)
    fitting = [
        one
        for one in candidates
        if one.rows < 2 * rows
        and one.rows <= 128
        and (K % one.rows == 0 or one.rows * one.columns * source.itemsize <= 8192)
    ]
    config = (fitting or candidates[-1:])[0]
    tiles = triton.cdiv(rows, config.rows) * triton.cdiv(N, config.columns)
    chunks = max(1, min(triton.cdiv(2 * target.processors, tiles), most))
    chunk = triton.cdiv(triton.cdiv(P, chunks), config.reduced) * config.reduced
    chunks = triton.cdiv(P, chunk)
    sums = torch.empty(chunks, rows, N, dtype=torch.float32, device=source.device)
    arguments = {
        "source": source,
        "g": rows_of_g,
        "sums": sums,
        **_where(listed, source.device),
        "P": P,
        "N": N,
        "K": K,
        "T": len(listed),
        "HEIGHT": g.shape[2],
        "WIDTH": g.shape[3],
        "SOURCE_HEIGHT": source.shape[2],
        "SOURCE_WIDTH": source.shape[3],
        "CHUNK": chunk,
        "step_y": step[0],
        "step_x": step[1],
        "stride_si": source.stride(0),
        "stride_sy": source.stride(2),
        "stride_sx": source.stride(3),
        "stride_gp": rows_of_g.stride(0),
        "ALIGNED": K % config.rows == 0,
        "PRECISION": precision,
        "BLOCK_R": config.rows,
        "BLOCK_N": config.columns,
        "BLOCK_P": config.reduced,
    }
    grid = (tiles, chunks)
    _launch.launch(
        _tap_products.weight_gradient_kernel,
        grid,
        source.device,
        arguments,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    dw = torch.empty_like(weight, memory_format=torch.contiguous_format)
    taps = weight.shape[2] * weight.shape[3]
    block = 256
    arguments = {
        "sums": sums,
        "mask": channel_mask,
        "places": _places(tuple(look[2] for look in listed), taps, source.device),
        "dw": dw,
        "masked": masked,
        "S": chunks,
        "ROWS": K,
        "COLUMNS": N,
        "T": len(listed),
        "TAPS": taps,
        "SIZE": dw.numel(),
        "BLOCK": block,
    }
    _launch.launch(
        _tap_products.unpack_kernel, (triton.cdiv(dw.numel(), block),), source.device, arguments, num_warps=4
    )
    return dw


def activation_gradient(
    grad: Tensor, saved: Tensor | None, activation: str, *, need_values: bool, need_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """g = grad * act'(saved), channels last and without gaps between its pixels' rows, and its sum over positions."""
    batch, _, height, width = grad.shape
    kept = None if saved is None or activation == "none" else _matrix(saved)
    if activation == "tanh_gate":
        assert kept is not None
        g, sums = _gate.gradient(_matrix(grad), kept, need_values=need_values, need_sums=need_bias)
    else:
        g, sums = _columns.activation_gradient(
            _matrix(grad), kept, activation, None, need_values=need_values, need_sums=need_bias
        )
    return channels_last(g.unflatten(0, (batch, height, width)).permute(0, 3, 1, 2)), sums


def compile_cases() -> Iterator[tuple[str, Callable[[], None]]]:
    """Calls on meta tensors which between them launch every kernel, in every dtype, aligned and not."""

    def case(
        dtype: torch.dtype, channels: tuple[int, int], kernel: int, activation: str, allow_tf32: bool
    ) -> Callable[[], None]:
        def call() -> None:
            K, N = channels
            half = kernel // 2
            taps = range(kernel * kernel // 2 + 1)
            looks = [(tap // kernel - half, tap % kernel - half, tap) for tap in taps]
            flipped = [(-dy, -dx, tap) for dy, dx, tap in reversed(looks)]
            x, grad = (
                torch.empty(64, c, 32, 32, dtype=dtype, device="meta", memory_format=torch.channels_last)
                for c in (K, N)
            )
            weight = torch.empty(N, K, kernel, kernel, dtype=dtype, device="meta")
            mask = torch.empty(N, K, dtype=torch.bool, device="meta") if activation == "gelu" else None
            gated = activation == "tanh_gate"
            y = torch.empty_like(grad[:, : N // 2] if gated else grad, memory_format=torch.channels_last)
            z = torch.empty_like(grad) if gated or activation == "gelu" else None
            shared = (weight, False, mask, taps[-1])
            tap_sum(x, looks, (1, 1), *shared, weight[0, 0, 0, :1].expand(N), y, z, activation, allow_tf32)
            g, _ = activation_gradient(y, z if z is not None else y, activation, need_values=True, need_bias=True)
            tap_sum(
                g, flipped, (1, 1), weight, True, mask, taps[-1], None, torch.empty_like(x), None, "none", allow_tf32
            )
            weight_gradient(x, looks, (1, 1), g, weight, mask, taps[-1], allow_tf32)

        return call

    for dtype, channels, kernel, activation, allow_tf32 in (
        (torch.bfloat16, (256, 256), 3, "gelu", False),
        (torch.bfloat16, (256, 256), 5, "relu", False),
        (torch.float16, (3, 128), 7, "gelu", False),
        (torch.float32, (256, 256), 5, "elu", False),
        (torch.float32, (3, 120), 7, "tanh", True),
        (torch.bfloat16, (128, 256), 3, "tanh_gate", False),
        (torch.float32, (128, 256), 3, "tanh_gate", False),
    ):
        name = f"{str(dtype).removeprefix('torch.')}{' tf32' if allow_tf32 else ''}, {channels}, {kernel}, {activation}"
        yield name, case(dtype, channels, kernel, activation, allow_tf32)
