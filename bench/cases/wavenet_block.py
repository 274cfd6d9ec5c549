"""One layer of a WaveNet: dilated convolution, gate, residual and skip, at narrow and wide channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fastar.bench.alternatives import CudaGraph, compiled
from fastar.bench.registry import Case, Contenders
from fastar.nn import WaveNetBlock

SCALE = math.sqrt(0.5)


def eager(
    x: Tensor,
    skips: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual_weight: Tensor,
    residual_bias: Tensor,
    skip_weight: Tensor,
    skip_bias: Tensor,
    dilation: int,
) -> tuple[Tensor, Tensor]:
    past = functional.pad(x, ((weight.shape[2] - 1) * dilation, 0))
    filtered, gate = functional.conv1d(past, weight, bias, dilation=dilation).chunk(2, 1)
    h = torch.tanh(filtered) * torch.sigmoid(gate)
    residual = (functional.conv1d(h, residual_weight, residual_bias) + x) * SCALE
    return residual, skips + functional.conv1d(h, skip_weight, skip_bias)


def channels_last(
    x: Tensor,
    skips: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual_weight: Tensor,
    residual_bias: Tensor,
    skip_weight: Tensor,
    skip_bias: Tensor,
    dilation: int,
) -> tuple[Tensor, Tensor]:
    """As images one pixel high, whose channels lie side by side; x and skips come so, and the results leave so."""
    past = functional.pad(x, ((weight.shape[2] - 1) * dilation, 0)).unsqueeze(2)
    past = past.contiguous(memory_format=torch.channels_last)
    z = functional.conv2d(past, weight.unsqueeze(2), bias, dilation=(1, dilation))
    filtered, gate = z.chunk(2, 1)
    h = torch.tanh(filtered) * torch.sigmoid(gate)
    residual = (functional.conv2d(h, residual_weight.unsqueeze(2), residual_bias).squeeze(2) + x) * SCALE
    return residual, skips + functional.conv2d(h, skip_weight.unsqueeze(2), skip_bias).squeeze(2)


def case(
    sizes: tuple[int, int, int, int],
    dilation: int,
    dtype: torch.dtype,
    direction: str,
    *devices: str,
    small: bool = False,
) -> Case:
    batch, channels, skip, time = sizes
    trains = direction == "forward+backward"

    def build(device: torch.device) -> Contenders:
        block = WaveNetBlock(channels, channels, skip, 2, dilation, residual_scale=SCALE, device=device, dtype=dtype)
        block.requires_grad_(trains)
        x = torch.randn(batch, channels, time, device=device, dtype=dtype)
        skips = torch.randn(batch, skip, time, device=device, dtype=dtype)
        grads = [torch.randn_like(x), torch.randn_like(skips)]
        flat = [t.mT.contiguous().mT for t in (x, skips)]
        parameters = [t for layer in (block.conv, block.residual_conv, block.skip_conv) for t in layer.parameters()]

        def contender(
            forward: Callable[..., tuple[Tensor, Tensor]], inputs: list[Tensor], learned: Sequence[Tensor]
        ) -> Callable[[], object]:
            if not trains:
                return lambda: forward(*inputs)
            leaves = [t.clone().requires_grad_() for t in inputs]

            def step() -> tuple[Tensor, ...]:
                out = forward(*leaves)
                return (*out, *torch.autograd.grad(out, [*leaves, *learned], grads))

            return step

        def alternative(function: Callable[..., tuple[Tensor, Tensor]], inputs: list[Tensor]) -> Callable[[], object]:
            copies = [t.detach().clone().requires_grad_(trains) for t in parameters]
            return contender(lambda x, skips: function(x, skips, *copies, dilation), inputs, copies)

        alternatives = {
            "eager": alternative(eager, [x, skips]),
            "eager, channels last": alternative(channels_last, flat),
            "torch.compile": alternative(compiled(eager), [x, skips]),
            "torch.compile, channels last": alternative(compiled(channels_last), flat),
        }
        if device.type == "cuda":
            alternatives["CUDA graph"] = CudaGraph(alternative(eager, [x, skips]))
        ours = contender(lambda x, skips: block(x, skip_sum=skips), [x, skips], parameters)
        return Contenders(ours, alternatives)

    weights = channels * (5 * channels + skip)
    # The forward reads x and the skip sum and writes both outputs. The backward reads x and both gradients and writes
    # that of x; that of the skip sum is the skip's own.
    streams = 2 * channels + 2 * skip + (3 * channels + skip if trains else 0)
    return Case(
        name=(
            f"wavenet_block.{batch}x{channels}x{time}.s{skip}d{dilation}."
            f"{str(dtype).removeprefix('torch.')}.{direction}"
        ),
        op="wavenet_block",
        devices=devices,
        dtype=dtype,
        shapes=f"x {batch}x{channels}x{time}, gate {channels}, skip {skip}, kernel 2, dilation {dilation}",
        direction=direction,
        bytes=(batch * time * streams + weights * (3 if trains else 1)) * dtype.itemsize,
        # The backward computes the convolution again.
        flops=2 * batch * time * (weights * (3 if trains else 1) + (4 * channels * channels if trains else 0)),
        build=build,
        small=small,
    )


CASES = (
    *(
        case(sizes, 64, dtype, direction, "cpu")
        for sizes in ((8, 64, 256, 4000), (2, 256, 256, 4000))
        for dtype in (torch.float32, torch.bfloat16)
        for direction in ("forward", "forward+backward")
    ),
    *(
        case(sizes, 512, torch.bfloat16, direction, "cuda")
        for sizes in ((8, 64, 256, 16000), (8, 256, 256, 16000))
        for direction in ("forward", "forward+backward")
    ),
    case((2, 24, 32, 200), 4, torch.float32, "forward", "cpu", "cuda", small=True),
    case((2, 24, 32, 200), 4, torch.float32, "forward+backward", "cpu", "cuda", small=True),
)
