"""PixelRNN's recurrences: a row LSTM and one direction of a diagonal LSTM, from the gates that the input gives."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from fastar.bench.alternatives import CudaGraph, compiled
from fastar.bench.registry import Case, Contenders
from fastar.ops import lstm_scan


def cell(z: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    o, f, i, g = z.chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def scan(steps: Tensor, weight: Tensor, left: int, right: int) -> Tensor:
    """Over the third axis of [B, 4 H, steps, lanes], a convolution of the lanes in each step."""
    h = c = steps.new_zeros(steps.shape[0], weight.shape[1], steps.shape[3])
    out = []
    for x in steps.unbind(2):
        h, c = cell(x + functional.conv1d(functional.pad(h, (left, right)), weight), c)
        out.append(h)
    return torch.stack(out, 2)


def rows(x: Tensor, weight: Tensor) -> Tensor:
    k = weight.shape[2]
    return scan(x, weight, k // 2, k // 2)


def skewed(x: Tensor) -> Tensor:
    """By padding: each row of the image becomes one of its width + height - 1, a column further on than the last."""
    height, width = x.shape[2:]
    flat = functional.pad(x, (0, height)).flatten(2)[:, :, :-height]
    return flat.unflatten(2, (height, width + height - 1)).transpose(2, 3)


def straight(steps: Tensor) -> Tensor:
    """The image back."""
    height = steps.shape[3]
    length = steps.shape[2] + 1
    flat = functional.pad(steps.transpose(2, 3).flatten(2), (0, height))
    return flat.unflatten(2, (height, length))[..., : length - height]


def diagonals(x: Tensor, weight: Tensor) -> Tensor:
    return straight(scan(skewed(x), weight, 1, 0))


def unfolded(steps: Tensor, weight: Tensor, left: int, right: int) -> Tensor:
    """As `scan`, with the lanes and channels in one product per step, [B x lanes, k H] by [k H, 4 H]."""
    B, lanes = steps.shape[0], steps.shape[3]
    H, k = weight.shape[1:]
    matrix = weight.permute(2, 1, 0).reshape(k * H, 4 * H)
    h = c = steps.new_zeros(B, lanes, H)
    out = []
    for x in steps.permute(2, 0, 3, 1).unbind(0):
        padded = functional.pad(h, (0, 0, left, right))
        seen = torch.cat([padded[:, j : j + lanes] for j in range(k)], 2)
        z = x + (seen.flatten(0, 1) @ matrix).unflatten(0, (B, lanes))
        o, f, i, g = z.chunk(4, 2)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        out.append(h)
    return torch.stack(out, 2).permute(0, 3, 2, 1)


def rows_by_products(x: Tensor, weight: Tensor) -> Tensor:
    k = weight.shape[2]
    return unfolded(x, weight, k // 2, k // 2)


def diagonals_by_products(x: Tensor, weight: Tensor) -> Tensor:
    return straight(unfolded(skewed(x), weight, 1, 0))


def case(
    along: str,
    sizes: tuple[int, int, int],
    direction: str,
    *devices: str,
    dtype: torch.dtype = torch.float32,
    small: bool = False,
) -> Case:
    B, H, side = sizes
    k = 3 if along == "rows" else 2
    trains = direction == "forward+backward"

    def build(device: torch.device) -> Contenders:
        # As a masked convolution over an image in channels-last layout leaves them.
        x = torch.randn(B, side, side, 4 * H, device=device, dtype=dtype).permute(0, 3, 1, 2)
        weight = (torch.randn(4 * H, H, k, device=device) / (H * k) ** 0.5).to(dtype)
        grad = torch.randn(B, side, side, H, device=device, dtype=dtype).permute(0, 3, 1, 2)

        def contender(run: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], object]:
            own = [x.detach().requires_grad_(trains), weight.detach().clone().requires_grad_(trains)]
            if not trains:
                return lambda: run(*own)

            def step() -> tuple[Tensor, ...]:
                y = run(*own)
                found = torch.autograd.grad(y, own, grad)
                with torch.no_grad():
                    own[1].add_(found[1], alpha=-1e-6)
                return (y.detach(), *found)

            return step

        def ours(x: Tensor, weight: Tensor) -> Tensor:
            h = lstm_scan(x, weight, along=along)
            assert isinstance(h, Tensor)
            return h

        loop, products = (rows, rows_by_products) if along == "rows" else (diagonals, diagonals_by_products)
        # Compiled, the loop is unrolled, which takes minutes; the products are the faster form of the two then.
        alternatives = {
            "loop of convolutions": contender(loop),
            "loop of products": contender(products),
            "torch.compile loop of products": contender(compiled(products)),
        }
        if device.type == "cuda":
            alternatives["CUDA graph loop of products"] = CudaGraph(contender(products))
        return Contenders(contender(ours), alternatives)

    pixels = B * side * side
    # Forward: the gates in, h out. Backward: the gradient of h in, that of the gates out, and what was kept.
    elements = pixels * 5 * H + 4 * H * H * k
    if trains:
        elements += pixels * 11 * H + 2 * 4 * H * H * k
    return Case(
        name=f"lstm_scan.{along}.{B}x{H}.{side}x{side}.{str(dtype).removeprefix('torch.')}.{direction}",
        op="lstm_scan",
        devices=devices,
        dtype=dtype,
        shapes=f"gates {B}x{4 * H}x{side}x{side}, W {4 * H}x{H}x{k}",
        direction=direction,
        bytes=elements * dtype.itemsize,
        flops=2 * pixels * 4 * H * H * k * (3 if trains else 1),
        build=build,
        small=small,
    )


CASES = (
    case("rows", (64, 64, 16), "forward", "cpu"),
    case("rows", (64, 64, 16), "forward+backward", "cpu"),
    case("diagonals", (64, 64, 16), "forward", "cpu"),
    case("diagonals", (64, 64, 16), "forward+backward", "cpu"),
    case("rows", (64, 128, 32), "forward+backward", "cuda", dtype=torch.bfloat16),
    case("diagonals", (64, 128, 32), "forward+backward", "cuda", dtype=torch.bfloat16),
    case("rows", (2, 12, 8), "forward", "cpu", "cuda", small=True),
    case("diagonals", (2, 12, 8), "forward+backward", "cpu", "cuda", small=True),
)
