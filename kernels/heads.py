"""Heads: log p(x) of each position and its gradient; the parameters are read, and nothing else of their size is made.

In PyTorch: see fastar.reference.heads. Bound by memory, mixtures of few components by the special functions of their
densities. The gradients start from the parameters again: one that the forward left behind would have to be read and
written once more to be multiplied by the incoming one, and kept in memory until then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastar.kernels import _launch, _mixtures, _tiles

# Elements of a tile: eight a thread.
_ELEMENTS = 1024
# A row of logits up to this many is taken whole; longer ones in pieces of this size, twice in the backward.
_WHOLE = 4096


@triton.jit
def bernoulli_kernel(logits, x, log_prob, N, D, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    """log_prob[n] = sum over d of x l - softplus(l) for logits l [N, D]; STEPS = 0: elementwise, D being 1."""
    if STEPS == 0:
        n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        within = n < N
        logit = tl.load(logits + n, mask=within, other=0.0).to(tl.float32)
        value = tl.load(x + n, mask=within, other=0).to(tl.float32)
        tl.store(
            log_prob + n, value * logit - tl.maximum(logit, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(logit))), mask=within
        )
    else:
        row = tl.program_id(0).to(tl.int64) * D
        total = tl.zeros((BLOCK,), tl.float32)
        for step in range(STEPS):
            d = step * BLOCK + tl.arange(0, BLOCK)
            within = d < D
            logit = tl.load(logits + row + d, mask=within, other=0.0).to(tl.float32)
            value = tl.load(x + row + d, mask=within, other=0).to(tl.float32)
            term = value * logit - tl.maximum(logit, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(logit)))
            total += tl.where(within, term, 0.0)
        tl.store(log_prob + tl.program_id(0), tl.sum(total, 0))


@triton.jit
def bernoulli_gradient_kernel(grad, logits, x, grad_logits, E, D, BLOCK: tl.constexpr):
    """grad_logits = grad (x - sigmoid(l)), entry by entry of the E logits [N, D]."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    within = at < E
    logit = tl.load(logits + at, mask=within, other=0.0).to(tl.float32)
    value = tl.load(x + at, mask=within, other=0).to(tl.float32)
    g = tl.load(grad + at // D, mask=within, other=0.0)
    tl.store(grad_logits + at, (g * (value - tl.sigmoid(logit))).to(grad_logits.dtype.element_ty), mask=within)


@triton.jit
def logits_of(row, level, L, stride, within):
    """The logits [n, level] in float32; -inf beyond the last level."""
    exists = (level < L)[None, :]
    # Rows beyond the last position hold zeros, so that nothing about them is NaN.
    values = tl.load(row + level.to(tl.int64)[None, :] * stride, mask=within[:, None] & exists, other=0.0)
    return tl.where(exists, values.to(tl.float32), float("-inf"))


@triton.jit
def normaliser(row, L, stride, within, BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr):
    """The greatest logit of each position and the sum of exp(l - that), in one pass over the levels."""
    top = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(0, L, BLOCK_L):
        logit = logits_of(row, start + tl.arange(0, BLOCK_L), L, stride, within)
        now = tl.maximum(top, tl.max(logit, 1))
        # Where no level so far has any probability, -inf - -inf would be no number.
        shift = tl.where(now == float("-inf"), 0.0, now)
        total = total * tl.exp(top - shift) + tl.sum(tl.exp(logit - shift[:, None]), 1)
        top = now
    return top, total


@triton.jit
def categorical_kernel(
    logits, x, log_prob, L, N, stride_b, stride_p, stride_n, BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr
):
    """log_prob[n] = (l[x] - max l) - log sum exp(l - max l); NaN for an x that is no level."""
    b, n, within = _tiles.place(N, BLOCK_N)
    start = logits + b * stride_b + n * stride_n
    top, total = normaliser(start[:, None], L, stride_p, within, BLOCK_N, BLOCK_L)
    level = tl.load(x + b * N + n, mask=within, other=0)
    known = (level >= 0) & (level < L)
    chosen = tl.load(start + level * stride_p, mask=within & known, other=0.0).to(tl.float32)
    chosen = tl.where(known, chosen, float("nan"))
    tl.store(log_prob + b * N + n, (chosen - top) - tl.log(total), mask=within)


@triton.jit
def categorical_gradient_kernel(
    grad,
    logits,
    x,
    grad_logits,
    L,
    N,
    stride_b,
    stride_p,
    stride_n,
    stride_gb,
    stride_gp,
    stride_gn,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """grad_logits = grad (onehot(x) - softmax(l))."""
    b, n, within = _tiles.place(N, BLOCK_N)
    row = (logits + b * stride_b + n * stride_n)[:, None]
    out = (grad_logits + b * stride_gb + n * stride_gn)[:, None]
    top, total = normaliser(row, L, stride_p, within, BLOCK_N, BLOCK_L)
    chosen = tl.load(x + b * N + n, mask=within, other=0)
    g = tl.load(grad + b * N + n, mask=within, other=0.0)
    for start in range(0, L, BLOCK_L):
        level = start + tl.arange(0, BLOCK_L)
        p = tl.exp(logits_of(row, level, L, stride_p, within) - top[:, None]) / total[:, None]
        hit = tl.where(level[None, :] == chosen[:, None], 1.0, 0.0)
        value = (g[:, None] * (hit - p)).to(grad_logits.dtype.element_ty)
        tl.store(out + level.to(tl.int64)[None, :] * stride_gp, value, mask=within[:, None] & (level < L)[None, :])


def _places(sizes: Sequence[int], strides: Sequence[int]) -> dict[str, int]:
    return {"N": sizes[2], "stride_b": strides[0], "stride_p": strides[1], "stride_n": strides[2]}


def _gradient_strides(strides: Sequence[int]) -> dict[str, int]:
    return {"stride_gb": strides[0], "stride_gp": strides[1], "stride_gn": strides[2]}


def _launch_tiles(
    kernel: Any, device: torch.device, sizes: Sequence[int], tile: dict[str, int], arguments: Any
) -> None:
    """One program per tile of positions of each outer entry."""
    grid = (sizes[0] * triton.cdiv(sizes[2], tile["BLOCK_N"]),)
    warps = max(4, min(8, math.prod(tile.values()) // 256))
    _launch.launch(kernel, grid, device, {**arguments, **tile}, num_warps=warps)


def bernoulli(logits: Tensor, x: Tensor, summed: int) -> Tensor:
    """log p(x) of contiguous logits, each (`summed` 0) or the sums over the last `summed` of them, in float32."""
    N = logits.numel() // max(summed, 1)
    out = logits.new_empty(N, dtype=torch.float32)
    block = min(_ELEMENTS, triton.next_power_of_2(summed or _ELEMENTS))
    steps = triton.cdiv(summed, block)
    arguments = {"logits": logits, "x": x, "log_prob": out, "N": N, "D": max(summed, 1), "STEPS": steps, "BLOCK": block}
    grid = (N,) if steps else (triton.cdiv(N, block),)
    _launch.launch(bernoulli_kernel, grid, logits.device, arguments, num_warps=4)
    return out


def bernoulli_gradient(grad: Tensor, logits: Tensor, x: Tensor, summed: int) -> Tensor:
    """The gradient of contiguous logits."""
    out = torch.empty_like(logits)
    sizes = {"E": logits.numel(), "D": max(summed, 1), "BLOCK": _ELEMENTS}
    arguments = {"grad": grad, "logits": logits, "x": x, "grad_logits": out, **sizes}
    grid = (triton.cdiv(logits.numel(), _ELEMENTS),)
    _launch.launch(bernoulli_gradient_kernel, grid, logits.device, arguments, num_warps=4)
    return out


def _levels_tile(levels: int, side_by_side: bool) -> dict[str, int]:
    """Whole rows where levels lie side by side, else positions first."""
    across = triton.next_power_of_2(levels)
    if not side_by_side:
        return {"BLOCK_N": 64, "BLOCK_L": min(across, _ELEMENTS // 64)}
    across = min(across, _WHOLE)
    return {"BLOCK_N": max(1, _ELEMENTS // across), "BLOCK_L": across}


def categorical(logits: Tensor, x: Tensor, sizes: Sequence[int], strides: Sequence[int]) -> Tensor:
    """log p(x) of x [outer, inner] under logits of these sizes and strides [outer, levels, inner], in float32."""
    out = logits.new_empty(sizes[0] * sizes[2], dtype=torch.float32)
    arguments = {"logits": logits, "x": x, "log_prob": out, "L": sizes[1], **_places(sizes, strides)}
    _launch_tiles(categorical_kernel, logits.device, sizes, _levels_tile(sizes[1], strides[1] == 1), arguments)
    return out


def categorical_gradient(
    grad: Tensor,
    logits: Tensor,
    x: Tensor,
    grad_logits: Tensor,
    sizes: Sequence[int],
    strides: Sequence[int],
    grad_strides: Sequence[int],
) -> None:
    """Fill in the gradient of the logits."""
    tensors = {"grad": grad, "logits": logits, "x": x, "grad_logits": grad_logits}
    arguments = {**tensors, "L": sizes[1], **_places(sizes, strides), **_gradient_strides(grad_strides)}
    tile = _levels_tile(sizes[1], strides[1] == 1)
    _launch_tiles(categorical_gradient_kernel, logits.device, sizes, tile, arguments)


@dataclass(frozen=True)
class Mixture:
    """A mixture's law over the data x * scale + shift; the last three say what a discretised logistic is."""

    kind: str
    components: int
    scale: float = 1.0
    shift: float = 0.0
    half_bin: float = 1.0
    min_log_scale: float = -math.inf
    branch: float = 0.0

    def arguments(self, x: Tensor) -> dict[str, Any]:
        """Those of the kernels, for x [channels, positions]."""
        return {
            "positions": x.shape[1],
            "K": self.components,
            "scale": self.scale,
            "shift": self.shift,
            "half_bin": self.half_bin,
            "min_log_scale": self.min_log_scale,
            "branch": self.branch,
            "KIND": self.kind,
            "CHANNELS": x.shape[0],
        }

    def tile(self) -> dict[str, int]:
        """All components of a few positions."""
        across = triton.next_power_of_2(self.components)
        # Eight elements a thread, as elsewhere, spill the many terms of a discretised logistic; two do not.
        elements = _ELEMENTS // 4 if self.kind == "logistic" else _ELEMENTS
        return {"BLOCK_N": max(1, elements // across), "BLOCK_K": across}


def mixture(params: Tensor, x: Tensor, sizes: Sequence[int], strides: Sequence[int], law: Mixture) -> Tensor:
    """log p(x) of x [channels, positions] under parameters of these sizes and strides, in float32."""
    out = params.new_empty(sizes[0] * sizes[2], dtype=torch.float32)
    arguments = {"params": params, "x": x, "log_prob": out, **_places(sizes, strides), **law.arguments(x)}
    _launch_tiles(_mixtures.mixture_kernel, params.device, sizes, law.tile(), arguments)
    return out


def mixture_gradient(
    grad: Tensor,
    params: Tensor,
    x: Tensor,
    grad_params: Tensor,
    need_x: bool,
    sizes: Sequence[int],
    strides: Sequence[int],
    grad_strides: Sequence[int],
    law: Mixture,
) -> Tensor | None:
    """Fill in the gradient of the parameters; that of a single channel's x is returned, if it is needed."""
    grad_x = grad.new_empty(sizes[0] * sizes[2]) if need_x else None
    tensors = {"grad": grad, "params": params, "x": x, "grad_params": grad_params, "grad_x": grad_x}
    places = {**_places(sizes, strides), **_gradient_strides(grad_strides)}
    arguments = {**tensors, **places, **law.arguments(x), "limit": torch.finfo(params.dtype).max}
    _launch_tiles(_mixtures.mixture_gradient_kernel, params.device, sizes, law.tile(), arguments)
    return grad_x


def compile_cases() -> Iterator[tuple[str, Callable[[], None]]]:
    """Calls on meta tensors which between them launch every kernel, in every dtype and layout."""

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def of_bernoulli(dtype: torch.dtype, x_dtype: torch.dtype, summed: int) -> Callable[[], None]:
        def call() -> None:
            logits, x = empty(1024, 784, dtype=dtype), empty(1024, 784, dtype=x_dtype)
            bernoulli_gradient(bernoulli(logits, x, summed), logits, x, summed)

        return call

    def of_categorical(dtype: torch.dtype, sizes: tuple[int, int, int], side_by_side: bool) -> Callable[[], None]:
        def call() -> None:
            B, L, N = sizes
            strides = (B * N * L, 1, L) if side_by_side else (L * N, N, 1)
            logits, x = empty(B * L * N, dtype=dtype), empty(B * N, dtype=torch.int64)
            grad = categorical(logits, x, sizes, strides)
            categorical_gradient(grad, logits, x, torch.empty_like(logits), sizes, strides, strides)

        return call

    def of_mixture(dtype: torch.dtype, kind: str, channels: int, K: int, side_by_side: bool) -> Callable[[], None]:
        def call() -> None:
            P = K * (1 + 2 * channels + channels * (channels - 1) // 2)
            sizes = (1, P, 65536) if side_by_side else (64, P, 1024)
            strides = (0, 1, P) if side_by_side else (P * 1024, 1024, 1)
            law = Mixture(kind, K, 2 / 255, -1.0, 1 / 255, -7.0, 1e-5)
            params, x = empty(65536 * P, dtype=dtype), empty(channels, 65536)
            grad = mixture(params, x, sizes, strides, law)
            out, need_x = torch.empty_like(params), kind != "logistic"
            mixture_gradient(grad, params, x, out, need_x, sizes, strides, strides, law)

        return call

    f32, bf16, f16 = torch.float32, torch.bfloat16, torch.float16
    yield "bernoulli float32, summed", of_bernoulli(f32, f32, 784)
    yield "bernoulli bfloat16, bytes", of_bernoulli(bf16, torch.uint8, 0)
    yield "bernoulli float16, int64", of_bernoulli(f16, torch.int64, 784)
    yield "categorical float32, rows", of_categorical(f32, (1, 256, 196608), True)
    yield "categorical bfloat16, columns", of_categorical(bf16, (192, 256, 1024), False)
    yield "categorical float16, long rows", of_categorical(f16, (1, 65536, 512), True)
    yield "logistic float32, columns", of_mixture(f32, "logistic", 3, 10, False)
    yield "logistic bfloat16, rows", of_mixture(bf16, "logistic", 3, 10, True)
    yield "logistic float16, one channel", of_mixture(f16, "logistic", 1, 5, False)
    yield "gaussian float32, rows", of_mixture(f32, "gaussian", 1, 10, True)
    yield "laplace bfloat16, columns", of_mixture(bf16, "laplace", 1, 10, False)
    yield "gaussian float16, many components", of_mixture(f16, "gaussian", 1, 1000, True)
