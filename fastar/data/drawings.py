"""Black and white pictures drawn by code: strokes of a pen, and silhouettes."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastar import _checks

# Pictures rasterised at once; the work is a picture's pixels times the points of its strokes.
_CHUNK = 128
_POINTS = 24


class Pictures(NamedTuple):
    """Bits int64 [N, height, width], split in two."""

    train: Tensor
    test: Tensor


def strokes(n: int = 2000, height: int = 28, width: int = 28, *, test_fraction: float = 0.2, seed: int = 0) -> Pictures:
    """One to three curved strokes of a round pen: quadratic Bezier curves between random points."""
    generator = _check(n, height, width, seed)
    pictures = []
    for start in range(0, n, _CHUNK):
        count = min(_CHUNK, n - start)
        # Control points with a margin of a tenth of the picture; a stroke beyond a picture's number is left out.
        control = 0.1 + 0.8 * torch.rand(count, 3, 3, 2, generator=generator)
        drawn = torch.arange(3) < torch.randint(1, 4, (count, 1), generator=generator)
        t = torch.linspace(0, 1, _POINTS)[:, None, None]
        a, b, c = control.unbind(2)
        curve = (1 - t) ** 2 * a[:, None] + 2 * t * (1 - t) * b[:, None] + t**2 * c[:, None]
        curve = torch.where(drawn[:, None, :, None], curve, 9.0).flatten(1, 2)
        pen = 0.03 + 0.03 * torch.rand(count, 1, generator=generator)
        distance = torch.cdist(_grid(height, width).expand(count, -1, -1), curve).amin(2)
        pictures.append((distance < pen).long().unflatten(1, (height, width)))
    return _split(torch.cat(pictures), test_fraction)


def silhouettes(
    n: int = 2000, height: int = 28, width: int = 28, *, test_fraction: float = 0.2, seed: int = 0
) -> Pictures:
    """Filled outlines whose radius is a random wave round a random centre."""
    generator = _check(n, height, width, seed)
    offset = _grid(height, width) - (0.4 + 0.2 * torch.rand(n, 1, 2, generator=generator))
    angle = torch.atan2(offset[..., 0], offset[..., 1])
    radius = (0.18 + 0.14 * torch.rand(n, 1, generator=generator)).expand_as(angle)
    for harmonic in range(2, 6):
        size = 0.1 * torch.rand(n, 1, generator=generator) / (harmonic - 1)
        phase = 2 * math.pi * torch.rand(n, 1, generator=generator)
        radius = radius + size * torch.cos(harmonic * angle + phase)
    return _split((offset.norm(dim=2) < radius).long().unflatten(1, (height, width)), test_fraction)


def _check(n: int, height: int, width: int, seed: int) -> torch.Generator:
    for name, value in (("n", n), ("height", height), ("width", width)):
        _checks.positive(name, value)
    return torch.Generator().manual_seed(seed)


def _grid(height: int, width: int) -> Tensor:
    """The pixels' centres [H * W, 2] in a unit square, as (y, x)."""
    return torch.cartesian_prod((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width)


def _split(pictures: Tensor, test_fraction: float) -> Pictures:
    if not 0 <= test_fraction <= 1:
        raise ValueError(f"test_fraction: expected a number from 0 to 1, got {test_fraction}")
    train, test = pictures.tensor_split([len(pictures) - round(test_fraction * len(pictures))])
    return Pictures(train, test)
