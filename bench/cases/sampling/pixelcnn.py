"""PixelCNN: a 7x7 mask A, 3x3 masks B, 256 levels for each of three colours of a pixel, drawn together."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fastar.bench.alternatives import CudaGraph
from fastar.bench.cases.sampling._common import Loop, Work, Workload, case, draw, on, random
from fastar.bench.registry import Absent, Call, Case, Part
from fastar.sampling import Builder, Head, Program, Value
from fastar.sampling.instructions import Draw, Linear, Store, TappedLinear

COLOURS = 3
Taps = tuple[tuple[int, int], ...]
Parameters = dict[str, Tensor]


def taps(size: int, *, centre: bool) -> Taps:
    """The offsets that come before the centre in raster order, and the centre itself."""
    half = size // 2
    every = [(dh, dw) for dh in range(-half, 1) for dw in range(-half, half + 1)]
    return tuple(one for one in every if one < (0, 0) or (centre and one == (0, 0)))


FIRST, REST = taps(7, centre=False), taps(3, centre=True)


def parameters(width: int, layers: int, levels: int) -> Parameters:
    """Kernels [out, taps, in]."""
    generator = torch.Generator().manual_seed(0)
    p = {
        "first": random(generator, width, len(FIRST) * COLOURS, scale=2.0).view(width, len(FIRST), COLOURS),
        "first.bias": random(generator, width),
        "head": random(generator, COLOURS * levels, width, scale=1.5),
        "head.bias": random(generator, COLOURS * levels),
    }
    for i in range(layers):
        p[f"{i}"] = random(generator, width, len(REST) * width, scale=1.4).view(width, len(REST), width)
        p[f"{i}.bias"] = random(generator, width)
    return p


def program(p: Parameters, height: int, width: int) -> Program:
    F, levels, layers = len(p["first"]), len(p["head"]) // COLOURS, (len(p) - 4) // 2
    b = Builder("pixelcnn", Value("int", 1, levels), height * width * COLOURS)
    for name, weight in p.items():
        b.weight(name, weight)
    x = b.state("x", 4, width, COLOURS, ring=True)
    caches = [b.state(f"y{i}", 2, width, F, ring=True) for i in range(layers)]
    last, logits = b.scratch("last", F).at(), b.scratch("logits", COLOURS * levels).at()
    with b.loop("h", height) as h, b.loop("w", width) as w:
        outs = [one.at(h, w) for one in caches] + [last]
        b.add(TappedLinear(outs[0], x.at(h, w), FIRST, "first", "first.bias", activation="relu"))
        for i in range(layers):
            b.add(TappedLinear(outs[i + 1], outs[i], REST, f"{i}", f"{i}.bias", activation="relu"))
        b.add(Linear(logits, last, "head", "head.bias"))
        for c in range(COLOURS):
            position = (h * width + w) * COLOURS + c
            b.add(
                Draw(Head("categorical", levels), position, logits.channels(c * levels, levels)),
                Store(x.at(h, w).channels(c, 1), position, scale=2 / (levels - 1), shift=-1.0),
            )
    return b.build(shape=(height, width, COLOURS))


def _kernel(weight: Tensor, offsets: Taps, size: int) -> Tensor:
    # [out, taps, in] as the [out, in, size, size] of a convolution, zero where the mask is.
    full = weight.new_zeros(weight.shape[0], weight.shape[2], size, size)
    for k, (dh, dw) in enumerate(offsets):
        full[:, :, size // 2 + dh, size // 2 + dw] = weight[:, k]
    return full


class Full:
    """The whole image through the whole network for every pixel: what sampling code commonly does."""

    def __init__(self, p: Parameters, height: int, width: int) -> None:
        self.height, self.width, self.levels = height, width, len(p["head"]) // COLOURS
        layers = (len(p) - 4) // 2
        self.kernels = [(_kernel(p["first"], FIRST, 7), p["first.bias"])]
        self.kernels += [(_kernel(p[f"{i}"], REST, 3), p[f"{i}.bias"]) for i in range(layers)]
        self.head = p["head"][:, :, None, None], p["head.bias"]

    def logits(self, x: Tensor) -> Tensor:
        """[rows, colours, height, width] in [-1, 1] to [rows, colours * levels, height, width]."""
        for weight, bias in self.kernels:
            x = torch.relu(functional.conv2d(x, weight, bias, padding="same"))
        return functional.conv2d(x, *self.head)

    @torch.inference_mode()
    def one_pass(self, x: Tensor, h: int, w: int, u: Tensor) -> Tensor:
        """A pass, and the colours [rows, colours] drawn from it for one pixel."""
        logits = self.logits(x)[:, :, h, w].unflatten(1, (COLOURS, self.levels))
        return torch.stack([draw(logits[:, c], u[c]) for c in range(COLOURS)], 1)

    def __call__(self, u: Tensor) -> Tensor:
        x = u.new_zeros(u.shape[1], COLOURS, self.height, self.width)
        drawn = []
        for pixel, mine in enumerate(u.split(COLOURS)):
            h, w = divmod(pixel, self.width)
            symbols = self.one_pass(x, h, w, mine)
            x[:, :, h, w] = symbols * (2 / (self.levels - 1)) - 1
            drawn.append(symbols)
        return torch.cat(drawn, 1)


class Cached:
    """What the layers gave for earlier pixels is kept, and a pixel costs a product per layer."""

    def __init__(self, p: Parameters, height: int, width: int) -> None:
        self.height, self.width, self.levels = height, width, len(p["head"]) // COLOURS
        self.layers = [(p["first"].flatten(1), p["first.bias"], 7)]
        self.layers += [(p[f"{i}"].flatten(1), p[f"{i}.bias"], 3) for i in range((len(p) - 4) // 2)]
        self.head = p["head"], p["head.bias"]

    @torch.inference_mode()
    def __call__(self, u: Tensor) -> Tensor:
        rows = u.shape[1]
        channels = [COLOURS, *(len(weight) for weight, _, _ in self.layers)]
        # With a margin of zeros, [height + half, width + 2 half, rows, channels].
        halves = [size // 2 for _, _, size in self.layers]
        caches = [
            u.new_zeros(self.height + half, self.width + 2 * half, rows, count)
            for half, count in zip(halves, channels, strict=False)
        ]
        drawn = torch.empty(rows, len(u), dtype=torch.int64, device=u.device)
        for pixel in range(len(u) // COLOURS):
            h, w = divmod(pixel, self.width)
            for i, (weight, bias, size) in enumerate(self.layers):
                half = halves[i]
                above = caches[i][h : h + half, w : w + size].flatten(0, 1)
                beside = caches[i][h + half, w : w + half + (i > 0)]
                patch = torch.cat([above, beside]).transpose(0, 1).flatten(1)
                y = torch.relu(functional.linear(patch, weight, bias))
                if i + 1 < len(self.layers):
                    caches[i + 1][h + halves[i + 1], w + halves[i + 1]] = y
            logits = functional.linear(y, *self.head).unflatten(1, (COLOURS, self.levels))
            for c in range(COLOURS):
                symbol = draw(logits[:, c], u[pixel * COLOURS + c])
                drawn[:, pixel * COLOURS + c] = symbol
                caches[0][h + halves[0], w + halves[0], :, c] = symbol * (2 / (self.levels - 1)) - 1
        return drawn


def pixelcnn(
    height: int,
    width: int,
    features: int,
    layers: int,
    levels: int = 256,
    *,
    rows: int = 1,
    dtype: torch.dtype = torch.float32,
    small: bool = False,
    devices: tuple[str, ...] = ("cpu", "cuda"),
) -> Case:
    pixels = height * width

    def make(device: torch.device) -> Workload:
        p = on(device, parameters(features, layers, levels))
        full, cached = Full(p, height, width), Cached(p, height, width)
        if small:
            loops: dict[str, Loop] = {"cached loop": cached, "full passes": full}
            return Workload(program(p, height, width), rows, pixels * COLOURS, loops)
        x = torch.rand(rows, COLOURS, height, width, device=device) * 2 - 1
        u = torch.rand(COLOURS, rows, device=device)

        def one_pass() -> None:
            full.one_pass(x, height // 2, width // 2, u)

        others: dict[str, Call | Part | Absent] = {"full passes": Part(one_pass, pixels)}
        if device.type == "cuda":
            others["CUDA graph, full passes"] = Part(CudaGraph(one_pass), pixels)
        loops = {"cached loop": cached}
        # The first rows of the image.
        captured = 4 * width * COLOURS
        return Workload(program(p, height, width), rows, pixels * COLOURS, loops, others, captured)

    weights = features * (len(FIRST) * COLOURS + layers * len(REST) * features + COLOURS * levels)
    return case(
        f"pixelcnn-{height}x{width}x{features}x{layers}",
        make,
        Work(weights=weights, products=weights, steps=pixels),
        rows=rows,
        dtype=dtype,
        shapes=f"{height}x{width}x{COLOURS}, {features} channels, 7x7 A and {layers} 3x3 B, {levels} levels",
        per=1,
        unit="batch of images" if rows > 1 else "image",
        small=small,
        devices=devices,
    )


CASES = (
    pixelcnn(32, 32, 128, 8),
    pixelcnn(32, 32, 128, 8, dtype=torch.bfloat16),
    pixelcnn(32, 32, 128, 8, rows=64, devices=("cuda",)),
    pixelcnn(5, 4, 16, 2, 8, rows=2, small=True),
)
