"""How fast a model is sampled from: by the library's loop, and by a full pass of the model per position."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from fastar.models import Model
from fastar.sampling import Sampler


@dataclass(frozen=True)
class Speed:
    """Seconds that `rows` samples of `positions` took either way."""

    rows: int
    positions: int
    native_seconds: float
    passes_seconds: float

    def describe(self, what: str) -> str:
        """Both rates, and what was measured."""
        native, passes = self.rows / self.native_seconds, self.rows / self.passes_seconds
        return (
            f"[b]{_rate(native)}[/] {what}/s; {_rate(passes)} {what}/s by a full pass per position"
            f" (natively {native / passes:.0f} times as fast; {self.rows} samples of {self.positions} positions,"
            " either way)"
        )


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def draw(
    model: Model, rows: int, length: int | None = None, cond: Tensor | None = None, seed: int = 0
) -> tuple[Tensor, float]:
    """Samples by the library's loop on one thread, and the seconds that they took; the weights are packed before."""
    sampler = Sampler(model, rows, threads=1)
    try:
        begin = time.perf_counter()
        values = sampler.sample(rows, length=length, cond=cond, seed=seed)
        seconds = time.perf_counter() - begin
    finally:
        sampler.close()
    assert isinstance(values, Tensor)
    return values, seconds


@torch.no_grad()
def by_full_passes(
    model: Model, rows: int, length: int | None = None, cond: Tensor | None = None, seed: int = 0
) -> Tensor:
    """Samples as a model without a sampler gives them, for models of levels whose positions have the natural order.

    A model of sequences reads what is known so far, one of vectors all of its dimensions.
    """
    positions = _positions(model, length)
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(rows, positions, dtype=torch.long)
    for t in range(positions):
        known = x if length is None else x[:, : t + 1]
        params = model(known) if cond is None else model(known, cond)
        x[:, t] = torch.multinomial(params[:, t].softmax(1), 1, generator=generator)[:, 0]
    return x


def compare(model: Model, rows: int, length: int | None = None, cond: Tensor | None = None, seed: int = 0) -> Speed:
    """Time both ways: the library's by the median of five runs, the slow one by a single run."""
    native = statistics.median(draw(model, rows, length, cond, seed)[1] for _ in range(5))
    begin = time.perf_counter()
    by_full_passes(model, rows, length, cond, seed)
    return Speed(rows, _positions(model, length), native, time.perf_counter() - begin)


def _positions(model: Model, length: int | None) -> int:
    size = model.data_shape[0] if length is None else length
    assert isinstance(size, int)
    return size
