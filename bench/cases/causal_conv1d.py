"""Causal convolutions: a WaveNet's dilated one, a wide one, and a state-space model's depthwise one with SiLU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from fastar.bench.alternatives import CudaGraph, compiled
from fastar.bench.registry import Case, Contenders
from fastar.nn import CausalConv1d

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"none": lambda z: z, "silu": functional.silu}


def padded(x: Tensor, weight: Tensor, bias: Tensor, dilation: int, groups: int, activation: str) -> Tensor:
    past = functional.pad(x, ((weight.shape[2] - 1) * dilation, 0))
    return ACTIVATIONS[activation](functional.conv1d(past, weight, bias, dilation=dilation, groups=groups))


def cropped(x: Tensor, weight: Tensor, bias: Tensor, dilation: int, groups: int, activation: str) -> Tensor:
    """The convolution pads both sides by itself, and the future's end is cut off."""
    reach = (weight.shape[2] - 1) * dilation
    y = functional.conv1d(x, weight, bias, padding=reach, dilation=dilation, groups=groups)
    return ACTIVATIONS[activation](y[:, :, : x.shape[2]])


def channels_last(x: Tensor, weight: Tensor, bias: Tensor, dilation: int, groups: int, activation: str) -> Tensor:
    """As an image one pixel high, whose channels lie side by side."""
    past = functional.pad(x, ((weight.shape[2] - 1) * dilation, 0)).unsqueeze(2)
    past = past.contiguous(memory_format=torch.channels_last)
    y = functional.conv2d(past, weight.unsqueeze(2), bias, dilation=(1, dilation), groups=groups)
    return ACTIVATIONS[activation](y.squeeze(2))


def case(
    sizes: tuple[int, int, int, int],
    kernel_size: int,
    dilation: int,
    groups: int,
    activation: str,
    dtype: torch.dtype,
    direction: str,
    *devices: str,
    small: bool = False,
) -> Case:
    batch, inputs, outputs, length = sizes
    trains = direction == "forward+backward"

    def build(device: torch.device) -> Contenders:
        layer = CausalConv1d(
            inputs, outputs, kernel_size, dilation, groups, activation=activation, device=device, dtype=dtype
        ).requires_grad_(trains)
        assert layer.bias is not None
        x = torch.randn(batch, inputs, length, device=device, dtype=dtype)
        grad = torch.randn(batch, outputs, length, device=device, dtype=dtype)

        def contender(forward: Callable[[Tensor], Tensor], *parameters: Tensor) -> Callable[[], object]:
            if not trains:
                return lambda: forward(x)
            leaves = [x.clone().requires_grad_(), *parameters]

            def step() -> tuple[Tensor, ...]:
                y = forward(leaves[0])
                return (y, *torch.autograd.grad(y, leaves, grad))

            return step

        def alternative(function: Callable[..., Tensor]) -> Callable[[], object]:
            assert layer.bias is not None
            weight, bias = (t.detach().clone().requires_grad_(trains) for t in (layer.weight, layer.bias))
            return contender(lambda x: function(x, weight, bias, dilation, groups, activation), weight, bias)

        alternatives = {
            "eager, padded": alternative(padded),
            "eager, cropped": alternative(cropped),
            "eager, channels last": alternative(channels_last),
            "torch.compile, padded": alternative(compiled(padded)),
            "torch.compile, channels last": alternative(compiled(channels_last)),
        }
        if device.type == "cuda":
            alternatives["CUDA graph, padded"] = CudaGraph(alternative(padded))
        return Contenders(contender(layer, layer.weight, layer.bias), alternatives)

    weights = outputs * (inputs // groups) * kernel_size
    # The backward reads x, dy and W (and of an activation what its derivative needs), and writes dx and dW.
    streams = inputs + outputs + (2 * inputs + outputs * (2 if activation != "none" else 1) if trains else 0)
    return Case(
        name=(
            f"causal_conv1d.{batch}x{inputs}x{outputs}x{length}.k{kernel_size}d{dilation}g{groups}."
            f"{str(dtype).removeprefix('torch.')}.{direction}"
        ),
        op="causal_conv1d",
        devices=devices,
        dtype=dtype,
        shapes=f"x {batch}x{inputs}x{length}, W {outputs}x{inputs // groups}x{kernel_size}, dilation {dilation}",
        direction=direction,
        bytes=(batch * length * streams + weights * (3 if trains else 1)) * dtype.itemsize,
        flops=2 * batch * length * weights * (3 if trains else 1),
        build=build,
        small=small,
    )


ON_CPU = tuple(
    case(sizes, kernel_size, dilation, groups, activation, dtype, direction, "cpu")
    for sizes, kernel_size, dilation, groups, activation in (
        ((4, 64, 128, 4000), 2, 64, 1, "none"),
        ((2, 256, 256, 2048), 3, 4, 1, "none"),
        ((4, 512, 512, 2048), 4, 1, 512, "silu"),
    )
    for dtype in (torch.float32, torch.bfloat16)
    for direction in ("forward", "forward+backward")
)

CASES = (
    *ON_CPU,
    case((8, 64, 128, 16000), 2, 512, 1, "none", torch.bfloat16, "forward", "cuda"),
    case((8, 64, 128, 16000), 2, 512, 1, "none", torch.bfloat16, "forward+backward", "cuda"),
    case((8, 1024, 1024, 4096), 4, 1, 1024, "silu", torch.bfloat16, "forward", "cuda"),
    case((8, 1024, 1024, 4096), 4, 1, 1024, "silu", torch.bfloat16, "forward+backward", "cuda"),
    case((2, 24, 32, 200), 3, 2, 1, "none", torch.float32, "forward", "cpu", "cuda", small=True),
    case((2, 24, 32, 200), 3, 2, 1, "none", torch.float32, "forward+backward", "cpu", "cuda", small=True),
)
