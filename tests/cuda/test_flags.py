"""Edges of a grid on the host twin: who waits for whom, and what becomes of them over launches, pauses and failures."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from fastar.sampling import cuda_plan
from fastar.sampling.builder import Builder
from fastar.sampling.cuda import Cuda
from fastar.sampling.cuda_plan import Room
from fastar.sampling.cuda_run import Run
from fastar.sampling.instructions import Draw, Gather, Head, Linear
from fastar.sampling.program import Program, Value
from fastar.sampling.reference import Reference
from fastar.sampling.request import make
from tests.sampling.consumers import wavenet, weights
from tests.sampling.consumers_more import transformer


def _chain(layers: int, width: int = 20) -> Program:
    # Each layer reads the last one's outputs, so each is an exchange.
    w = weights(1, table=(width, width), **{f"w{i}": (width, width) for i in range(layers)})
    b = Builder("chain", Value("int", 1, width), None, limit=8)
    for name, tensor in w.items():
        b.weight(name, tensor)
    x, y = (b.scratch(name, width).at() for name in "xy")
    with b.loop("t", None) as t:
        b.add(Gather(x, "table", position=t - 1, first=0))
        for i in range(layers):
            b.add(Linear(y, x, f"w{i}", activation="tanh"))
            x, y = y, x
        b.add(Draw(Head("categorical", width), t, x))
    return b.build()


def _grid(twin: Any, program: Program, blocks: int = 4, rows: int = 3, seed: int = 1) -> Run:
    twin.configure(seed)
    executor = Cuda(program, library=twin, schedule="grid", blocks=blocks, rows=rows)
    return executor.start(make(program, rows, seed=5, length=8))


def test_a_layer_of_a_transformer_takes_five_exchanges(twin: Any) -> None:
    # Query, key and value share one; the norms are every block's own work. The sixth brings the logits.
    tally = _grid(twin, transformer(D=32, heads=2).program).executor.packed.tally
    assert (tally["edges"], tally["team_meetings"]) == (6, 1)


@pytest.mark.parametrize(("layers", "edges", "meetings"), [(63, 63, 1), (64, 64, 1), (65, 64, 2), (140, 138, 3)])
def test_a_meeting_comes_between_more_edges_than_there_are_counters(
    twin: Any, layers: int, edges: int, meetings: int
) -> None:
    program = _chain(layers)
    reference = Reference(program).start(make(program, 3, seed=5, length=8))
    reference.advance()
    for seed in (1, 2):
        run = _grid(twin, program, seed=seed)
        tally = run.executor.packed.tally
        assert (tally["edges"], tally["team_meetings"]) == (edges, meetings)
        run.advance()
        assert torch.equal(run.values, reference.values)


@pytest.mark.parametrize("numbers", [0, 40])
def test_small_work_is_shared_out_where_copies_do_not_fit(
    twin: Any, monkeypatch: pytest.MonkeyPatch, numbers: int
) -> None:
    program = transformer(D=32, heads=2).program
    whole = _grid(twin, program)
    monkeypatch.setattr(cuda_plan, "_rooms", lambda name, blocks, _: [Room(name, numbers, blocks, True)])
    run = _grid(twin, program)
    assert run.executor.packed.fast == numbers // 32 * 32 < whole.executor.packed.fast
    assert run.executor.packed.tally["edges"] > 6
    whole.advance(), run.advance()
    assert torch.equal(run.values, whole.values)
    assert torch.equal(run.log_prob, whole.log_prob)


@pytest.mark.parametrize("blocks", [2, 7, 16])
def test_blocks_without_a_share_go_on(twin: Any, blocks: int) -> None:
    # Of 16 blocks two have a tile of a projection, and two rows' heads fall on four.
    program = transformer(D=32, heads=2).program
    whole = Cuda(program, library=twin, schedule="row").start(make(program, 2, seed=5, length=8))
    whole.advance()
    for seed in range(4):
        run = _grid(twin, program, blocks, 2, seed)
        run.advance()
        assert torch.equal(run.values, whole.values)
        assert torch.equal(run.log_prob, whole.log_prob)


def test_counters_go_on_over_launches_pauses_and_repeats(twin: Any) -> None:
    program = transformer().program
    whole = _grid(twin, program)
    whole.advance()
    run = _grid(twin, program, seed=3)
    for _ in range(2):
        run.advance(1)
        run.advance(2, ahead=True)
        run.pause()
        run.advance()
        assert torch.equal(run.values, whole.values)
        assert torch.equal(run.log_prob, whole.log_prob)
        run.rewind()
    paused = _grid(twin, program)
    paused.advance(3)
    resumed = _grid(twin, program, blocks=3).executor.resume(paused.request, paused.state_dict())
    resumed.advance()
    assert torch.equal(resumed.values, whole.values)


def _without_arrivals(library: Any) -> Run:
    # Under way the counter of the first edge falls back, as if nobody had arrived.
    program = wavenet().program
    run = Cuda(program, library=library, schedule="grid", blocks=2).start(make(program, 1, seed=5, length=50_000))
    run._record["report_every"] = 1
    run.launch()
    while run._words[1] < 1:
        time.sleep(1e-3)
    run._memory[run._arena.numel() :].view(torch.int32)[0] = -1_000_000
    return run


def test_a_lost_arrival_is_a_deadlock_that_says_who_waits(twin: Any) -> None:
    run = _without_arrivals(twin)
    with pytest.raises(RuntimeError, match=r"block \d, thread 0: waits for the flag at \w+ to reach \d+, it is -?\d+"):
        run.settle()


def test_the_watchdog_ends_a_wait_for_a_lost_arrival(card: Any) -> None:
    card.pretend("watchdog", 1, 0)
    run = _without_arrivals(card)
    with pytest.raises(RuntimeError, match="blocks of the grid waited ten seconds for one another in vain"):
        run.settle()
