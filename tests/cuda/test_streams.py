"""Weights that come through the warps' rings, on the host twin: the same as where they lie, in any order of threads."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastar.models import WaveNet
from fastar.sampling import cuda_plan
from fastar.sampling.cuda import Cuda
from fastar.sampling.cuda_plan import Room
from fastar.sampling.program import Program
from fastar.sampling.request import Request, make
from tests.sampling.consumers_more import CONSUMERS
from tests.sampling.test_cpu_programs import LARGE, _request

GRID = {"schedule": "grid", "blocks": 2}
# A program, its weights' precision, the stages of a ring and a schedule: rings that hold less than a warp's part of a
# tile and more than all of them; tiles whose steps do not fill a stage's batch, taps that are outside; loops in loops,
# after which something else comes than was guessed; blocks without a tile; one row and eight.
CASES: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "taps": ("wavenet_narrow", "float32", 8, GRID),
    "taps in bytes": ("wavenet_narrow", "int8", 24, {**GRID, "blocks": 3, "rows": 3}),
    "parts": ("transformer", "bfloat16", 8, {**GRID, "rows": 8}),
    "loops": ("gated_pixelcnn", "float16", 16, {**GRID, "blocks": 3}),
    "loops of eight rows": ("gated_pixelcnn", "float32", 32, {**GRID, "rows": 8}),
    "conditions": ("transformer_given", "float32", 8, {**GRID, "blocks": 5}),
    "two teams": ("gru", "int8", 8, {**GRID, "rows": 16}),
    "cluster": ("lstm", "float16", 16, {"schedule": "cluster", "blocks": 4}),
    "row": ("wavenet_narrow", "bfloat16", 8, {"schedule": "row", "rows": 512}),
}
CASE = pytest.mark.parametrize("case", CASES)


def _program(name: str) -> Program:
    return LARGE[name]() if name in LARGE else CONSUMERS[name][0]().program


def _streaming(twin: Any, program: Program, precision: str, stages: int, options: dict[str, Any]) -> tuple[Cuda, Cuda]:
    # Without rings, and with them and no room for weights beside.
    where_they_lie = Cuda(program, precision, library=twin, stages=0, **options)
    plan, packed = where_they_lie.schedule, where_they_lie.packed
    ring = plan.threads // 32 * stages * (256 if precision == "int8" else 512)
    shared = plan.shared_bytes - packed.resident_bytes + ring + 128
    through_rings = Cuda(program, precision, library=twin, stages=stages, shared_bytes=shared, **options)
    assert through_rings.packed.stages == stages
    assert through_rings.packed.resident_bytes == 0
    return where_they_lie, through_rings


def _assert_same(twin: Any, still: Cuda, streaming: Cuda, request: Request, seeds: Iterable[int]) -> None:
    whole = still.start(request)
    whole.advance()
    for seed in seeds:
        twin.configure(seed)
        run = streaming.start(request)
        run.advance()
        assert torch.equal(run.values, whole.values), f"seed {seed}"
        assert torch.equal(run.log_prob, whole.log_prob), f"seed {seed}"


@CASE
def test_bit_for_bit_what_weights_that_lie_still_give(twin: Any, case: str) -> None:
    name, precision, stages, options = CASES[case]
    program = _program(name)
    still, streaming = _streaming(twin, program, precision, stages, options)
    request = _request(name, program, min(10, options.get("rows", 2) + 1))
    _assert_same(twin, still, streaming, request, seeds=(1, 2))


def test_taps_are_fetched_while_rings_are_full(twin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    program = WaveNet(32, 64, 96, [3, 1, 2, 4]).eval().lower()
    request = make(program, 2, seed=3, length=12)
    monkeypatch.setattr(cuda_plan, "_rooms", lambda name, blocks, n: [Room(name, n, blocks, True, 0, 4096)])
    still, streaming = _streaming(twin, program, "float16", 8, {"schedule": "cluster", "blocks": 4})
    assert streaming.packed.tally["fetches"] == 3
    _assert_same(twin, still, streaming, request, seeds=(1, 2))


@pytest.mark.exhaustive
@CASE
def test_a_hundred_orders_of_threads_give_the_same(twin: Any, case: str) -> None:
    name, precision, stages, options = CASES[case]
    program = _program(name)
    still, streaming = _streaming(twin, program, precision, stages, options)
    request = _request(name, program, min(10, options.get("rows", 2) + 1))
    _assert_same(twin, still, streaming, request, seeds=range(100))


@pytest.mark.parametrize("case", ["loops", "conditions"])
def test_a_launch_that_is_cancelled_leaves_nothing_on_its_way(twin: Any, case: str) -> None:
    name, precision, stages, options = CASES[case]
    program = _program(name)
    still, streaming = _streaming(twin, program, precision, stages, options)
    request = _request(name, program, 3)
    whole, run = still.start(request), streaming.start(request)
    whole.advance()
    while not run.finished:
        run._words[0] = 1  # before the kernel begins, which then ends behind its first position
        run.launch()
        run.settle()
        if not run.finished:
            run.advance(2)
    assert torch.equal(run.values, whole.values)
    assert torch.equal(run.log_prob, whole.log_prob)


def test_rows_that_end_early_end_the_ring(twin: Any) -> None:
    name, precision, stages, options = CASES["parts"]
    program = _program(name)
    still, streaming = _streaming(twin, program, precision, stages, options)
    request = _request(name, program, 5, stop=7)
    whole, run = still.start(request), streaming.start(request)
    whole.advance()
    run.advance()
    assert torch.equal(run.lengths, whole.lengths)
    assert torch.equal(run.values, whole.values)


def test_the_planner_gives_rings_the_room_that_they_are_worth(twin: Any) -> None:
    kept = Cuda(LARGE["lstm"](), library=twin, **GRID)
    assert kept.packed.shares == []
    assert kept.packed.stages == 0
    program = LARGE["transformer"]()
    chosen, without = (Cuda(program, library=twin, stages=stages, **GRID) for stages in (None, 0))
    assert chosen.packed.stages == 16
    assert 0 < chosen.packed.resident_bytes < without.packed.resident_bytes
    assert chosen.schedule.predicted_us < without.schedule.predicted_us
    assert "weights through rings of 16 stages a warp" in chosen.describe()


def test_the_prediction_lets_memory_go_on_as_far_as_rings_hold() -> None:
    def waited(stages: int, between: float) -> float:
        # Two matrices of a tile of 1 KB for each of eight blocks, which take 10.24 us each, and a wait before either.
        packed = SimpleNamespace(shares=[(1024, 8, 1, 8, 1)] * 2, stages=stages, stage_bytes=512)
        return cuda_plan._streaming(packed, between, waits=2, threads=128, fair=100.0)

    assert waited(0, 6.0) == pytest.approx(20.48)
    assert waited(8, 6.0) == pytest.approx(14.48)
    # Of the warps one has the tile, so a quarter of 16 KB is at hand for it: more than both.
    assert waited(8, 40.0) == pytest.approx(2 * 1024 / 200e3)


def test_refusals_name_the_argument(twin: Any) -> None:
    with pytest.raises(ValueError, match="stages: expected one of 0, 8, 16, 24, 32, got 12"):
        Cuda(LARGE["wavenet"](), library=twin, stages=12)
    with pytest.raises(RuntimeError, match=r"row: a block needs \d+ bytes of shared memory and has 4000"):
        Cuda(LARGE["wavenet"](), library=twin, stages=8, schedule="row", shared_bytes=4000)
