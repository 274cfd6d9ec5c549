"""What can be measured: one file per op under `cases/`, each with a tuple `CASES`, found by being there."""

from __future__ import annotations

import fnmatch
import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Absent:
    """Stands in the place of an alternative that cannot be measured here; the reason is reported, no time is."""

    reason: str


Call = Callable[[], object]


@dataclass(frozen=True)
class Part:
    """An alternative that takes too long to run whole: `call` does one of `count` equal parts of an iteration.

    Its time is multiplied, and the report says so.
    """

    call: Call
    count: int


@dataclass(frozen=True)
class Contenders:
    """Callables that compute the same thing from the same inputs.

    Each does one whole iteration and returns what it computed: a tensor, a tuple of tensors (compared with ours before
    anything is timed), or None where results cannot be compared. An alternative may prepare itself in its first call,
    which is never timed.
    """

    ours: Call
    alternatives: Mapping[str, Call | Part | Absent]


@dataclass(frozen=True)
class Case:
    """One computation at one size and dtype.

    `build` makes fresh random inputs and the contenders over them; on a GPU it is called several times, and the timer
    goes through the sets in turn, so that inputs come from memory and not from a cache.

    `bytes` and `flops` are the least that any implementation must move (each input read once, each output written once,
    what the mask removes neither) and compute; the floor follows from them. A case whose iteration produces many items,
    as a sampler's loop does, says so by `per`, and all its figures are per `unit`.
    """

    name: str
    op: str
    devices: tuple[str, ...]
    dtype: torch.dtype
    shapes: str
    direction: str
    bytes: float
    flops: float
    build: Callable[[torch.device], Contenders]
    small: bool = False
    per: int = 1
    unit: str = "call"
    # Whether a GPU's caches would give away what comes from memory in use. A sampler goes through its weights again in
    # every step, so its caches are what they are in use.
    rotates: bool = True

    def __post_init__(self) -> None:
        if not self.devices or set(self.devices) - set(DEVICES):
            raise ValueError(f"devices: expected some of {DEVICES}, got {self.devices} for case {self.name}")
        if self.per < 1:
            raise ValueError(f"per: expected a positive integer, got {self.per} for case {self.name}")


@functools.cache
def cases() -> tuple[Case, ...]:
    """Every case, in the order of the files' names and then of their tuples."""
    package = importlib.import_module("fastar.bench.cases")
    found: list[Case] = []
    for module in sorted(one.name for one in pkgutil.iter_modules(package.__path__)):
        found += importlib.import_module(f"fastar.bench.cases.{module}").CASES
    names = [case.name for case in found]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"CASES: expected unique names, got {repeated} repeatedly")
    return tuple(found)


def select(
    patterns: Sequence[str], device: str, *, small: bool = False, among: Sequence[Case] | None = None
) -> list[Case]:
    """The cases that run on `device` and that the patterns name: a case, an op, or a glob over either.

    A case named in full is always meant. An op or a glob gives its cases of full size, or the small ones where `small`
    is set, or the others where it has none of these. ValueError with the list of names for a pattern that fits nothing.
    """
    if device not in DEVICES:
        raise ValueError(f"device: expected one of {', '.join(DEVICES)}, got {device!r}")
    known = cases() if among is None else among
    chosen: list[Case] = []
    for pattern in patterns or ["*"]:
        named = [case for case in known if case.name == pattern]
        alike = [case for case in known if any(fnmatch.fnmatchcase(text, pattern) for text in (case.name, case.op))]
        fits = named or [case for case in alike if case.small == small] or alike
        if not fits:
            raise ValueError(f"case: nothing is called {pattern!r}; {_listing(known)}")
        here = [case for case in fits if device in case.devices]
        if not here and patterns:
            others = sorted({one for case in fits for one in case.devices})
            raise ValueError(f"case: {pattern!r} does not run on {device}, only on {', '.join(others)} (--device)")
        chosen += [case for case in here if case not in chosen]
    if not chosen:
        raise ValueError(f"case: there is none for {device}; {_listing(known)}")
    return chosen


def _listing(known: Sequence[Case]) -> str:
    ops = ", ".join(sorted({case.op for case in known}))
    names = "".join(f"\n  {case.name}  ({', '.join(case.devices)})" for case in known)
    return f"ops: {ops}; cases:{names}"
