"""One block of type B of a gated PixelCNN, 2 x C channels to C, in channels-last layout."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from fastar.bench.alternatives import CudaGraph, compiled
from fastar.bench.registry import Case, Contenders
from fastar.nn import GatedPixelCNNBlock

Weights = dict[str, Tensor]


def gate(z: Tensor) -> Tensor:
    a, b = z.chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b)


def combine(z: Tensor, across: Tensor, h: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
    above = functional.pad(z[:, :, :-1], (0, 0, 1, 0))
    link = functional.conv2d(above, w["vertical_to_horizontal.weight"], w["vertical_to_horizontal.bias"])
    out = functional.conv2d(gate(across + link), w["horizontal_out.weight"], w["horizontal_out.bias"])
    return gate(z), out + h


def eager(v: Tensor, h: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
    """Masks by multiplying the weights, as most implementations do; the horizontal kernel is 1 x n."""
    size = w["vertical.weight"].shape[2]
    z = functional.conv2d(v, w["vertical.weight"] * w["vertical.mask"], w["vertical.bias"], padding=size // 2)
    weight = w["horizontal.weight"] * w["horizontal.mask"]
    across = functional.conv2d(h, weight, w["horizontal.bias"], padding=(0, size // 2))
    return combine(z, across, h, w)


def cropped(v: Tensor, h: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
    """Expects kernels without the taps that the masks remove."""
    half = w["vertical.weight"].shape[2] - 1
    z = functional.conv2d(functional.pad(v, (half, half, half, 0)), w["vertical.weight"], w["vertical.bias"])
    across = functional.conv2d(functional.pad(h, (half, 0)), w["horizontal.weight"], w["horizontal.bias"])
    return combine(z, across, h, w)


def case(
    batch: int,
    channels: int,
    side: int,
    kernel: int,
    dtype: torch.dtype,
    direction: str,
    *devices: str,
    small: bool = False,
) -> Case:
    trains = direction == "forward+backward"
    rows = kernel // 2 + 1

    def build(device: torch.device) -> Contenders:
        block = GatedPixelCNNBlock(channels, channels, kernel, "B", vertical="cropped", device=device, dtype=dtype)
        block = block.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        shape = (batch, channels, side, side)
        v, h, grad_v, grad_h = (
            torch.randn(shape, device=device, dtype=dtype).to(memory_format=torch.channels_last) for _ in range(4)
        )
        if trains:
            v.requires_grad_(), h.requires_grad_()
        block.requires_grad_(trains)

        def contender(forward: Callable[[], tuple[Tensor, Tensor]], parameters: list[Tensor]) -> Callable[[], object]:
            if not trains:
                return forward

            def step() -> tuple[Tensor, ...]:
                out = forward()
                grads = torch.autograd.grad(out, [v, h, *parameters], [grad_v, grad_h])
                with torch.no_grad():
                    for parameter, grad in zip(parameters, grads[2:], strict=True):
                        parameter.add_(grad, alpha=-1e-6)
                return *out, grads[0], grads[1]

            return step

        def alternative(function: Callable[..., tuple[Tensor, Tensor]], *, masked: bool) -> Callable[[], object]:
            w = {name: value.detach().clone() for name, value in block.named_parameters()}
            if masked:
                pad = functional.pad
                w["vertical.weight"] = pad(w["vertical.weight"], (0, 0, 0, kernel // 2))
                w["horizontal.weight"] = pad(w["horizontal.weight"], (0, kernel // 2))
            last = {n: t.contiguous(memory_format=torch.channels_last) for n, t in w.items() if t.dim() == 4}
            w = {name: value.requires_grad_(trains) for name, value in {**w, **last}.items()}
            parameters = list(w.values())
            if masked:
                for stack, axis in (("vertical", 2), ("horizontal", 3)):
                    mask = torch.zeros_like(w[f"{stack}.weight"], requires_grad=False)
                    mask.narrow(axis, 0, rows).fill_(1)
                    w[f"{stack}.mask"] = mask
            return contender(lambda: function(v, h, w), parameters)

        alternatives = {
            "eager W * M": alternative(eager, masked=True),
            "torch.compile W * M": alternative(compiled(eager), masked=True),
            "cropped": alternative(cropped, masked=False),
            "torch.compile cropped": alternative(compiled(cropped), masked=False),
        }
        if device.type == "cuda":
            alternatives["CUDA graph cropped"] = CudaGraph(alternative(cropped, masked=False))
        return Contenders(contender(lambda: block(v, h), list(block.parameters())), alternatives)

    pixels = batch * side * side
    # Per pair of a channel of the input and one of the 2 C that are gated; then what goes from stack to stack, and out.
    weights = 2 * channels * channels * (rows * kernel + rows) + 4 * channels * channels + channels * channels
    elements = 4 * pixels * channels + weights
    if trains:
        elements += 6 * pixels * channels + 2 * weights
    return Case(
        name=f"gated_pixelcnn_block.{batch}x{channels}.{kernel}x{kernel}.{side}x{side}."
        f"{str(dtype).removeprefix('torch.')}.{direction}",
        op="gated_pixelcnn_block",
        devices=devices,
        dtype=dtype,
        shapes=f"v, h {batch}x{channels}x{side}x{side}, kernel {kernel}x{kernel}",
        direction=direction,
        bytes=elements * dtype.itemsize,
        flops=2 * pixels * weights * (3 if trains else 1),
        build=build,
        small=small,
    )


CASES = (
    case(4, 128, 32, 5, torch.float32, "forward", "cpu"),
    case(4, 128, 32, 5, torch.float32, "forward+backward", "cpu"),
    case(64, 128, 32, 5, torch.bfloat16, "forward", "cuda"),
    case(64, 128, 32, 5, torch.bfloat16, "forward+backward", "cuda"),
    case(2, 16, 12, 3, torch.float32, "forward", "cpu", "cuda", small=True),
    case(2, 16, 12, 3, torch.float32, "forward+backward", "cpu", "cuda", small=True),
)
