"""Cases of no weight, for the tests of the benchmark's own machinery."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from fastar.bench.machine import Machine, Probes
from fastar.bench.registry import Case, Contenders
from fastar.bench.runner import Result
from fastar.bench.timing import Samples

MACHINE = Machine("a processor", 2, None, "Linux x86_64", "3.11", "2.13", "0.1")


def _ours(x: torch.Tensor) -> Callable[[], object]:
    return lambda: x.sum(0)


def _mean(x: torch.Tensor) -> Callable[[], object]:
    return lambda: x.mean(0) * len(x)


def _case(name: str = "toy.sum", *, ours: Any = _ours, alternatives: Any = None, **changes: Any) -> Case:
    others = {"mean": _mean} if alternatives is None else alternatives

    def build(device: torch.device) -> Contenders:
        x = torch.randn(8, 4, device=device)
        return Contenders(ours(x), {key: make(x) for key, make in others.items()})

    fields: dict[str, Any] = {
        "name": name,
        "op": name.partition(".")[0],
        "devices": ("cpu",),
        "dtype": torch.float32,
        "shapes": "x 8x4",
        "direction": "forward",
        "bytes": 128.0,
        "flops": 32.0,
        "build": build,
    }
    return Case(**{**fields, **changes})


def _result(
    seconds: Mapping[str, tuple[float, ...]],
    *,
    absent: dict[str, str] | None = None,
    probes: Probes | None = None,
    device: str = "cpu",
    cache_bytes: int = 0,
    **changes: Any,
) -> Result:
    ours, *others = seconds
    return Result(
        case=_case(**changes),
        device=device,
        machine=MACHINE,
        probes=probes or Probes(1e9, 0.5e9, 1e9),
        cache_bytes=cache_bytes,
        threads=2,
        ours=Samples(seconds[ours]),
        alternatives={name: Samples(seconds[name]) for name in others},
        absent=absent or {},
    )


@pytest.fixture
def make_case() -> Callable[..., Case]:
    """A case that sums the rows of a small matrix; each contender is made from the matrix."""
    return _case


@pytest.fixture
def make_result() -> Callable[..., Result]:
    """A result with the given samples; the first of them is ours."""
    return _result
