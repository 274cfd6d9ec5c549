"""Tables: samples of laws whose density is known, and CSV files."""

from __future__ import annotations

import csv
import math
import os
from array import array
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fastar import _checks

_LARGEST = torch.finfo(torch.float32).max


class Known(NamedTuple):
    """Rows [N, D], split in two, and the law's own log-density [N] in nats: what no model can beat."""

    train: Tensor
    test: Tensor
    log_prob: Callable[[Tensor], Tensor]


def mixture(n: int = 5000, dim: int = 2, components: int = 4, *, test_fraction: float = 0.2, seed: int = 0) -> Known:
    """Gaussians of random centres, scales and correlations, equally likely."""
    for name, value in (("n", n), ("dim", dim), ("components", components)):
        _checks.positive(name, value)
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(components, dim, generator=generator)
    factors = 0.4 * torch.randn(components, dim, dim, generator=generator) + 0.4 * torch.eye(dim)
    law = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(components)),
        torch.distributions.MultivariateNormal(centres, factors @ factors.mT + 0.05 * torch.eye(dim)),
    )
    chosen = torch.randint(components, (n,), generator=generator)
    noise = torch.randn(n, dim, 1, generator=generator)
    small = math.sqrt(0.05) * torch.randn(n, dim, generator=generator)
    return _split(centres[chosen] + (factors[chosen] @ noise)[..., 0] + small, law.log_prob, test_fraction)


def rings(
    n: int = 5000,
    *,
    radii: tuple[float, ...] = (1.0, 2.5),
    width: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Known:
    """Points of the plane around circles, equally likely: uniform angles, normal radii."""
    _checks.positive("n", n)
    if not radii or min(radii) < 8 * width:
        raise ValueError(f"radii: expected radii of at least 8 widths, {8 * width}, got {radii}")
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor(radii)
    r = centres[torch.randint(len(radii), (n,), generator=generator)] + width * torch.randn(n, generator=generator)
    angle = 2 * math.pi * torch.rand(n, generator=generator)

    def log_prob(x: Tensor) -> Tensor:
        # A radius below zero has no place in the plane; at 8 widths its probability is that of no float32.
        r = x.norm(dim=1)
        z = (r[:, None] - centres) / width
        density = torch.logsumexp(-0.5 * z * z, 1) - math.log(len(radii) * width * math.sqrt(2 * math.pi))
        return density - torch.log(2 * math.pi * r)

    return _split(torch.stack([r * angle.cos(), r * angle.sin()], 1), log_prob, test_fraction)


def chain(n: int = 5000, dim: int = 16, keep: float = 0.9, *, test_fraction: float = 0.2, seed: int = 0) -> Known:
    """Bits of which the first is a fair coin, and each further one repeats the one before with probability `keep`."""
    for name, value in (("n", n), ("dim", dim)):
        _checks.positive(name, value)
    if not 0 < keep < 1:
        raise ValueError(f"keep: expected a probability between 0 and 1, got {keep}")
    generator = torch.Generator().manual_seed(seed)
    flips = (torch.rand(n, dim, generator=generator) >= keep).long()
    flips[:, 0] = torch.randint(2, (n,), generator=generator)

    def log_prob(x: Tensor) -> Tensor:
        same = x[:, 1:] == x[:, :-1]
        return torch.where(same, math.log(keep), math.log(1 - keep)).sum(1) - math.log(2)

    return _split(flips.cumsum(1) % 2, log_prob, test_fraction)


def read_csv(path: str | os.PathLike[str], *, delimiter: str = ",") -> tuple[Tensor, list[str] | None]:
    """The numbers [N, D] of a CSV file as float32, and its header where the first line has one."""
    numbers = array("f")
    header: list[str] | None = None
    columns = 0
    with open(path, newline="", encoding="utf-8") as file:
        for line, cells in enumerate(csv.reader(file, delimiter=delimiter), 1):
            if not cells:
                continue
            if columns and len(cells) != columns:
                raise ValueError(f"{path}, line {line}: expected {columns} columns, got {len(cells)}")
            try:
                row = [float(cell) for cell in cells]
            except ValueError as error:
                if not columns:
                    header, columns = [cell.strip() for cell in cells], len(cells)
                    continue
                raise ValueError(f"{path}, line {line}: expected numbers, {error}") from error
            columns = len(cells)
            if not all(abs(one) <= _LARGEST for one in row):
                raise ValueError(f"{path}, line {line}: expected finite numbers, got {cells}")
            numbers.extend(row)
    if not numbers:
        raise ValueError(f"{path}: no line of numbers in it")
    return torch.frombuffer(numbers, dtype=torch.float32).view(-1, columns), header


def _split(x: Tensor, log_prob: Callable[[Tensor], Tensor], test_fraction: float) -> Known:
    if not 0 <= test_fraction <= 1:
        raise ValueError(f"test_fraction: expected a number from 0 to 1, got {test_fraction}")
    train, test = x.tensor_split([len(x) - round(test_fraction * len(x))])
    return Known(train, test, log_prob)
