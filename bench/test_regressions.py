"""`pytest bench`: the registry under pytest-benchmark, to compare one state of the code with another.

The small cases by default; the full sizes with ``-m slow``, those of a GPU with ``-m gpu``. The alternatives are timed
beside ours and kept with the record: a change that they share is the machine's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from fastar.bench import registry, report, runner, timing

pytest.importorskip("pytest_benchmark")


def _parameters() -> list[Any]:
    return [
        pytest.param(
            case,
            device,
            marks=[*([] if case.small else [pytest.mark.slow]), *([pytest.mark.gpu] if device == "cuda" else [])],
            id=f"{case.name}-{device}",
        )
        for case in registry.cases()
        for device in case.devices
    ]


@pytest.mark.parametrize(("case", "device"), _parameters())
def test_case(benchmark: Any, case: registry.Case, device: str) -> None:
    kept: list[registry.Call] = []

    def build(where: torch.device) -> registry.Contenders:
        contenders = case.build(where)
        kept.append(contenders.ours)
        return contenders

    effort = timing.QUICK if case.small else timing.FULL
    result = runner.measure(dataclasses.replace(case, build=build), torch.device(device), effort)
    (benchmark.extra_info["fastar"],) = report.to_json([result])
    benchmark.group = f"{case.name}-{device}"
    clock = timing.clock_for(torch.device(device))
    benchmark(lambda: clock.time(kept[0], 1))
    assert result.alternatives, f"no alternative could be measured: {result.absent}"
