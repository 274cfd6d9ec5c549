"""y = act(x (W * M)^T + b) with unsorted degrees, as they are between the hidden layers of a MADE."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from fastar.bench.alternatives import CudaGraph, compiled
from fastar.bench.registry import Case, Contenders
from fastar.nn import MaskedLinear

# Degrees of the hidden units of a MADE over 28 x 28 pixels.
DEGREES = 783
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"none": lambda z: z, "relu": torch.relu}


def eager(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor, activation: str) -> Tensor:
    return ACTIVATIONS[activation](functional.linear(x, weight * mask, bias))


def premasked(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor, activation: str) -> Tensor:
    """Expects a weight that is zero where the mask is."""
    return ACTIVATIONS[activation](functional.linear(x, weight, bias))


def training_step(forward: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Forward, backward, and a step of gradient descent, so that the weight is another one in every iteration."""
    x.grad = weight.grad = None
    y = forward(x)
    y.backward(grad)
    assert x.grad is not None
    assert weight.grad is not None
    with torch.no_grad():
        weight.add_(weight.grad, alpha=-1e-6)
    return y, x.grad, weight.grad


def case(
    sizes: tuple[int, int, int], dtype: torch.dtype, activation: str, direction: str, *devices: str, small: bool = False
) -> Case:
    batch, inputs, outputs = sizes
    trains = direction == "forward+backward"

    def build(device: torch.device) -> Contenders:
        in_degrees, out_degrees = (torch.randint(1, DEGREES + 1, (n,), device=device) for n in (inputs, outputs))
        layer = MaskedLinear(inputs, outputs, activation=activation, device=device, dtype=dtype)
        layer.set_degrees(in_degrees, out_degrees)
        assert layer.bias is not None
        first_weight, first_bias = layer.weight.detach().clone(), layer.bias.detach().clone()
        x = torch.randn(batch, inputs, device=device, dtype=dtype)
        grad = torch.randn(batch, outputs, device=device, dtype=dtype)
        # Of the weight's dtype: a product with a boolean mask converts it in every call and is slower.
        mask = (out_degrees[:, None] >= in_degrees).to(dtype)

        def contender(forward: Callable[[Tensor], Tensor], weight: Tensor) -> Callable[[], object]:
            if not trains:
                return lambda: forward(x)
            own_x = x.clone().requires_grad_()
            return lambda: training_step(forward, own_x, weight, grad)

        def alternative(function: Callable[..., Tensor]) -> Callable[[], object]:
            masked = first_weight * mask if function is premasked else first_weight.clone()
            weight, bias = (t.requires_grad_(trains) for t in (masked, first_bias.clone()))
            if trains and function is premasked:
                # A masked gradient keeps the weight masked from step to step: cheaper than masking the weight anew.
                weight.register_post_accumulate_grad_hook(mask_gradient)
            return contender(lambda x: function(x, weight, mask, bias, activation), weight)

        def mask_gradient(weight: Tensor) -> None:
            assert weight.grad is not None
            weight.grad.mul_(mask)

        layer.requires_grad_(trains)
        alternatives = {
            "eager W * M": alternative(eager),
            "torch.compile W * M": alternative(compiled(eager)),
            "pre-masked W": alternative(premasked),
        }
        if device.type == "cuda":
            alternatives["CUDA graph pre-masked W"] = CudaGraph(alternative(premasked))
        return Contenders(contender(layer, layer.weight), alternatives)

    # Of W, half is visible. The forward reads that and x and writes y; the backward reads that, x and dy, and writes dx
    # and dW, the masked half of which is zeros that somebody has to write.
    elements = batch * inputs + inputs * outputs / 2 + batch * outputs
    if trains:
        elements += 2 * batch * inputs + 3 / 2 * inputs * outputs + batch * outputs
    return Case(
        name=f"masked_linear.{batch}x{inputs}x{outputs}.{str(dtype).removeprefix('torch.')}.{direction}",
        op="masked_linear",
        devices=devices,
        dtype=dtype,
        shapes=f"x {batch}x{inputs}, W {outputs}x{inputs}",
        direction=direction,
        bytes=elements * dtype.itemsize,
        flops=batch * inputs * outputs * (3 if trains else 1),
        build=build,
        small=small,
    )


CASES = (
    case((1024, 4096, 4096), torch.float32, "none", "forward", "cpu"),
    case((1024, 4096, 4096), torch.float32, "none", "forward+backward", "cpu"),
    case((8192, 8192, 8192), torch.bfloat16, "relu", "forward", "cuda"),
    case((8192, 8192, 8192), torch.bfloat16, "relu", "forward+backward", "cuda"),
    case((1024, 8000, 8000), torch.bfloat16, "none", "forward", "cuda"),
    case((128, 256, 192), torch.float32, "relu", "forward", "cpu", "cuda", small=True),
    case((128, 256, 192), torch.float32, "relu", "forward+backward", "cpu", "cuda", small=True),
    # What a call costs before it computes: a hidden layer for a table of data.
    case((16, 64, 64), torch.float32, "relu", "forward", "cpu", "cuda", small=True),
    case((16, 64, 64), torch.float32, "relu", "forward+backward", "cpu", "cuda", small=True),
)
