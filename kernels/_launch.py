"""Launching a kernel: for which card, with which resources and, for tests and reports, what would be launched.

Launch functions work on tensors of the meta device too: inside `recording` nothing runs, and every launch is listed as
the card in question would get it. The compile checks and the reports of docs/kernels are made from such lists, so that
they speak of the very arguments and tiles that run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch


@dataclass(frozen=True)
class Target:
    """What the choice of tiles depends on: compute capability, bytes of shared memory per block, multiprocessors."""

    capability: int
    shared: int
    processors: int


SM80 = Target(80, 163 * 1024, 108)
SM90 = Target(90, 227 * 1024, 132)
SM100 = Target(100, 227 * 1024, 148)

# The interpreter has no card; small tiles let small tensors reach every edge.
INTERPRETER = Target(0, 0, 1)


@dataclass(frozen=True)
class Config:
    """A tile, rows x columns x reduced, and the resources it is computed with."""

    rows: int
    columns: int
    reduced: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Launch:
    """One launch: the kernel, its grid, its arguments by name, its warps and pipeline stages."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Recording:
    """What a `recording` block records for, and the launches so far."""

    target: Target
    candidate: int
    launches: list[Launch]


_RECORDING: ContextVar[Recording | None] = ContextVar("fastar_launches", default=None)


@contextlib.contextmanager
def recording(target: Target, candidate: int = 0) -> Iterator[list[Launch]]:
    """Within the block nothing runs; the list gets what would be launched on `target`.

    Of the configurations among which tuning would choose, number `candidate` is taken, or the last if there are fewer.
    """
    current = Recording(target, candidate, [])
    token = _RECORDING.set(current)
    try:
        yield current.launches
    finally:
        _RECORDING.reset(token)


def recorder() -> Recording | None:
    """The `recording` block that this code runs in."""
    return _RECORDING.get()


@cache
def _card(index: int) -> Target:
    card = torch.cuda.get_device_properties(index)
    return Target(10 * card.major + card.minor, card.shared_memory_per_block_optin, card.multi_processor_count)


def target_of(device: torch.device) -> Target:
    """The card behind a device: the real one, the one that is being recorded for, or the interpreter."""
    current = _RECORDING.get()
    if current is not None:
        return current.target
    if device.type != "cuda":
        return INTERPRETER
    return _card(torch.cuda.current_device() if device.index is None else device.index)


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    device: torch.device,
    arguments: dict[str, Any],
    *,
    num_warps: int,
    num_stages: int = 1,
) -> None:
    """Run `kernel` over `grid` on the device's current stream; an empty grid runs nothing."""
    current = _RECORDING.get()
    if current is not None:
        current.launches.append(Launch(kernel, grid, arguments, num_warps, num_stages))
        return
    if 0 in grid:
        return
    # Triton launches on the current device, which need not be the tensors' own.
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](**arguments, num_warps=num_warps, num_stages=num_stages, enable_fp_fusion=True)
