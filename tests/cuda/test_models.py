"""Lowered models on the host twin, a small one of every family, against the reference executor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastar.models import MADE, NADE, CharRNN, Model, PixelCNN, Transformer, WaveNet
from fastar.sampling import cuda_plan
from fastar.sampling.cuda import Cuda
from fastar.sampling.cuda_plan import Room
from fastar.sampling.draws import Options
from fastar.sampling.request import make
from tests.sampling.test_cpu_programs import _assert_agrees

FAMILIES: dict[str, Callable[[], Model]] = {
    "NADE": lambda: NADE(12, 20),
    "MADE": lambda: MADE(8, [24]),
    "WaveNet": lambda: WaveNet(32, 64, 96, 3),
    "PixelCNN": lambda: PixelCNN((1, 3, 3), levels=4, width=16, depth=1),
    "Transformer": lambda: Transformer(16, 8, 32, 1, 2, bos=0),
    "CharRNN": lambda: CharRNN(16, 48, 2, cell="lstm"),
}
PLANS: dict[str, dict[str, Any]] = {
    "row": {"schedule": "row", "rows": 64},
    "cluster": {"schedule": "cluster", "blocks": 4},
    "grid": {"schedule": "grid", "blocks": 2},
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_draws_what_the_reference_draws(twin: Any, family: str, plan: str) -> None:
    program = FAMILIES[family]().eval().lower()
    request = make(program, 2, seed=3, length=None if program.positions else 4)
    twin.configure(1)
    run = Cuda(program, library=twin, **PLANS[plan]).start(request)
    run.advance()
    _assert_agrees(program, request, run, Options())


@pytest.mark.parametrize(("hidden", "levels", "streams"), [(20, 2, 0), (24, 5, 0), (21, 2, 2)])
def test_rows_of_tables_are_fetched_while_the_value_before_them_is_drawn(
    twin: Any, hidden: int, levels: int, streams: int
) -> None:
    program = NADE(9, hidden, levels=levels).eval().lower()
    request = make(program, 3, seed=4)
    whole = Cuda(program, library=twin, schedule="grid", blocks=2, rows=3).start(request)
    whole.advance()
    executor = Cuda(program, library=twin, schedule="row", rows=40)
    # A row of 21 numbers is no whole number of copies.
    assert executor.packed.tally["streams"] == streams
    for seed in range(8):
        twin.configure(seed)
        run = executor.start(request)
        while not run.finished:
            run.advance(4)
        assert torch.equal(run.values, whole.values)
        assert torch.equal(run.log_prob, whole.log_prob)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_blocks_of_a_cluster_meet_once_a_position(twin: Any, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dilations = [3, 1, 2, 4]
    program = WaveNet(32, 64, 96, dilations).eval().lower()
    request = make(program, 2, seed=3, length=12)
    row = Cuda(program, precision, library=twin, schedule="row").start(request)
    row.advance()
    # Rings in global memory, as longer ones would be.
    monkeypatch.setattr(cuda_plan, "_rooms", lambda name, blocks, n: [Room(name, n, blocks, True, 0, 16384)])
    executor = Cuda(program, precision, library=twin, schedule="cluster", blocks=4)
    tally = executor.packed.tally
    assert executor.packed.slow == 64 * sum(d + 1 for d in dilations)
    # What a layer reads of its ring in the same position is at hand all the same, what it reads of earlier ones was
    # fetched, and what the layers add up for the output stays where it is added.
    assert tally["team_meetings"] == 1
    assert tally["edges"] >= 4
    assert tally["fetches"] == 3
    # Thread orders; memory that shows writes late, and at once.
    for seed in (1, 2, 3):
        twin.configure(seed)
        run = executor.start(request)
        run.advance()
        assert torch.equal(run.values, row.values)
