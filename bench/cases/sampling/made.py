"""MADE of bits, drawn from as many passes as there are positions, or with each hidden unit computed once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from fastar.bench.alternatives import CudaGraph, compiled
from fastar.bench.cases.sampling._common import Loop, Work, Workload, case
from fastar.bench.registry import Absent, Call, Case, Part
from fastar.models import MADE
from fastar.nn import MaskedLinear


def _logits(x: Tensor, first: Tensor, first_bias: Tensor, last: Tensor, last_bias: Tensor) -> Tensor:
    hidden = torch.relu(functional.linear(x, first, first_bias))
    return functional.linear(hidden, last, last_bias)


def masked_weights(model: MADE) -> list[Tensor]:
    """Weights and biases of both layers, what the masks remove at zero."""
    weights = []
    for layer in (model.network.hidden[0], model.network.out):
        assert isinstance(layer, MaskedLinear)
        assert layer.bias is not None
        weights += [(layer.weight * layer.dense_mask()).detach(), layer.bias.detach()]
    return weights


def full(weights: list[Tensor]) -> Loop:
    """All logits for every bit."""

    @torch.inference_mode()
    def loop(u: Tensor) -> Tensor:
        x = u.new_zeros(u.shape[1], len(u))
        for d in range(len(u)):
            x[:, d] = u[d] < torch.sigmoid(_logits(x, *weights)[:, d])
        return x

    return loop


def _one_pass(logits: Callable[..., Tensor], x: Tensor, weights: list[Tensor]) -> Call:
    @torch.inference_mode()
    def call() -> None:
        d = x.shape[1] // 2
        x[:, d] = torch.rand_like(x[:, d]) < torch.sigmoid(logits(x, *weights)[:, d])

    return call


def made(dim: int, hidden: int, *, rows: int, small: bool = False) -> Case:
    def make(device: torch.device) -> Workload:
        torch.manual_seed(0)
        model = MADE(dim, hidden).to(device)
        loop = full(masked_weights(model))
        if small:
            return Workload(model.lower(), rows, dim, {"full passes": loop})
        x, weights = torch.rand(rows, dim, device=device).round(), masked_weights(model)
        others: dict[str, Call | Part | Absent] = {}
        for name, logits in (("full passes", _logits), ("full passes, compiled", compiled(_logits))):
            one_pass = _one_pass(logits, x, weights)
            others[name] = Part(one_pass, dim)
            if device.type == "cuda":
                others[f"CUDA graph, {name}"] = Part(CudaGraph(one_pass), dim)
        return Workload(model.lower(), rows, dim, {}, others)

    return case(
        f"made-{dim}-{hidden}-{dim}",
        make,
        # A hidden unit meets a column of inputs and a row of outputs once.
        Work(weights=hidden, products=hidden, steps=dim),
        rows=rows,
        dtype=torch.float32,
        shapes=f"D={dim}, H={hidden}",
        per=1,
        unit="batch of samples" if rows > 1 else "sample",
        small=small,
    )


CASES = (made(784, 8000, rows=64), made(30, 50, rows=3, small=True))
