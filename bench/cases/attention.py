"""Causal, windowed and local attention against the masked softmax, PyTorch's fused op, and FlexAttention."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from fastar.bench.alternatives import CudaGraph, compiled
from fastar.bench.registry import Absent, Case, Contenders
from fastar.ops import attention
from fastar.reference.attention import visible

Pattern = dict[str, Any]


def eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = q @ k.mT / math.sqrt(q.shape[3])
    return torch.softmax(scores.masked_fill(~mask, -math.inf), -1) @ v


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def causal(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def sees(pattern: Pattern) -> Callable[..., Tensor]:
    """The mask as FlexAttention asks for it, for one query and key at a time."""

    def of_positions(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = query >= key
        if "window" in pattern:
            seen = seen & (query - key < pattern["window"])
        if "local" in pattern:
            rows, columns, width = pattern["local"]
            seen = seen & (query // width - key // width <= rows)
            seen = seen & ((query % width - key % width).abs() <= columns)
        return seen

    return of_positions


def flex(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
    return flex_attention(q, k, v, block_mask=mask)  # type: ignore[return-value]


def case(
    name: str,
    sizes: tuple[int, int, int, int],
    pattern: Pattern,
    direction: str,
    *devices: str,
    dtype: torch.dtype = torch.float32,
    small: bool = False,
) -> Case:
    B, heads, T, D = sizes
    trains = direction == "forward+backward"

    def build(device: torch.device) -> Contenders:
        # As a layer has them: positions first, heads beside each other.
        q, k, v, grad = (torch.randn(B, T, heads, D, device=device, dtype=dtype).transpose(1, 2) for _ in range(4))
        positions = torch.arange(T, device=device)
        mask = visible(positions, positions, **pattern)

        def contender(run: Callable[..., Tensor]) -> Callable[[], object]:
            own = [t.detach().requires_grad_(trains) for t in (q, k, v)]
            if not trains:
                return lambda: run(*own)

            def step() -> tuple[Tensor, ...]:
                y = run(*own)
                return (y.detach(), *torch.autograd.grad(y, own, grad))

            return step

        def masked(run: Callable[..., Tensor]) -> Callable[[], object]:
            return contender(functools.partial(run, mask=mask))

        alternatives: dict[str, Callable[[], object] | Absent] = {
            "softmax of masked scores": masked(eager),
            "torch.compile softmax": masked(compiled(eager)),
            "scaled_dot_product_attention, mask": masked(fused),
        }
        if not pattern:
            alternatives["scaled_dot_product_attention, is_causal"] = masked(causal)
        if trains and device.type == "cpu":
            alternatives["torch.compile FlexAttention"] = Absent("FlexAttention has no gradients on a CPU")
        else:
            blocks = create_block_mask(sees(pattern), None, None, T, T, device=str(device))
            alternatives["torch.compile FlexAttention"] = contender(functools.partial(compiled(flex), mask=blocks))
        if device.type == "cuda":
            alternatives["CUDA graph scaled_dot_product_attention, mask"] = CudaGraph(masked(fused))
        return Contenders(contender(functools.partial(attention, **pattern)), alternatives)

    positions = torch.arange(T)
    pairs = int(visible(positions, positions, **pattern).sum())
    return Case(
        name=f"attention.{name}.{B}x{heads}x{T}x{D}.{str(dtype).removeprefix('torch.')}.{direction}",
        op="attention",
        devices=devices,
        dtype=dtype,
        shapes=f"q, k, v {B}x{heads}x{T}x{D}, {pattern or 'causal'}",
        direction=direction,
        bytes=(12 if trains else 4) * B * heads * T * D * dtype.itemsize,
        # Two products of the visible pairs; backward five, since the weights are computed again.
        flops=(14 if trains else 4) * B * heads * pairs * D,
        build=build,
        small=small,
    )


WINDOW: Pattern = {"window": 128}
LOCAL: Pattern = {"local": (3, 7, 32)}
CASES = (
    case("causal", (4, 8, 1024, 64), {}, "forward", "cpu"),
    case("causal", (4, 8, 1024, 64), {}, "forward+backward", "cpu"),
    case("window", (4, 8, 1024, 64), WINDOW, "forward", "cpu"),
    case("window", (4, 8, 1024, 64), WINDOW, "forward+backward", "cpu"),
    case("local", (4, 8, 1024, 64), LOCAL, "forward", "cpu"),
    case("local", (4, 8, 1024, 64), LOCAL, "forward+backward", "cpu"),
    case("causal", (16, 16, 4096, 64), {}, "forward+backward", "cuda", dtype=torch.bfloat16),
    case("window", (16, 16, 4096, 64), {"window": 512}, "forward+backward", "cuda", dtype=torch.bfloat16),
    case("local", (16, 16, 4096, 64), {"local": (7, 7, 64)}, "forward+backward", "cuda", dtype=torch.bfloat16),
    case("window", (1, 2, 256, 16), {"window": 16}, "forward", "cpu", "cuda", small=True),
    case("local", (1, 2, 256, 16), {"local": (1, 2, 16)}, "forward+backward", "cpu", "cuda", small=True),
)
