"""The causal convolution and its gradients: launches and sizes of tiles.

The products are in `_causal_products`, those of groups with one input each in `_depthwise`. Inputs are taken with any
strides; results are contiguous. Sums over times that several blocks share are added in a fixed order, without atomics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from fastar.kernels import _causal_products, _depthwise, _launch, _tiles, _tuning
from fastar.kernels._launch import Config

# Runs of times that one sum of the weight's gradient runs over at least, where several share the work.
_LEAST_RUNS = 8


def _precision(dtype: torch.dtype, allow_tf32: bool) -> str:
    return "tf32" if dtype == torch.float32 and allow_tf32 else "ieee"


def _strides(name: str, t: Tensor | None) -> dict[str, int]:
    """The arguments stride_<name>b, stride_<name>c and stride_<name>t."""
    return {f"stride_{name}{axis}": 0 if t is None else t.stride(place) for place, axis in enumerate("bct")}


def _past(history: Tensor | None, index: Tensor | None) -> dict[str, Any]:
    """The arguments of what stands before the first time, contiguous along time, and of the sequences' numbers."""
    return {
        "history": history,
        "index": index,
        "REACH": 0 if history is None else history.shape[2],
        "stride_hb": 0 if history is None else history.stride(0),
        "stride_hc": 0 if history is None else history.stride(1),
        "stride_ib": 0 if index is None else index.stride(0),
    }


def packed(weight: Tensor, groups: int, adjoint: bool) -> Tensor:
    """W [groups x N, C, K] as [groups, K, C, N], or for the adjoint as [groups, K, N, C]."""
    grouped = weight.unflatten(0, (groups, -1))
    return (grouped.permute(0, 3, 1, 2) if adjoint else grouped.permute(0, 3, 2, 1)).contiguous()


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    history: Tensor | None,
    index: Tensor | None,
    dilation: int,
    groups: int,
    activation: str,
    y: Tensor,
    z: Tensor | None,
    *,
    adjoint: bool = False,
    first: int = 0,
    scale: float = 1.0,
    plus: Tensor | None = None,
    plus_scale: float = 1.0,
    allow_tf32: bool = False,
) -> None:
    """y and, if given, z [batch, groups x N, count] of the convolution of x, or its adjoint, from time `first` on."""
    taps = packed(weight, groups, adjoint)
    _, K, C, N = taps.shape
    count = y.shape[2]
    M = y.shape[0] * count
    if y.numel() == 0:
        return
    precision = _precision(x.dtype, allow_tf32)

    def run(config: Config) -> None:
        arguments = {
            "x": x,
            "packed": taps,
            "bias": bias,
            "plus": plus,
            "y": y,
            "z": z,
            "first": first,
            "COUNT": count,
            "LENGTH": x.shape[2],
            "G": groups,
            "C": C,
            "N": N,
            "K": K,
            "dilation": dilation,
            "scale": scale,
            "plus_scale": plus_scale,
            **_past(history, index),
            **_strides("x", x),
            **_strides("p", plus),
            "ADJOINT": adjoint,
            "ACTIVATION": activation,
            "PRECISION": precision,
            "BLOCK_M": config.rows,
            "BLOCK_N": config.columns,
            "BLOCK_K": config.reduced,
        }
        tiles = triton.cdiv(count, config.rows) * triton.cdiv(N, config.columns)
        _launch.launch(
            _causal_products.conv_kernel, (tiles * y.shape[0] * groups,), x.device, arguments,
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip

    candidates = _fitting(_tiles.configs(_launch.target_of(x.device), x.dtype, precision, M * groups, N))
    key = (x.dtype, precision, adjoint, x.stride(2) == 1, *(_tuning.bucket(size) for size in (M * groups, N, K * C)))
    run(_tuning.choose("causal_conv1d.conv", key, candidates, x.device, run))


def _fitting(candidates: list[Config]) -> list[Config]:
    """Those whose addresses fit the registers beside the sums: each element of a tile of x has its own."""
    return [one for one in candidates if one.rows * one.columns <= 128 * 128] or candidates[-1:]


def weight_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    history: Tensor | None,
    index: Tensor | None,
    dilation: int,
    groups: int,
    allow_tf32: bool = False,
) -> Tensor:
    """The gradient of the weight, contiguous."""
    K, C, N = weight.shape[2], weight.shape[1], weight.shape[0] // groups
    batch, length = x.shape[0], x.shape[2]
    if batch * length * weight.numel() == 0:
        return torch.zeros_like(weight, memory_format=torch.contiguous_format)
    precision = _precision(x.dtype, allow_tf32)
    target = _launch.target_of(x.device)
    # Chunks of the times fill the card, so that tiles may be as large as the matrix.
    candidates = _fitting(_tiles.configs(target, x.dtype, precision, batch * length, N))
    config = next((one for one in candidates if one.rows < 2 * C and one.rows <= 64), candidates[-1])
    runs = batch * triton.cdiv(length, config.reduced)
    tiles = triton.cdiv(C, config.rows) * triton.cdiv(N, config.columns) * K * groups
    most = triton.cdiv(runs, _LEAST_RUNS)
    chunks = max(1, min(triton.cdiv(2 * target.processors, tiles), most))
    per_chunk = triton.cdiv(runs, chunks)
    chunks = triton.cdiv(runs, per_chunk)
    sums = torch.empty(chunks, groups, K, C, N, dtype=torch.float32, device=x.device)
    arguments = {
        "x": x,
        "grad": grad,
        "sums": sums,
        "RUNS": runs,
        "PER_CHUNK": per_chunk,
        "LENGTH": length,
        "G": groups,
        "C": C,
        "N": N,
        "K": K,
        "dilation": dilation,
        **_past(history, index),
        **_strides("x", x),
        **_strides("g", grad),
        "PRECISION": precision,
        "BLOCK_C": config.rows,
        "BLOCK_N": config.columns,
        "BLOCK_T": config.reduced,
    }
    _launch.launch(
        _causal_products.weight_gradient_kernel, (tiles * chunks,), x.device, arguments, num_warps=config.num_warps,
        num_stages=config.num_stages,
    )  # fmt: skip
    return sums.sum(0).permute(0, 3, 2, 1).reshape(weight.shape).to(weight.dtype)


def activation_gradient(
    grad: Tensor, saved: Tensor | None, activation: str, *, need_sums: bool
) -> tuple[Tensor, Tensor | None]:
    """g = grad * act'(saved), and its sum over batch and times."""
    kept = None if activation == "none" else saved
    if kept is None and not need_sums:
        return grad, None
    batch, channels, length = grad.shape
    if grad.numel() == 0:
        return torch.zeros_like(grad, memory_format=torch.contiguous_format), grad.new_zeros(channels)
    block = min(1024, triton.next_power_of_2(max(length, 16)))
    steps = max(1, min(8, triton.cdiv(length, block)))
    parts = triton.cdiv(length, steps * block)
    g = None if kept is None else torch.empty(grad.shape, dtype=grad.dtype, device=grad.device)
    sums = torch.empty(batch, channels, parts, dtype=torch.float32, device=grad.device) if need_sums else None
    arguments = {
        "grad": grad,
        "saved": kept,
        "g": g,
        "sums": sums,
        "CHANNELS": channels,
        "LENGTH": length,
        **_strides("g", grad),
        "ACTIVATION": activation,
        "STEPS": steps,
        "BLOCK": block,
    }
    _launch.launch(
        _causal_products.activation_gradient_kernel, (batch * channels * parts,), grad.device, arguments, num_warps=4
    )
    return grad if g is None else g, None if sums is None else sums.sum((0, 2)).to(grad.dtype)


def _depthwise_tile(length: int) -> dict[str, int]:
    times = min(512, triton.next_power_of_2(max(length, 16)))
    return {"BLOCK_T": times, "BLOCK_C": max(1, 1024 // times)}


def depthwise_sum(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    history: Tensor | None,
    index: Tensor | None,
    dilation: int,
    groups: int,
    activation: str,
) -> Tensor:
    """y of groups that have one input each."""
    channels, length = weight.shape[0], x.shape[2]
    y = torch.empty(x.shape[0], channels, length, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    tile = _depthwise_tile(length)
    arguments = {
        "x": x,
        "weight": weight,
        "bias": bias,
        "y": y,
        "LENGTH": length,
        "CHANNELS": channels,
        "MULTIPLIER": channels // groups,
        "K": weight.shape[2],
        "dilation": dilation,
        **_past(history, index),
        **_strides("x", x),
        "stride_wo": weight.stride(0),
        "stride_wk": weight.stride(2),
        "ACTIVATION": activation,
        **tile,
    }
    tiles = triton.cdiv(length, tile["BLOCK_T"]) * triton.cdiv(channels, tile["BLOCK_C"])
    _launch.launch(_depthwise.sum_kernel, (tiles * x.shape[0],), x.device, arguments, num_warps=4)
    return y


def depthwise_adjoint(
    grad: Tensor, weight: Tensor, index: Tensor | None, dilation: int, groups: int, dx: Tensor, first: int
) -> None:
    """dx[b, c, t] of groups that have one input each, from time `first` on."""
    count = dx.shape[2]
    if dx.numel() == 0:
        return
    tile = _depthwise_tile(count)
    arguments = {
        "grad": grad,
        "index": index,
        "weight": weight,
        "dx": dx,
        "first": first,
        "COUNT": count,
        "LENGTH": grad.shape[2],
        "INPUTS": groups,
        "MULTIPLIER": weight.shape[0] // groups,
        "K": weight.shape[2],
        "dilation": dilation,
        **_strides("g", grad),
        "stride_ib": 0 if index is None else index.stride(0),
        "stride_wo": weight.stride(0),
        "stride_wk": weight.stride(2),
        **tile,
    }
    tiles = triton.cdiv(count, tile["BLOCK_T"]) * triton.cdiv(groups, tile["BLOCK_C"])
    _launch.launch(_depthwise.adjoint_kernel, (tiles * dx.shape[0],), grad.device, arguments, num_warps=4)


def depthwise_weight_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    history: Tensor | None,
    index: Tensor | None,
    dilation: int,
    groups: int,
) -> Tensor:
    """The weight's gradient of groups that have one input each."""
    channels, length = weight.shape[0], x.shape[2]
    if x.numel() == 0:
        return torch.zeros_like(weight, memory_format=torch.contiguous_format)
    tile = _depthwise_tile(length)
    steps = max(1, min(16, triton.cdiv(length, tile["BLOCK_T"])))
    parts = triton.cdiv(length, steps * tile["BLOCK_T"])
    K = weight.shape[2]
    sums = torch.empty(x.shape[0] * parts, K, channels, dtype=torch.float32, device=x.device)
    arguments = {
        "x": x,
        "grad": grad,
        "sums": sums,
        "LENGTH": length,
        "CHANNELS": channels,
        "MULTIPLIER": channels // groups,
        "K": K,
        "dilation": dilation,
        **_past(history, index),
        **_strides("x", x),
        **_strides("g", grad),
        "STEPS": steps,
        **tile,
    }
    grid = (triton.cdiv(channels, tile["BLOCK_C"]) * x.shape[0] * parts,)
    _launch.launch(_depthwise.weight_gradient_kernel, grid, x.device, arguments, num_warps=4)
    return sums.sum(0).t().unsqueeze(1).to(weight.dtype)


def compile_cases() -> Iterator[tuple[str, Callable[[], None]]]:
    """Calls on meta tensors which between them launch every kernel, in every dtype, with each kind of past."""

    def meta(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def dense(
        dtype: torch.dtype, sizes: tuple[int, int], past: str, activation: str, flat: bool, allow_tf32: bool
    ) -> Callable[[], None]:
        def call() -> None:
            C, N = sizes
            x, y = meta(8, C, 16000, dtype=dtype), meta(8, N, 16000, dtype=dtype)
            x = x.mT.contiguous().mT if flat else x
            weight, bias = meta(N, C, 2, dtype=dtype), meta(N, dtype=dtype)
            history = meta(8, C, 512, dtype=dtype) if past == "state" else None
            index = meta(8, 16000, dtype=torch.int32) if past == "index" else None
            z = torch.empty_like(y) if activation == "gelu" else None
            given = (history, index, 512, 1)
            conv(x, weight, bias, *given, activation, y, z, allow_tf32=allow_tf32)
            g, _ = activation_gradient(y, y, activation, need_sums=True)
            conv(
                g, weight, None, None, index, 512, 1, "none", meta(8, C, 16000, dtype=dtype), None, adjoint=True,
                plus=x if past == "zeros" else None, allow_tf32=allow_tf32,
            )  # fmt: skip
            weight_gradient(g, x, weight, *given, allow_tf32)

        return call

    def depthwise(dtype: torch.dtype, past: str) -> Callable[[], None]:
        def call() -> None:
            x = meta(8, 1024, 4096, dtype=dtype)
            weight, bias = meta(1024, 1, 4, dtype=dtype), meta(1024, dtype=dtype)
            history = meta(8, 1024, 3, dtype=dtype) if past == "state" else None
            index = meta(8, 4096, dtype=torch.int32) if past == "index" else None
            y = depthwise_sum(x, weight, bias, history, index, 1, 1024, "silu")
            g, _ = activation_gradient(y, y, "silu", need_sums=True)
            depthwise_adjoint(g, weight, index, 1, 1024, x, 0)
            depthwise_weight_gradient(g, x, weight, history, index, 1, 1024)

        return call

    for dtype, sizes, past, activation, flat, allow_tf32 in (
        (torch.bfloat16, (64, 128), "zeros", "gelu", False, False),
        (torch.float16, (24, 120), "index", "silu", False, False),
        (torch.float32, (256, 256), "state", "elu", False, False),
        (torch.float32, (64, 128), "zeros", "tanh", True, True),
    ):
        name = f"{str(dtype).removeprefix('torch.')}{' tf32' if allow_tf32 else ''}, {sizes}, {past}, {activation}"
        yield name, dense(dtype, sizes, past, activation, flat, allow_tf32)
    for dtype, past in ((torch.bfloat16, "zeros"), (torch.float16, "index"), (torch.float32, "state")):
        yield f"{str(dtype).removeprefix('torch.')}, depthwise, {past}", depthwise(dtype, past)
