"""Choosing an implementation of an op, and saying why the others declined.

An op has a short list of implementations, best first. Each states, for a device and a dtype, why it cannot be used, or
nothing where it can. The same answers drive the choice at run time, the error when nobody is left, and `fastar doctor`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Implementation:
    """One way to compute an op: the functions behind its forward and backward, and its reasons to decline."""

    name: str
    declines: Callable[[torch.device, torch.dtype], str | None]
    forward: Callable[..., Any]
    backward: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Verdict:
    """What `fastar doctor` says of one implementation of one op: the reason is None where it can be used."""

    op: str
    implementation: str
    reason: str | None


_REGISTRY: dict[str, tuple[Implementation, ...]] = {}
# What `choose` found: reasons to decline do not change while a process runs.
_CHOSEN: dict[tuple[str, torch.device, torch.dtype], Implementation] = {}
_FORCED: ContextVar[dict[str, str] | None] = ContextVar("fastar_forced", default=None)


def register(op: str, implementations: Sequence[Implementation]) -> None:
    """Enter an op's implementations, best first."""
    _REGISTRY[op] = tuple(implementations)
    _CHOSEN.clear()


def ops() -> list[str]:
    """Names of the registered ops."""
    return sorted(_REGISTRY)


def implementations(op: str) -> tuple[Implementation, ...]:
    """The implementations of an op, best first."""
    if op not in _REGISTRY:
        raise ValueError(f"op: expected one of {ops()}, got {op!r}")
    return _REGISTRY[op]


def verdicts(op: str, device: torch.device, dtype: torch.dtype) -> list[Verdict]:
    """For each implementation of an op, why it would not be used for this device and dtype, or None."""
    return [Verdict(op, one.name, one.declines(device, dtype)) for one in implementations(op)]


def choose(op: str, device: torch.device, dtype: torch.dtype) -> Implementation:
    """The first implementation that does not decline; RuntimeError with every reason where all do."""
    forced = (_FORCED.get() or {}).get(op)
    key = (op, device, dtype)
    if forced is None and key in _CHOSEN:
        return _CHOSEN[key]
    reasons = []
    for one in implementations(op):
        if forced is not None and one.name != forced:
            continue
        reason = one.declines(device, dtype)
        if reason is None:
            if forced is None:
                _CHOSEN[key] = one
            return one
        reasons.append(f"{one.name}: {reason}")
    raise RuntimeError(f"fastar.{op}: no implementation for {dtype} on {device} ({'; '.join(reasons)})")


@contextlib.contextmanager
def forced(op: str, name: str) -> Iterator[None]:
    """Within the block, `op` runs on the implementation of this name only (for tests and benchmarks).

    Holds for the calling thread's context. Autograd runs the backward of CPU tensors on the calling thread, so it is
    forced as well when it runs inside the block; for CUDA tensors a thread of autograd's own runs it, unforced.
    """
    names = [one.name for one in implementations(op)]
    if name not in names:
        raise ValueError(f"name: expected one of {names} for {op}, got {name!r}")
    token = _FORCED.set({**(_FORCED.get() or {}), op: name})
    try:
        yield
    finally:
        _FORCED.reset(token)
