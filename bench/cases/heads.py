"""log p(x) of heads, at the sizes of image and audio models: categorical over 256 and 65,536 levels, and mixtures."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fastar.bench.alternatives import CudaGraph, compiled
from fastar.bench.registry import Case, Contenders
from fastar.ops import (
    bernoulli_log_prob,
    categorical_log_prob,
    gaussian_mixture_log_prob,
    laplace_mixture_log_prob,
    logistic_mixture_log_prob,
)

COMPONENTS = 10


def bernoulli_eager(logits: Tensor, x: Tensor) -> Tensor:
    return -functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)


def categorical_eager(logits: Tensor, x: Tensor) -> Tensor:
    return -functional.cross_entropy(logits, x, reduction="none")


def gaussian_eager(params: Tensor, x: Tensor) -> Tensor:
    logits, means, log_scales = params.chunk(3, -1)
    z = (x[..., None] - means) * torch.exp(-log_scales)
    each = -0.5 * z * z - log_scales - 0.5 * math.log(2 * math.pi)
    return torch.logsumexp(each + torch.log_softmax(logits, -1), -1)


def laplace_eager(params: Tensor, x: Tensor) -> Tensor:
    logits, means, log_scales = params.chunk(3, -1)
    each = -torch.abs(x[..., None] - means) * torch.exp(-log_scales) - log_scales - math.log(2)
    return torch.logsumexp(each + torch.log_softmax(logits, -1), -1)


def logistic_eager(params: Tensor, x: Tensor) -> Tensor:
    """The loss as it is written for PixelCNN++, on [B, 10 K, H, W] and x [B, 3, H, W] in [-1, 1]."""
    logits, means, log_scales, coefficients = params.split([COMPONENTS * n for n in (1, 3, 3, 3)], 1)
    means, log_scales, coefficients = (t.unflatten(1, (3, COMPONENTS)) for t in (means, log_scales, coefficients))
    log_scales, shares, x = log_scales.clamp(min=-7.0), torch.tanh(coefficients), x[:, :, None]
    green = means[:, 1] + shares[:, 0] * x[:, 0]
    blue = means[:, 2] + shares[:, 1] * x[:, 0] + shares[:, 2] * x[:, 1]
    centred, inverse = x - torch.stack([means[:, 0], green, blue], 1), torch.exp(-log_scales)
    upper, lower, middle = inverse * (centred + 1 / 255), inverse * (centred - 1 / 255), inverse * centred
    mass = torch.sigmoid(upper) - torch.sigmoid(lower)
    density = middle - log_scales - 2 * functional.softplus(middle) - math.log(127.5)
    inside = torch.where(mass > 1e-5, torch.log(mass.clamp(min=1e-12)), density)
    low, high = upper - functional.softplus(upper), -functional.softplus(lower)
    each = torch.where(x < -0.999, low, torch.where(x > 0.999, high, inside))
    return torch.logsumexp(each.sum(1) + torch.log_softmax(logits, 1), 1)


def summed_bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    return bernoulli_log_prob(logits, x, event_dims=1)


def levels_second(logits: Tensor, x: Tensor) -> Tensor:
    return categorical_log_prob(logits, x, dim=1)


def colours(params: Tensor, x: Tensor) -> Tensor:
    return logistic_mixture_log_prob(params, x, dim=1)


def bits(shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.randn(shape, device=device), torch.randint(0, 2, shape, device=device).float()


def levels(shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    positions = (shape[0], *shape[2:])
    return torch.randn(shape, device=device), torch.randint(0, shape[1], positions, device=device)


def mixture(shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.randn(shape, device=device), torch.randn(shape[:-1], device=device)


def image(shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Scales as a trained model has them: a few levels to a quarter of the range."""
    params = torch.randn(shape, device=device)
    params[:, COMPONENTS : 4 * COMPONENTS] *= 0.5
    params[:, 4 * COMPONENTS : 7 * COMPONENTS] -= 3
    x = torch.randint(0, 256, (shape[0], 3, *shape[2:]), device=device)
    return params, x / 127.5 - 1


Heads = dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[..., tuple[Tensor, Tensor]], int]]

# Ours, what a user writes, the inputs, and the operations per parameter, counting an exponential or logarithm as ten.
HEADS: Heads = {
    "bernoulli": (summed_bernoulli, bernoulli_eager, bits, 25),
    "categorical": (levels_second, categorical_eager, levels, 12),
    "gaussian": (gaussian_mixture_log_prob, gaussian_eager, mixture, 14),
    "laplace": (laplace_mixture_log_prob, laplace_eager, mixture, 14),
    "logistic": (colours, logistic_eager, image, 25),
}


def step(function: Callable[..., Tensor], params: Tensor, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    params.grad = None
    y = function(params, x)
    y.backward(grad)
    assert params.grad is not None
    return y, params.grad


def case(kind: str, shape: tuple[int, ...], dtype: torch.dtype, direction: str, small: bool = False) -> Case:
    ours, eager, inputs, flops = HEADS[kind]
    trains = direction == "forward+backward"

    def build(device: torch.device) -> Contenders:
        first, x = inputs(shape, device)
        with torch.no_grad():
            grad = torch.randn_like(eager(first[:1], x[:1])).expand(shape[0], *eager(first[:1], x[:1]).shape[1:])
        grad = grad.contiguous()

        def contender(function: Callable[..., Tensor]) -> Callable[[], Any]:
            params = first.to(dtype).requires_grad_(trains)
            return (lambda: step(function, params, x, grad)) if trains else (lambda: function(params, x))

        alternatives: dict[str, Callable[[], Any]] = {
            "eager": contender(eager),
            "torch.compile": contender(compiled(eager)),
        }
        if device.type == "cuda":
            alternatives["CUDA graph, torch.compile"] = CudaGraph(contender(compiled(eager)))
        return Contenders(contender(ours), alternatives)

    elements = math.prod(shape)
    # The parameters are read, and in the backward read again while their gradient is written.
    return Case(
        name=f"heads.{kind}.{'x'.join(map(str, shape))}.{str(dtype).removeprefix('torch.')}.{direction}",
        op="heads",
        devices=("cpu", "cuda"),
        dtype=dtype,
        shapes=f"parameters {'x'.join(map(str, shape))}",
        direction=direction,
        bytes=elements * dtype.itemsize * (3 if trains else 1),
        flops=elements * flops * (2 if trains else 1),
        build=build,
        small=small,
    )


DIRECTIONS = ("forward", "forward+backward")
CASES = (
    *(case("logistic", (64, 100, 32, 32), torch.float32, direction) for direction in DIRECTIONS),
    *(case("categorical", (196_608, 256), torch.float32, direction) for direction in DIRECTIONS),
    *(case("categorical", (192, 256, 1024), torch.float32, direction) for direction in DIRECTIONS),
    *(case("categorical", (512, 65_536), torch.float32, direction) for direction in DIRECTIONS),
    *(case("gaussian", (256, 784, 30), torch.float32, direction) for direction in DIRECTIONS),
    *(case("laplace", (256, 784, 30), torch.float32, direction) for direction in DIRECTIONS),
    *(case("bernoulli", (1024, 3072), torch.float32, direction) for direction in DIRECTIONS),
    *(case("categorical", (300, 256), torch.float32, direction, small=True) for direction in DIRECTIONS),
    *(case("logistic", (2, 100, 8, 8), torch.float32, direction, small=True) for direction in DIRECTIONS),
)
