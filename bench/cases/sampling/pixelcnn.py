"""PixelCNN: a 7x7 mask A, 3x3 masks B, 256 levels for each colour of a pixel, each seeing the ones before it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastar.bench.alternatives import CudaGraph
from fastar.bench.cases.sampling._common import Loop, Work, Workload, case, draw, random
from fastar.bench.registry import Absent, Call, Case, Part
from fastar.models import PixelCNN
from fastar.nn import MaskedConv2d

COLOURS = 3


@dataclass(frozen=True)
class Layer:
    """A convolution with its mask multiplied in: kernel [out, in, size, size] and bias."""

    kernel: Tensor
    bias: Tensor


def make_model(height: int, width: int, features: int, depth: int, levels: int) -> PixelCNN:
    """`fastar.models.PixelCNN` without residual blocks, its weights wide enough that pixels depend on one another."""
    model = PixelCNN(
        (COLOURS, height, width), levels, width=features, depth=depth, block="plain", colour_layout="contiguous"
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            shape = parameter.shape
            flat = random(generator, shape[0], shape[1:].numel(), scale=2.0)
            parameter.copy_(flat.view(shape) if parameter.dim() > 1 else random(generator, *shape))
    return model.eval()


def layers_of(model: nn.Module) -> list[Layer]:
    """What a user would convolve with by PyTorch alone."""
    convolutions = [one for one in model.modules() if isinstance(one, MaskedConv2d)]
    assert all(one.bias is not None for one in convolutions)
    return [
        Layer((one.weight * one.dense_mask()).detach(), one.bias.detach())
        for one in convolutions
        if one.bias is not None
    ]


class Full:
    """The whole image through the whole network for every colour of every pixel: what sampling code commonly does."""

    def __init__(self, layers: list[Layer], height: int, width: int) -> None:
        self.layers, self.height, self.width = layers, height, width
        self.levels = len(layers[-1].bias) // COLOURS

    @torch.inference_mode()
    def one_pass(self, x: Tensor, h: int, w: int, colour: int, u: Tensor) -> Tensor:
        """A pass over x [rows, colours, height, width] in [-1, 1], and one colour [rows] of one pixel drawn from it."""
        for one in self.layers[:-1]:
            x = torch.relu(functional.conv2d(x, one.kernel, one.bias, padding="same"))
        logits = functional.conv2d(x, self.layers[-1].kernel, self.layers[-1].bias)[:, :, h, w]
        return draw(logits[:, colour * self.levels : (colour + 1) * self.levels], u)

    def __call__(self, u: Tensor) -> Tensor:
        x = u.new_zeros(u.shape[1], COLOURS, self.height, self.width)
        drawn = torch.empty(u.shape[1], len(u), dtype=torch.int64, device=u.device)
        for position in range(len(u)):
            pixel, colour = divmod(position, COLOURS)
            h, w = divmod(pixel, self.width)
            drawn[:, position] = self.one_pass(x, h, w, colour, u[position])
            x[:, colour, h, w] = drawn[:, position] * (2 / (self.levels - 1)) - 1
        return drawn


class Cached:
    """What the layers gave for earlier pixels is kept, and a colour costs a product per layer, of its own channels."""

    def __init__(self, layers: list[Layer], height: int, width: int) -> None:
        self.height, self.width = height, width
        self.levels = len(layers[-1].bias) // COLOURS
        self.sizes = [one.kernel.shape[-1] for one in layers]
        self.channels = [one.kernel.shape[1] for one in layers]
        self.cuts = [_colours(len(one.bias)) for one in layers]
        self.products = [[_rows(one, cut) for cut in cuts] for one, cuts in zip(layers, self.cuts, strict=True)]

    @torch.inference_mode()
    def __call__(self, u: Tensor) -> Tensor:
        rows = u.shape[1]
        # With a margin of zeros, [height + half, width + 2 half, rows, channels].
        halves = [size // 2 for size in self.sizes]
        caches = [
            u.new_zeros(self.height + half, self.width + 2 * half, rows, channels)
            for half, channels in zip(halves, self.channels, strict=True)
        ]
        drawn = torch.empty(rows, len(u), dtype=torch.int64, device=u.device)
        for position in range(len(u)):
            pixel, colour = divmod(position, COLOURS)
            h, w = divmod(pixel, self.width)
            for i, (cache, half, size) in enumerate(zip(caches, halves, self.sizes, strict=True)):
                above = cache[h : h + half, w : w + size].flatten(0, 1)
                patch = torch.cat([above, cache[h + half, w : w + half + 1]]).transpose(0, 1).flatten(1)
                y = functional.linear(patch, *self.products[i][colour])
                if i + 1 < len(caches):
                    caches[i + 1][h + halves[i + 1], w + halves[i + 1], :, self.cuts[i][colour]] = torch.relu(y)
            drawn[:, position] = draw(y, u[position])
            caches[0][h + halves[0], w + halves[0], :, colour] = drawn[:, position] * (2 / (self.levels - 1)) - 1
        return drawn


def _colours(channels: int) -> list[slice]:
    # Channel c has colour floor(c * COLOURS / channels).
    edges = [-(-k * channels // COLOURS) for k in range(COLOURS + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(edges)]


def _rows(layer: Layer, outputs: slice) -> tuple[Tensor, Tensor]:
    # Of some outputs the matrix over what comes up to the centre, tap by tap.
    size = layer.kernel.shape[-1]
    taps = layer.kernel[outputs].flatten(2)[:, :, : size * (size // 2) + size // 2 + 1]
    return taps.transpose(1, 2).flatten(1).contiguous(), layer.bias[outputs].contiguous()


def pixelcnn(
    height: int,
    width: int,
    features: int,
    depth: int,
    levels: int = 256,
    *,
    rows: int = 1,
    dtype: torch.dtype = torch.float32,
    small: bool = False,
    devices: tuple[str, ...] = ("cpu", "cuda"),
) -> Case:
    pixels = height * width

    def make(device: torch.device) -> Workload:
        model = make_model(height, width, features, depth, levels).to(device)
        layers = layers_of(model)
        full, cached = Full(layers, height, width), Cached(layers, height, width)
        if small:
            loops: dict[str, Loop] = {"cached loop": cached, "full passes": full}
            return Workload(model.lower(), rows, pixels * COLOURS, loops)
        x = torch.rand(rows, COLOURS, height, width, device=device) * 2 - 1
        u = torch.rand(rows, device=device)

        def one_pass() -> None:
            full.one_pass(x, height // 2, width // 2, 1, u)

        others: dict[str, Call | Part | Absent] = {"full passes": Part(one_pass, pixels * COLOURS)}
        if device.type == "cuda":
            others["CUDA graph, full passes"] = Part(CudaGraph(one_pass), pixels * COLOURS)
        loops = {"cached loop": cached}
        # The first rows of the image.
        captured = 4 * width * COLOURS
        return Workload(model.lower(), rows, pixels * COLOURS, loops, others, captured)

    # At the centre a colour sees the earlier ones and, past the first layer, its own: about two thirds of the weights.
    weights = features * (
        24 * COLOURS + COLOURS + 4 * depth * features + 2 * (depth * features + COLOURS * levels) // 3
    )
    return case(
        f"pixelcnn-{height}x{width}x{features}x{depth}",
        make,
        Work(weights=weights, products=weights, steps=pixels),
        rows=rows,
        dtype=dtype,
        shapes=f"{height}x{width}x{COLOURS}, {features} channels, 7x7 A and {depth} 3x3 B, {levels} levels",
        per=1,
        unit="batch of images" if rows > 1 else "image",
        small=small,
        devices=devices,
    )


CASES = (
    pixelcnn(32, 32, 128, 8),
    pixelcnn(32, 32, 128, 8, dtype=torch.bfloat16),
    pixelcnn(32, 32, 128, 8, dtype=torch.int8, devices=("cpu",)),
    pixelcnn(32, 32, 128, 8, rows=64, devices=("cuda",)),
    pixelcnn(5, 4, 16, 2, 8, rows=2, small=True),
)
