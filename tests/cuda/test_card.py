"""The same kernels on a card, through the sampler's own choice of executor; skipped, visibly, where there is none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fastar.sampling import Sampler
from fastar.sampling.cuda import Cuda
from fastar.sampling.draws import Options
from fastar.sampling.program import Program
from tests.sampling.consumers_more import CONSUMERS
from tests.sampling.test_cpu_programs import LARGE, _assert_agrees, _request

pytestmark = pytest.mark.gpu

SCHEDULES: dict[str, dict[str, Any]] = {
    "row": {"schedule": "row"},
    "row of four": {"schedule": "row", "rows": 512},
    "cluster": {"schedule": "cluster", "blocks": 8},
    "grid": {"schedule": "grid"},
}


def _on_host(run: Any) -> Any:
    for name in ("values", "log_prob", "log_weight", "lengths"):
        setattr(run, name, getattr(run, name).cpu())
    return run


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", [*CONSUMERS, *(f"large {one}" for one in LARGE if one != "flow")])
def test_a_free_run_agrees_with_the_reference_on_the_same_prefix(name: str, schedule: str) -> None:
    program = LARGE[name.removeprefix("large ")]() if name.startswith("large ") else CONSUMERS[name][0]().program
    request = _request(name, program)
    run = Cuda(program, **SCHEDULES[schedule]).start(request)
    run.advance()
    _assert_agrees(program, request, _on_host(run), Options())


@pytest.mark.parametrize("name", ["wavenet", "transformer", "flow"])
def test_schedules_agree_bit_for_bit(name: str) -> None:
    program = LARGE[name]()
    runs = [Cuda(program, **options).start(_request(name, program)) for options in SCHEDULES.values()]
    for run in runs:
        run.advance()
        assert torch.equal(run.values, runs[0].values)
        assert torch.equal(run.log_prob, runs[0].log_prob)


def test_a_sampler_of_weights_on_the_card_takes_this_executor() -> None:
    program = LARGE["wavenet"]()
    moved: Program = replace(program, weights={name: t.cuda() for name, t in program.weights.items()})
    sampler = Sampler(moved, 4)
    assert "wavenet: cuda (" in sampler.explain()
    values = sampler.sample(seed=3)
    assert isinstance(values, torch.Tensor)
    assert torch.equal(values, sampler.sample(seed=3))
