"""Choosing among a few configurations of a kernel by timing them once per card and class of shapes.

The winners are kept in the user's cache folder. With FASTAR_AUTOTUNE=0, in the interpreter, and while a CUDA graph is
being captured nothing is timed and the first candidate, the best guess, is taken. The candidates of one kernel reduce
in the same order, so that the choice changes the time of a result and never its bits.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
import triton
from triton.runtime.errors import OutOfResources

from fastar.kernels import _launch
from fastar.kernels._launch import Config

_lock = threading.Lock()
_chosen: dict[tuple[Hashable, ...], Config] = {}


def bucket(size: int) -> int:
    """Sizes that share a choice: the next power of two, so that a varying batch is not timed anew each time."""
    return int(triton.next_power_of_2(max(size, 1)))


def choose(
    kernel: str,
    key: tuple[Hashable, ...],
    candidates: Sequence[Config],
    device: torch.device,
    run: Callable[[Config], None],
) -> Config:
    """The candidate with which `run` is fastest on this card for this key, timed at the first call only."""
    recorder = _launch.recorder()
    if recorder is not None:
        return candidates[min(recorder.candidate, len(candidates) - 1)]
    if len(candidates) == 1 or device.type != "cuda" or os.environ.get("FASTAR_AUTOTUNE", "1") == "0":
        return candidates[0]
    place = (kernel, key, device.index)
    if place in _chosen:
        return _chosen[place]
    if torch.cuda.is_current_stream_capturing():
        return candidates[0]
    with _lock, torch.cuda.device(device):
        if place not in _chosen:
            _chosen[place] = candidates[_winner(_file(device), f"{kernel} {key} {list(candidates)}", candidates, run)]
        return _chosen[place]


def _winner(file: Path, name: str, candidates: Sequence[Config], run: Callable[[Config], None]) -> int:
    known = _load(file).get(name)
    if isinstance(known, int) and 0 <= known < len(candidates):
        return known
    times = [_time(run, one) for one in candidates]
    best = times.index(min(times))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # A whole file replaces a whole file; another process may have added to it meanwhile.
        partial = file.with_name(f"{file.name}.{os.getpid()}")
        partial.write_text(json.dumps({**_load(file), name: best}, indent=1, sort_keys=True))
        partial.replace(file)
    except OSError:
        # A read-only home costs the timing again in the next process, nothing else.
        pass
    return best


def _file(device: torch.device) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    card = "".join(c if c.isalnum() else "-" for c in torch.cuda.get_device_name(device))
    return base / "fastar" / "autotune" / f"{card}-triton{triton.__version__}.json"


def _load(file: Path) -> dict[str, Any]:
    try:
        kept = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _time(run: Callable[[Config], None], config: Config) -> float:
    try:
        return float(triton.testing.do_bench(lambda: run(config), warmup=5, rep=20))
    except OutOfResources:
        return float("inf")
