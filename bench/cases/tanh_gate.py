"""The gate of a gated PixelCNN's stacks, channels last."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastar.bench.alternatives import compiled
from fastar.bench.registry import Case, Contenders
from fastar.ops import tanh_gate


def eager(z: Tensor) -> Tensor:
    a, b = z.chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b)


def case(shape: tuple[int, int, int, int], dtype: torch.dtype, direction: str, *devices: str, small: bool) -> Case:
    trains = direction == "forward+backward"
    batch, channels, height, width = shape

    def build(device: torch.device) -> Contenders:
        last = torch.channels_last
        z = torch.randn(batch, 2 * channels, height, width, device=device, dtype=dtype).to(memory_format=last)
        grad = torch.randn(shape, device=device, dtype=dtype).to(memory_format=last)

        def contender(run: Callable[[Tensor], Tensor]) -> Callable[[], object]:
            if not trains:
                return lambda: run(z)
            leaf = z.clone().requires_grad_()

            def step() -> tuple[Tensor, ...]:
                y = run(leaf)
                return (y.detach(), *torch.autograd.grad(y, leaf, grad))

            return step

        return Contenders(
            contender(tanh_gate), {"eager": contender(eager), "torch.compile": contender(compiled(eager))}
        )

    elements = batch * channels * height * width
    return Case(
        name=f"tanh_gate.{'x'.join(map(str, shape))}.{str(dtype).removeprefix('torch.')}.{direction}",
        op="tanh_gate",
        devices=devices,
        dtype=dtype,
        shapes=f"z {batch}x{2 * channels}x{height}x{width}",
        direction=direction,
        # The backward reads z and the gradient of y, and writes that of z.
        bytes=(8 if trains else 3) * elements * dtype.itemsize,
        # Two functions and their product; backward these functions, their slopes and the products.
        flops=(13 if trains else 3) * elements,
        build=build,
        small=small,
    )


CASES = tuple(
    case(shape, torch.float32, direction, "cpu", small=small)
    for shape, small in (((4, 128, 32, 32), False), ((2, 16, 12, 12), True))
    for direction in ("forward", "forward+backward")
)
