"""The machine a figure belongs to, and what it can do at best, measured in the same run.

Bandwidth and matrix rate are roofs: of each probe's repetitions the fastest counts, and of several ways to do the same
work the best.
"""

from __future__ import annotations

import glob
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

import fastar
from fastar.bench.timing import Clock, clock_for

MIB = 1 << 20


@dataclass(frozen=True)
class Machine:
    """What a figure cannot be read without."""

    processor: str
    cores: int
    gpu: str | None
    system: str
    python: str
    torch: str
    fastar: str


@dataclass(frozen=True)
class Probes:
    """Bytes per second of a read and of a copy (read and written bytes together), and matrix operations per second."""

    read_bytes_per_s: float
    copy_bytes_per_s: float
    matrix_flops_per_s: float

    @property
    def bytes_per_s(self) -> float:
        """The roof of any mix of reading and writing."""
        return max(self.read_bytes_per_s, self.copy_bytes_per_s)


def describe(device: torch.device) -> Machine:
    """The machine, as far as it bears on a figure taken on `device`."""
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        fastar=fastar.__version__,
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cache_bytes(device: torch.device) -> int:
    """Size of the last cache before memory; 0 where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [0]
    for path in glob.glob("/sys/devices/system/cpu/cpu0/cache/index*/size"):
        with open(path, encoding="utf-8") as file:
            text = file.read().strip()
        sizes.append(int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[text[-1]])
    return max(sizes)


def neighbours(seconds: float = 0.5) -> str | None:
    """A warning where other programs keep the processor busy; None where they do not, or the system does not tell."""
    before = _busy_and_all()
    time.sleep(seconds)
    after = _busy_and_all()
    if before is None or after is None or after[1] <= before[1]:
        return None
    cores = (os.cpu_count() or 1) * (after[0] - before[0]) / (after[1] - before[1])
    if cores < 0.2:
        return None
    return f"other programs used {cores:.1f} cores just before the run: close them and measure again"


def _busy_and_all() -> tuple[float, float] | None:
    """Ticks that all cores together have worked since the start of the system, and ticks in all."""
    try:
        with open("/proc/stat", encoding="utf-8") as file:
            ticks = [float(word) for word in file.readline().split()[1:9]]
    except OSError:
        return None
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def probe(device: torch.device, dtype: torch.dtype, *, quick: bool = False) -> Probes:
    """Measure the roofs of this minute; some machines change their memory's speed from one minute to the next."""
    clock = clock_for(device)
    read_once, size = reading(device, quick=quick)
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    repetitions = 3 if quick else 10
    copied = 2 * size / _fastest(lambda: target.copy_(source), clock, repetitions)
    read = size / _fastest(read_once, clock, repetitions)
    return Probes(read, copied, _matrix_rate(device, dtype, clock, quick))


def reading(device: torch.device, *, quick: bool = False) -> tuple[Callable[[], object], int]:
    """A call that reads memory and nothing else, and how many bytes it reads."""
    size = max((64 if quick else 256) * MIB, 4 * cache_bytes(device))
    # Two long rows: a sum over one row falls into a slower path of torch's reductions on the CPU.
    rows = torch.ones(2, size // 8, device=device)
    return lambda: rows.sum(1), size


def _matrix_rate(device: torch.device, dtype: torch.dtype, clock: Clock, quick: bool) -> float:
    n = (512 if quick else 2048) if device.type == "cpu" else (2048 if quick else 8192)
    if dtype == torch.int8:
        a8, b8 = (torch.randint(-128, 128, (n, n), device=device, dtype=dtype) for _ in range(2))
        return 2 * n**3 / _fastest(lambda: torch._int_mm(a8, b8.T), clock, 3 if quick else 7)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    ways: list[Callable[[], Tensor]] = [lambda: torch.mm(a, b), lambda: torch.mm(a, b.T)]
    if device.type == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available():
        # Torch's products go to MKL, which leaves half of a processor of another maker unused; oneDNN does not.
        x, w = a.to_mkldnn(), b.to_mkldnn()
        ways.append(lambda: functional.linear(x, w))
    return 2 * n**3 / min(_fastest(way, clock, 3 if quick else 7) for way in ways)


def _fastest(call: Callable[[], object], clock: Clock, repetitions: int) -> float:
    call()
    return min(clock.time(call, 1) for _ in range(repetitions))
