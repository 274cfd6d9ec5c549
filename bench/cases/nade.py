"""NADE: log p(x) of bits, and the parameters of a mixture at each position; a step takes all gradients but x's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from fastar.bench.alternatives import CudaGraph, compiled
from fastar.bench.registry import Case, Contenders
from fastar.nn import NADELayer


def cumsum(x: Tensor, weight: Tensor, readout: Tensor, hidden_bias: Tensor, bias: Tensor) -> Tensor:
    """All states at once, [B, D, H]."""
    start = hidden_bias.expand(x.shape[0], 1, -1)
    states = torch.cat([start, x[:, :-1, None] * weight.T[:-1]], 1).cumsum(1)
    hidden = torch.sigmoid(states)
    if readout.shape[1] == 1:
        # Ahead of an einsum here, which makes a batched product with one column.
        return (hidden * readout[:, 0]).sum(-1, keepdim=True) + bias
    return torch.einsum("bdh,dkh->bdk", hidden, readout) + bias


def loop(x: Tensor, weight: Tensor, readout: Tensor, hidden_bias: Tensor, bias: Tensor) -> Tensor:
    """Position by position, with one state [B, H] at a time.

    All are unbound at once: the gradient of an index would be a tensor as large as all of V, for each position.
    """
    state = hidden_bias.expand(x.shape[0], -1)
    out = []
    for x_d, w_d, v_d, b_d in zip(x.unbind(1), weight.unbind(1), readout.unbind(0), bias.unbind(0), strict=True):
        out.append(functional.linear(torch.sigmoid(state), v_d, b_d))
        state = state + x_d[:, None] * w_d
    return torch.stack(out, 1)


def log_prob(logits: Tensor, x: Tensor) -> Tensor:
    return -functional.binary_cross_entropy_with_logits(logits[..., 0], x, reduction="none").sum(1)


def cumsum_log_prob(x: Tensor, *parameters: Tensor) -> Tensor:
    return log_prob(cumsum(x, *parameters), x)


def loop_log_prob(x: Tensor, *parameters: Tensor) -> Tensor:
    return log_prob(loop(x, *parameters), x)


def training_step(run: Callable[[], Tensor], parameters: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    """Forward, backward, and a step of gradient descent on W, so that it is another one in every iteration."""
    y = run()
    gradients = torch.autograd.grad(y, parameters, grad)
    with torch.no_grad():
        parameters[0].add_(gradients[0], alpha=-1e-6)
    return (y, *gradients)


def case(
    sizes: tuple[int, int, int, int],
    direction: str,
    *devices: str,
    small: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Case:
    batch, dim, hidden, params = sizes
    trains = direction == "forward+backward"

    def build(device: torch.device) -> Contenders:
        layer = NADELayer(dim, hidden, params, device=device, dtype=dtype).requires_grad_(trains)
        if params == 1:
            x = (torch.rand(batch, dim, device=device) < 0.5).to(dtype)
            grad = torch.randn(batch, device=device)
        else:
            x = torch.randn(batch, dim, device=device, dtype=dtype)
            grad = torch.randn(batch, dim, params, device=device, dtype=dtype)

        def contender(run: Callable[..., Tensor], parameters: list[Tensor]) -> Callable[[], object]:
            if not trains:
                return lambda: run(x, *parameters)
            return lambda: training_step(lambda: run(x, *parameters), parameters, grad)

        names = ("weight", "readout", "hidden_bias", "bias")
        own = [getattr(layer, name) for name in names]

        def alternative(run: Callable[..., Tensor]) -> Callable[[], object]:
            return contender(run, [one.detach().clone().requires_grad_(trains) for one in own])

        ours = layer.log_prob if params == 1 else layer
        all_at_once, one_by_one = (cumsum_log_prob, loop_log_prob) if params == 1 else (cumsum, loop)
        alternatives = {
            "cumsum form": alternative(all_at_once),
            "torch.compile cumsum form": alternative(compiled(all_at_once)),
            "loop form": alternative(one_by_one),
        }
        if device.type == "cuda":
            alternatives["CUDA graph cumsum form"] = CudaGraph(alternative(all_at_once))
        return Contenders(contender(lambda x, *parameters: ours(x), own), alternatives)

    # Per hidden unit and position: a multiply-add of the state and one per parameter; the backward walks the state,
    # multiplies and adds for the gradients of W and of the state, and twice per parameter. The activations are not
    # counted: they are no matrix product, and their rate is another.
    units = batch * dim * hidden
    elements = batch * dim * (params + 1) + dim * hidden * (params + 1)
    return Case(
        name=f"nade.{batch}x{dim}x{hidden}x{params}.{str(dtype).removeprefix('torch.')}.{direction}",
        op="nade",
        devices=devices,
        dtype=dtype,
        shapes=f"x {batch}x{dim}, H={hidden}, K={params}",
        direction=direction,
        bytes=(2 * elements if trains else elements) * dtype.itemsize,
        flops=units * (2 + 2 * params + (6 + 4 * params if trains else 0)),
        build=build,
        small=small,
    )


CASES = (
    case((128, 784, 500, 1), "forward", "cpu"),
    case((128, 784, 500, 1), "forward+backward", "cpu"),
    case((128, 784, 500, 30), "forward", "cpu"),
    case((128, 784, 500, 30), "forward+backward", "cpu"),
    case((1024, 784, 500, 1), "forward", "cuda"),
    case((1024, 784, 500, 1), "forward+backward", "cuda"),
    case((16, 49, 40, 1), "forward", "cpu", "cuda", small=True),
    case((16, 49, 40, 3), "forward+backward", "cpu", "cuda", small=True),
)
