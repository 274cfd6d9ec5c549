"""One layer of a WaveNet and its gradients: launches and sizes of tiles.

The forward is one kernel up to 128 channels of h (64 in float32 without tf32), beyond that three with h between them: a
tile of 64 times by 256 channels of both sums spilled registers on sm_90. The backward is one kernel that computes z
again and leaves h and the gradient of z; the gradients of the weights and of x are products of these, by the kernels of
the causal convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from fastar.kernels import _launch, _wavenet_gates, causal_conv1d


@dataclass(frozen=True)
class Tile:
    """Times x channels of h, the step of reductions, rows of an output that are mixed at once, and warps."""

    times: int
    channels: int
    reduced: int
    rows: int
    num_warps: int
    num_stages: int


# From few channels to many, by element size and precision: the first that holds all channels serves; of the backward,
# which keeps a third tile of sums, at most 64 channels are taken at once.
_TILES: dict[tuple[int, str], list[Tile]] = {
    (2, "ieee"): [Tile(128, 32, 32, 64, 4, 3), Tile(128, 64, 32, 64, 8, 3), Tile(64, 128, 32, 64, 8, 3)],
    (4, "tf32"): [Tile(64, 32, 32, 32, 4, 3), Tile(64, 64, 32, 32, 8, 3), Tile(64, 128, 32, 32, 8, 2)],
    (4, "ieee"): [Tile(64, 32, 16, 32, 8, 2), Tile(32, 64, 16, 32, 8, 2)],
}  # fmt: skip
_INTERPRETED = [Tile(32, 16, 16, 16, 4, 1), Tile(32, 32, 16, 16, 4, 1)]


def _tiles(x: Tensor, precision: str) -> list[Tile]:
    if _launch.target_of(x.device) == _launch.INTERPRETER:
        return _INTERPRETED
    return _TILES[(x.dtype.itemsize, precision)]


def _precision(dtype: torch.dtype, allow_tf32: bool) -> str:
    return "tf32" if dtype == torch.float32 and allow_tf32 else "ieee"


def _shared(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    conditioning: Tensor | None,
    skip: int,
    dilation: int,
    hop: int,
    residual_scale: float,
    skip_scale: float,
) -> dict[str, Any]:
    """The arguments that forward and backward have in common; bias and conditioning are contiguous."""
    return {
        "x": x,
        "packed": causal_conv1d.packed(weight, 1, False),
        "bias": bias,
        "conditioning": conditioning,
        "LENGTH": x.shape[2],
        "R": x.shape[1],
        "G": weight.shape[0] // 2,
        "S": skip,
        "K": weight.shape[2],
        "dilation": dilation,
        "FRAMES": 1 if conditioning is None else conditioning.shape[2],
        "hop": hop,
        "residual_scale": residual_scale,
        "skip_scale": skip_scale,
        **_strides("x", x),
    }


def _strides(name: str, t: Tensor | None) -> dict[str, int]:
    return {f"stride_{name}{axis}": 0 if t is None else t.stride(place) for place, axis in enumerate("bct")}


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual_weight: Tensor,
    residual_bias: Tensor | None,
    skip_weight: Tensor,
    skip_bias: Tensor | None,
    conditioning: Tensor | None,
    skip_sum: Tensor | None,
    dilation: int,
    hop: int,
    residual_scale: float,
    skip_scale: float,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor]:
    """(residual, skip)."""
    batch, _, length = x.shape
    gate, S = weight.shape[0] // 2, skip_weight.shape[0]
    residual = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    skip = torch.empty(batch, S, length, dtype=x.dtype, device=x.device)
    if residual.numel() == 0:
        return residual, skip
    precision = _precision(x.dtype, allow_tf32)
    tiles = _tiles(x, precision)
    tile = next((one for one in tiles if gate <= one.channels), None)
    fused = tile is not None
    # Any number of channels, some at a time; h then goes through memory.
    tile = tile or tiles[1]
    h = None if fused else torch.empty(batch, gate, length, dtype=x.dtype, device=x.device)
    arguments = {
        **_shared(x, weight, bias, conditioning, S, dilation, hop, residual_scale, skip_scale),
        "residual_weight": residual_weight.t().contiguous(),
        "residual_bias": residual_bias,
        "skip_weight": skip_weight.t().contiguous(),
        "skip_bias": skip_bias,
        "skip_sum": skip_sum,
        "residual": residual,
        "skip": skip,
        "h_out": h,
        **_strides("s", skip_sum),
        "PRECISION": precision,
        "BLOCK_M": tile.times,
        "BLOCK_G": tile.channels,
        "BLOCK_K": tile.reduced,
        "BLOCK_N": tile.rows,
    }
    grid = (triton.cdiv(gate, tile.channels) * triton.cdiv(length, tile.times) * batch,)
    _launch.launch(
        _wavenet_gates.forward_kernel, grid, x.device, arguments, num_warps=tile.num_warps, num_stages=tile.num_stages
    )
    if h is not None:
        for matrix, vector, scale, out, plus, plus_scale in (
            (residual_weight, residual_bias, residual_scale, residual, x, residual_scale),
            (skip_weight, skip_bias, skip_scale, skip, skip_sum, 1.0),
        ):
            causal_conv1d.conv(
                h, matrix.unsqueeze(2), vector, None, None, 1, 1, "none", out, None, scale=scale,
                plus=plus, plus_scale=plus_scale,
                allow_tf32=allow_tf32,
            )  # fmt: skip
    return residual, skip


def backward(
    grad_residual: Tensor | None,
    grad_skip: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual_weight: Tensor,
    skip_weight: Tensor,
    conditioning: Tensor | None,
    dilation: int,
    hop: int,
    residual_scale: float,
    skip_scale: float,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor]:
    """(h [batch, gate, time], the gradient of z [batch, 2 gate, time])."""
    batch, _, length = x.shape
    gate = weight.shape[0] // 2
    h = torch.empty(batch, gate, length, dtype=x.dtype, device=x.device)
    grad_z = torch.empty(batch, 2 * gate, length, dtype=x.dtype, device=x.device)
    if h.numel() == 0:
        return h, grad_z
    precision = _precision(x.dtype, allow_tf32)
    candidates = [one for one in _tiles(x, precision) if one.channels <= 64]
    tile = next((one for one in candidates if gate <= one.channels), candidates[-1])
    arguments = {
        **_shared(x, weight, bias, conditioning, skip_weight.shape[0], dilation, hop, residual_scale, skip_scale),
        "residual_weight": residual_weight.contiguous(),
        "skip_weight": skip_weight.contiguous(),
        "grad_residual": grad_residual,
        "grad_skip": grad_skip,
        "h_out": h,
        "grad_z": grad_z,
        **_strides("r", grad_residual),
        **_strides("s", grad_skip),
        "PRECISION": precision,
        "BLOCK_M": tile.times,
        "BLOCK_G": tile.channels,
        "BLOCK_K": tile.reduced,
    }
    grid = (triton.cdiv(gate, tile.channels) * triton.cdiv(length, tile.times) * batch,)
    _launch.launch(
        _wavenet_gates.backward_kernel, grid, x.device, arguments, num_warps=tile.num_warps, num_stages=tile.num_stages
    )
    return h, grad_z


def compile_cases() -> Iterator[tuple[str, Callable[[], None]]]:
    """Calls on meta tensors which between them launch every kernel with every tile."""

    def case(dtype: torch.dtype, channels: int, skip: int, full: bool, allow_tf32: bool) -> Callable[[], None]:
        def call() -> None:
            def meta(*shape: int) -> Tensor:
                return torch.empty(shape, dtype=dtype, device="meta")

            x, weight = meta(8, channels, 16000), meta(2 * channels, channels, 2)
            matrices = (meta(channels, channels), meta(skip, channels))
            bias = meta(2 * channels) if full else None
            conditioning = meta(8, 2 * channels, 63) if full else None
            skip_sum = meta(8, skip, 16000) if full else None
            vectors = (meta(channels), meta(skip)) if full else (None, None)
            rest = (512, 256, 0.7, 0.2, allow_tf32)
            forward(x, weight, bias, matrices[0], vectors[0], matrices[1], vectors[1], conditioning, skip_sum, *rest)
            backward(x, meta(8, skip, 16000), x, weight, bias, *matrices, conditioning, *rest)

        return call

    for dtype, channels, skip, full, allow_tf32 in (
        (torch.bfloat16, 64, 256, True, False),
        (torch.bfloat16, 256, 256, True, False),
        (torch.float16, 120, 100, False, False),
        (torch.float16, 300, 100, True, False),
        (torch.float32, 64, 256, True, False),
        (torch.float32, 128, 256, False, True),
    ):
        name = f"{str(dtype).removeprefix('torch.')}{' tf32' if allow_tf32 else ''}, {channels}, {skip}"
        yield name, case(dtype, channels, skip, full, allow_tf32)
