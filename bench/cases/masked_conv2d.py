"""y = act(conv2d(x, W * M) + b) with a PixelCNN's mask, in channels-last layout, which suits everyone best."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from fastar.bench.alternatives import CudaGraph, compiled
from fastar.bench.registry import Case, Contenders
from fastar.nn import MaskedConv2d

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"none": lambda z: z, "relu": torch.relu}


def eager(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor, activation: str) -> Tensor:
    height, width = weight.shape[2:]
    return ACTIVATIONS[activation](functional.conv2d(x, weight * mask, bias, padding=(height // 2, width // 2)))


def premasked(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor, activation: str) -> Tensor:
    """Expects a weight that is zero where the mask is."""
    height, width = weight.shape[2:]
    return ACTIVATIONS[activation](functional.conv2d(x, weight, bias, padding=(height // 2, width // 2)))


def cropped(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor, activation: str) -> Tensor:
    """Expects a weight that is zero where the mask is and has no rows below the kernel's centre."""
    height, width = weight.shape[2:]
    padded = functional.pad(x, (width // 2, width // 2, height - 1, 0))
    return ACTIVATIONS[activation](functional.conv2d(padded, weight, bias))


def sliced(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor, activation: str) -> Tensor:
    """As `cropped`, but padded on both sides by the convolution itself, with the rows too many cut off."""
    height, width = weight.shape[2:]
    z = functional.conv2d(x, weight, bias, padding=(height - 1, width // 2))
    return ACTIVATIONS[activation](z[:, :, : x.shape[2]])


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
    sizes: tuple[int, int, int, int],
    kernel: int,
    mask_type: str,
    dtype: torch.dtype,
    activation: str,
    direction: str,
    *devices: str,
    small: bool = False,
) -> Case:
    batch, inputs, outputs, side = sizes
    trains = direction == "forward+backward"
    rows = kernel // 2 + 1

    def build(device: torch.device) -> Contenders:
        layer = MaskedConv2d(inputs, outputs, kernel, mask_type, activation=activation, device=device, dtype=dtype)
        assert layer.bias is not None
        first_weight, first_bias = layer.weight.detach().clone(), layer.bias.detach().clone()
        last = torch.channels_last
        x = torch.randn(batch, inputs, side, side, device=device, dtype=dtype).to(memory_format=last)
        grad = torch.randn(batch, outputs, side, side, device=device, dtype=dtype).to(memory_format=last)
        mask = layer.dense_mask().to(dtype)

        def contender(forward: Callable[[Tensor], Tensor], weight: Tensor) -> Callable[[], object]:
            if not trains:
                return lambda: forward(x)
            own_x = x.clone().requires_grad_()

            def step() -> tuple[Tensor, ...]:
                y, x_gradient, weight_gradient = training_step(forward, own_x, weight, grad)
                # A cropped kernel has the causal rows only: those are compared.
                return y, x_gradient, weight_gradient[:, :, :rows]

            return step

        def alternative(function: Callable[..., Tensor], *, from_eager: bool) -> Callable[[], object]:
            if from_eager:
                weight = first_weight.clone()
            else:
                weight = (first_weight * mask)[:, :, : rows if function in (cropped, sliced) else kernel]
                weight = weight.contiguous(memory_format=last)
            seen = mask[:, :, : weight.shape[2]]
            bias = first_bias.clone().requires_grad_(trains)
            weight.requires_grad_(trains)
            if trains and not from_eager:
                # A masked gradient keeps the weight masked from step to step: cheaper than masking the weight anew.
                weight.register_post_accumulate_grad_hook(lambda own: mask_gradient(own, seen))
            return contender(lambda x: function(x, weight, mask, bias, activation), weight)

        def mask_gradient(weight: Tensor, seen: Tensor) -> None:
            assert weight.grad is not None
            weight.grad.mul_(seen)

        layer.requires_grad_(trains)
        alternatives = {
            "eager W * M": alternative(eager, from_eager=True),
            "torch.compile W * M": alternative(compiled(eager), from_eager=True),
            "pre-masked W": alternative(premasked, from_eager=False),
            "cropped to the causal rows": alternative(cropped, from_eager=False),
            "cropped, padded by the op": alternative(sliced, from_eager=False),
        }
        if device.type == "cuda":
            alternatives["CUDA graph cropped"] = CudaGraph(alternative(cropped, from_eager=False))
        return Contenders(contender(layer, layer.weight), alternatives)

    taps = kernel * kernel // 2 + (mask_type == "B")
    pixels = batch * side * side
    # The forward reads x and the surviving taps and writes y; the backward reads both and dy, and writes dx and the
    # whole of dW, where somebody has to write the masked zeros.
    elements = pixels * (inputs + outputs) + taps * inputs * outputs
    if trains:
        elements += pixels * (2 * inputs + outputs) + (taps + kernel * kernel) * inputs * outputs
    return Case(
        name=f"masked_conv2d.{batch}x{inputs}x{outputs}.{kernel}x{kernel}{mask_type}.{side}x{side}."
        f"{str(dtype).removeprefix('torch.')}.{direction}",
        op="masked_conv2d",
        devices=devices,
        dtype=dtype,
        shapes=f"x {batch}x{inputs}x{side}x{side}, W {outputs}x{inputs}x{kernel}x{kernel} {mask_type}",
        direction=direction,
        bytes=elements * dtype.itemsize,
        flops=2 * pixels * taps * inputs * outputs * (3 if trains else 1),
        build=build,
        small=small,
    )


CASES = (
    case((4, 256, 256, 32), 5, "B", torch.float32, "none", "forward", "cpu"),
    case((4, 256, 256, 32), 5, "B", torch.float32, "none", "forward+backward", "cpu"),
    case((64, 256, 256, 32), 3, "B", torch.bfloat16, "relu", "forward", "cuda"),
    case((64, 256, 256, 32), 3, "B", torch.bfloat16, "relu", "forward+backward", "cuda"),
    case((64, 256, 256, 32), 5, "B", torch.bfloat16, "relu", "forward", "cuda"),
    case((64, 3, 128, 32), 7, "A", torch.bfloat16, "relu", "forward", "cuda"),
    case((2, 48, 64, 16), 5, "B", torch.float32, "relu", "forward", "cpu", "cuda", small=True),
    case((2, 48, 64, 16), 5, "B", torch.float32, "relu", "forward+backward", "cpu", "cuda", small=True),
)
