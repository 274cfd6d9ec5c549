"""Measures one case: builds it, checks that its contenders agree, times them in turn, and reckons the floor."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastar.bench import machine, timing
from fastar.bench.machine import Machine, Probes
from fastar.bench.registry import Absent, Call, Case, Part
from fastar.bench.timing import Effort, Samples

# Contenders may differ by what their dtypes round (bfloat16, tf32), far below what a wrong formula gives.
AGREEMENT = 2e-2

# A GPU's input sets together exceed its cache this many times.
CACHES = 3

# Names among the calls that are timed in turn; no alternative is called so.
OURS, READING = "", "\0reading"

# The distance between quartiles, as a part of the median, from which a figure is called noisy.
NOISY = 0.1


class DisagreementError(RuntimeError):
    """A contender computes something else than ours: its time would mean nothing."""


@dataclass(frozen=True)
class Result:
    """What one case gave. Times are in microseconds per unit of the case; a ratio above 1 is in our favour."""

    case: Case
    device: str
    machine: Machine
    probes: Probes
    cache_bytes: int
    threads: int
    ours: Samples
    alternatives: dict[str, Samples]
    absent: dict[str, str]
    # Bytes per second of plain reading, taken in turn with the contenders; where memory bounds a case on a CPU.
    read_in_turn: float | None = None
    # How many times the measured part of an alternative was multiplied.
    parts: dict[str, int] = field(default_factory=dict)

    def us(self, samples: Samples) -> float:
        """The median in microseconds per unit."""
        return samples.median * 1e6 / self.case.per

    @property
    def ours_us(self) -> float:
        return self.us(self.ours)

    @property
    def alternatives_us(self) -> dict[str, float]:
        return {name: self.us(samples) for name, samples in self.alternatives.items()}

    @property
    def ratio_to_best(self) -> float | None:
        """The best alternative's time over ours; None where no alternative could be measured."""
        return min(self.alternatives_us.values()) / self.ours_us if self.alternatives else None

    @property
    def floor_us(self) -> float:
        """The time that the counted bytes and operations take at the rates probed in this run."""
        # Nothing evicts a CPU's inputs between calls: what fits its cache is never read from memory.
        moved = self.case.bytes if self.device != "cpu" or self.case.bytes > self.cache_bytes else 0.0
        # Some machines change their memory's speed within a run: what was read in turn saw what the contenders saw.
        rate = self.read_in_turn or self.probes.bytes_per_s
        seconds = max(moved / rate, self.case.flops / self.probes.matrix_flops_per_s)
        return seconds * 1e6 / self.case.per

    @property
    def ratio_to_floor(self) -> float:
        """The floor's time over ours: the part of the physical limit that is reached."""
        return self.floor_us / self.ours_us

    @property
    def bytes_per_s(self) -> float:
        return self.case.bytes / self.ours.median

    @property
    def flops_per_s(self) -> float:
        return self.case.flops / self.ours.median

    @property
    def noisy(self) -> list[str]:
        """The contenders whose samples are spread too far to trust a small difference."""
        everyone = {"fastar": self.ours, **self.alternatives}
        return [name for name, samples in everyone.items() if samples.spread > NOISY]


def measure(
    case: Case,
    device: torch.device,
    effort: Effort = timing.FULL,
    on_progress: Callable[[float], None] = lambda fraction: None,
) -> Result:
    """Measure one case. An error of ours and a disagreement are raised; an error of an alternative makes it absent."""
    quick = effort is timing.QUICK
    cache = machine.cache_bytes(device)
    copies = math.ceil(CACHES * cache / case.bytes) if device.type == "cuda" and case.rotates else 1
    torch.manual_seed(0)
    before = machine.probe(device, case.dtype, quick=quick)
    ours, alternatives, absent, parts = _prepare(case, device, max(1, copies))
    calls = {OURS: ours, **alternatives}
    reads = device.type == "cpu" and case.bytes > cache > 0
    if reads:
        calls[READING], size = machine.reading(device, quick=quick)
    samples = timing.interleaved(calls, timing.clock_for(device), effort, on_progress)
    read_in_turn = size / samples.pop(READING).median if reads else None
    after = machine.probe(device, case.dtype, quick=quick)
    if "torch._dynamo" in sys.modules:
        # Dynamo compiles one function for a limited number of shapes; the next case starts from none.
        torch.compiler.reset()
    return Result(
        case=case,
        device=device.type,
        machine=machine.describe(device),
        probes=Probes(
            max(before.read_bytes_per_s, after.read_bytes_per_s),
            max(before.copy_bytes_per_s, after.copy_bytes_per_s),
            max(before.matrix_flops_per_s, after.matrix_flops_per_s),
        ),
        cache_bytes=cache,
        threads=torch.get_num_threads(),
        ours=samples.pop(OURS),
        alternatives={name: _times(one, parts.get(name, 1)) for name, one in samples.items()},
        absent=absent,
        read_in_turn=read_in_turn,
        parts=parts,
    )


def _times(samples: Samples, count: int) -> Samples:
    return Samples(tuple(count * one for one in samples.seconds))


def _prepare(
    case: Case, device: torch.device, copies: int
) -> tuple[Call, dict[str, Call], dict[str, str], dict[str, int]]:
    """Ours and the alternatives, called once per input set and now going through the sets; who is absent why, and who
    does a part only."""
    ours: list[Call] = []
    alternatives: dict[str, list[Call]] = {}
    absent: dict[str, str] = {}
    parts: dict[str, int] = {}
    for _ in range(copies):
        contenders = case.build(device)
        expected = contenders.ours()
        ours.append(contenders.ours)
        for name, call in contenders.alternatives.items():
            if name in absent:
                continue
            if isinstance(call, Absent):
                absent[name] = call.reason
                continue
            if isinstance(call, Part):
                parts[name], call = call.count, call.call
            try:
                result = call()
            except Exception as error:
                absent[name] = explain(error)
                continue
            _check_agreement(name, result, expected)
            alternatives.setdefault(name, []).append(call)
    present = {name: _in_turn(calls) for name, calls in alternatives.items() if name not in absent}
    return _in_turn(ours), present, absent, {name: count for name, count in parts.items() if name in present}


def _in_turn(calls: list[Call]) -> Call:
    if len(calls) == 1:
        return calls[0]
    turns = itertools.cycle(calls)
    return lambda: next(turns)()


def _check_agreement(name: str, theirs: object, ours: object) -> None:
    if ours is None or theirs is None:
        return
    have, want = _tensors(ours), _tensors(theirs)
    if [one.shape for one in have] != [one.shape for one in want]:
        shapes = " and ".join(str([list(one.shape) for one in results]) for results in (want, have))
        raise DisagreementError(f"{name}: its results and ours have shapes {shapes}")
    for index, (mine, other) in enumerate(zip(have, want, strict=True)):
        error = float((mine - other).norm() / other.norm().clamp_min(1e-30))
        # Written so that a NaN disagrees.
        if not error <= AGREEMENT:
            raise DisagreementError(f"{name}: result {index} differs from ours by {error:.1e} of its norm")


def _tensors(result: Any) -> list[Tensor]:
    several = result if isinstance(result, (tuple, list)) else [result]
    return [one.detach().float() for one in several]


def explain(error: Exception) -> str:
    """An exception in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
