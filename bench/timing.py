"""Timing several contenders against each other.

All are warmed up first; then one sample of each is taken in turn, round after round, so that a slow minute of the
machine falls on all of them alike. The order is rotated from round to round: nobody always has the first turn.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class Effort:
    """How long to measure: `rounds` at most, ended early after `seconds`, but not before `least` of them."""

    rounds: int
    least: int
    seconds: float
    warm_up_seconds: float
    sample_seconds: float


# Threads of the contender before go on spinning for some milliseconds, on cores that the next one needs.
SETTLING_SECONDS = 0.01

FULL = Effort(rounds=50, least=9, seconds=20.0, warm_up_seconds=0.5, sample_seconds=0.01)
QUICK = Effort(rounds=9, least=3, seconds=1.0, warm_up_seconds=0.05, sample_seconds=0.001)


@dataclass(frozen=True)
class Samples:
    """Seconds per call of one contender, one figure per round, in the order in which they were taken."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0]
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high

    @property
    def spread(self) -> float:
        """The distance between the quartiles over the median."""
        low, high = self.quartiles
        return (high - low) / self.median


class Clock(Protocol):
    """Takes the time of a number of calls in a row."""

    def time(self, call: Callable[[], object], repeats: int) -> float:
        """Seconds for `repeats` calls together."""


class HostClock:
    """The processor's own clock."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now

    def time(self, call: Callable[[], object], repeats: int) -> float:
        begin = self._now()
        for _ in range(repeats):
            call()
        return self._now() - begin


class CudaClock:
    """CUDA events around the calls, on an idle GPU: a launch that the host is late with counts, as for a user."""

    def time(self, call: Callable[[], object], repeats: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        for _ in range(repeats):
            call()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) / 1e3


def clock_for(device: torch.device) -> Clock:
    """The clock that sees all the work of a call on this device."""
    return CudaClock() if device.type == "cuda" else HostClock()


def warm_up(call: Callable[[], object], clock: Clock, effort: Effort) -> int:
    """Call until caches, pages and clock rates have settled; the number of calls that make one sample long enough."""
    spent, repeats = 0.0, 1
    while True:
        seconds = clock.time(call, repeats)
        spent += seconds
        if spent >= effort.warm_up_seconds and seconds >= effort.sample_seconds:
            return max(1, math.ceil(repeats * effort.sample_seconds / seconds))
        if seconds < effort.sample_seconds:
            repeats *= 2


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    clock: Clock,
    effort: Effort,
    on_progress: Callable[[float], None] = lambda fraction: None,
) -> dict[str, Samples]:
    """Samples of each contender, taken in turn. `on_progress` gets the finished fraction after each round."""
    repeats = {name: warm_up(call, clock, effort) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    spent = 0.0
    for done in range(1, effort.rounds + 1):
        for name in names:
            if isinstance(clock, HostClock):
                time.sleep(SETTLING_SECONDS)
            sample = clock.time(calls[name], repeats[name])
            spent += sample
            seconds[name].append(sample / repeats[name])
        names = [*names[1:], names[0]]
        by_time = min(spent / effort.seconds, done / effort.least)
        finished = max(done / effort.rounds, by_time)
        on_progress(min(1.0, finished))
        if finished >= 1:
            break
    return {name: Samples(tuple(values)) for name, values in seconds.items()}
