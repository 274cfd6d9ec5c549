"""Matrix products on the CPU, through whichever of torch's two libraries is the faster one here.

Float32 products go to MKL in torch, and MKL holds back on processors that are not Intel's: on an AMD EPYC with AVX-512
it reached 220 GFLOP/s on two cores where oneDNN, which is part of the same torch, reached 490. oneDNN is reached
through the operator that torch.compile lowers linear layers to; a torch without it falls back to `torch.mm`. A weight
operand that is a slice with gaps sends oneDNN down a path hundreds of times slower, so those are copied first.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fastar.native import core


@functools.cache
def uses_onednn() -> bool:
    """Whether float32 products take oneDNN here."""
    return (
        core().cpu_vendor() != "intel"
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _linear(a: Tensor, weight: Tensor, bias: Tensor | None, after: str = "none") -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, weight, bias, after, [], "")
    return product


# Multiply-adds below which oneDNN's dearer call, some 10 us, is not won back.
_LEAST = 1 << 22


def _onednn_takes(a: Tensor, multiplies: int) -> bool:
    return multiplies >= _LEAST and a.dtype == torch.float32 and uses_onednn()


def abt(a: Tensor, b: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """a b^T + bias, as ``F.linear(a, b, bias)``, with negative elements set to 0 where `relu` asks; b contiguous."""
    if _onednn_takes(a, a.numel() * b.shape[0]):
        return _linear(a, b, bias, "relu" if relu else "none")
    product = torch.nn.functional.linear(a, b, bias)
    return product.relu_() if relu else product


def ab(a: Tensor, b: Tensor) -> Tensor:
    """a b, as ``a @ b``; b contiguous."""
    if _onednn_takes(a, a.numel() * b.shape[1]):
        return _linear(a, b.t(), None)
    return torch.mm(a, b)


def atb(a: Tensor, b: Tensor) -> Tensor:
    """a^T b, as ``a.T @ b``."""
    # Half as many again: its operand has to be copied.
    if _onednn_takes(a, a.numel() * b.shape[1] * 2 // 3):
        return _linear(a.t(), b.contiguous().t(), None)
    return torch.mm(a.t(), b)
