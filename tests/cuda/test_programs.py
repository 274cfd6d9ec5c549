"""Whole programs on the host twin: agreement with the reference executor, and with itself in every order of threads."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastar.sampling import draws
from fastar.sampling.cuda import Cuda, Run
from fastar.sampling.draws import Options
from fastar.sampling.program import Program
from fastar.sampling.reference import Reference
from fastar.sampling.request import Request, make
from tests.sampling.consumers import wavenet
from tests.sampling.consumers_more import CONSUMERS, transformer
from tests.sampling.test_cpu_programs import LARGE, _assert_agrees, _forced, _request

# A schedule, with more of its choices where it has some. Shared memory of None: room for half of a row's numbers.
PLANS: dict[str, dict[str, Any]] = {
    "row": {"schedule": "row"},
    "row of four": {"schedule": "row", "rows": 64},
    "row in global memory": {"schedule": "row", "rows": 40, "shared_bytes": None},
    "cluster": {"schedule": "cluster", "blocks": 4},
    "cluster of four rows": {"schedule": "cluster", "blocks": 2, "rows": 32},
    "cluster in global memory": {"schedule": "cluster", "blocks": 2, "shared_bytes": None},
    "grid": {"schedule": "grid", "blocks": 2},
    "grid of eight rows": {"schedule": "grid", "blocks": 3, "rows": 7},
}
PLAN = pytest.mark.parametrize("plan", PLANS)


def _executor(twin: Any, program: Program, **options: Any) -> Cuda:
    executor = Cuda(program, library=twin, **{k: v for k, v in options.items() if k != "shared_bytes" or v is not None})
    if "shared_bytes" in options:
        plan = executor.schedule
        tiles = executor.packed.resident_bytes
        half = plan.shared_bytes - tiles - 4 * plan.rows_per_team * (executor.packed.fast // 2)
        executor = Cuda(program, library=twin, **{**options, "shared_bytes": half})
        assert executor.packed.slow > 0
    return executor


def _run(twin: Any, program: Program, request: Request, seed: int = 1, **options: Any) -> Run:
    twin.configure(seed)
    run = _executor(twin, program, **options).start(request)
    run.advance()
    return run


@PLAN
@pytest.mark.parametrize("name", CONSUMERS)
def test_a_free_run_agrees_with_the_reference_on_the_same_prefix(twin: Any, name: str, plan: str) -> None:
    program = CONSUMERS[name][0]().program
    request = _request(name, program, 5)
    first = _run(twin, program, request, 1, **PLANS[plan])
    _assert_agrees(program, request, first, Options())
    again = _run(twin, program, request, 2, **PLANS[plan])
    assert torch.equal(again.values, first.values)
    assert torch.equal(again.log_prob, first.log_prob)


@pytest.mark.exhaustive
@PLAN
@pytest.mark.parametrize("name", [*CONSUMERS, "flow"])
def test_a_hundred_orders_of_threads_give_the_same(twin: Any, name: str, plan: str) -> None:
    program = LARGE["flow"]() if name == "flow" else CONSUMERS[name][0]().program
    request = _request(name, program)
    first = _run(twin, program, request, 0, **PLANS[plan])
    for seed in range(1, 100):
        again = _run(twin, program, request, seed, **PLANS[plan])
        assert torch.equal(again.values, first.values), f"seed {seed}"
        assert torch.equal(again.log_prob, first.log_prob), f"seed {seed}"


@pytest.mark.parametrize("plan", ["row of four", "cluster of four rows", "grid"])
@pytest.mark.parametrize("name", ["rnade", "wavenet_narrow", "made", "transformer", "lstm"])
def test_larger_programs_agree_with_the_reference(twin: Any, name: str, plan: str) -> None:
    program = LARGE[name]()
    request = _request(name, program, 3)
    _assert_agrees(program, request, _run(twin, program, request, **PLANS[plan]), Options())


@pytest.mark.parametrize("name", ["wavenet_narrow", "transformer", "rnade"])
@pytest.mark.parametrize(("precision", "bar"), [("bfloat16", 0.01), ("float16", 0.01), ("int8", 0.03)])
def test_narrow_weights_keep_the_log_probability(twin: Any, name: str, precision: str, bar: float) -> None:
    # Untrained weights of this size make sharper laws than a trained model's: half of it, as training leaves them.
    program = LARGE[name]()
    program = program.with_weights({k: w / 2 if w.is_floating_point() else w for k, w in program.weights.items()})
    request = _request(name, program, 3)
    run = _run(twin, program, request, precision=precision)
    _, exact = _forced(program, request, run.values, torch.float64)
    assert float((run.log_prob - exact).abs().mean()) / request.length <= bar
    assert not torch.equal(run.log_prob, exact)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["wavenet_narrow", "transformer", "pixelcnn", "flow"])
def test_bit_for_bit_whatever_the_split(twin: Any, name: str, precision: str) -> None:
    program, n = LARGE[name](), 5
    whole = _run(twin, program, _request(name, program, n), precision=precision, rows=64)
    alone = Cuda(program, precision, rows=1, library=twin)
    parts = [alone.start(_request(name, program, 1, row_offset=row)) for row in range(n)]
    for part in parts:
        while not part.finished:
            part.advance(3)
    assert torch.equal(torch.cat([part.values for part in parts]), whole.values)
    assert torch.equal(torch.cat([part.log_prob for part in parts]), whole.log_prob)


@pytest.mark.parametrize("name", ["wavenet", "gated_pixelcnn", "transformer", "made", "lstm"])
def test_a_paused_run_continues_elsewhere(twin: Any, name: str) -> None:
    program = CONSUMERS[name][0]().program
    request = _request(name, program, 3)
    whole = _run(twin, program, request)
    paused = Cuda(program, library=twin).start(request)
    assert paused.advance(3) == 3
    for executor in (_executor(twin, program, rows=64, shared_bytes=None), Reference(program)):
        resumed = executor.resume(request, paused.state_dict())
        resumed.advance()
        assert torch.equal(resumed.values, whole.values)
    back = Reference(program).start(request)
    back.advance(2)
    resumed = Cuda(program, library=twin).resume(request, back.state_dict())
    resumed.advance()
    assert torch.equal(resumed.values, whole.values)


OPTIONS = {
    "cold": Options(temperature=0.6),
    "top_k": Options(top_k=3),
    "top_p": Options(top_p=0.5),
    "all": Options(temperature=1.3, top_k=20, top_p=0.7),
    "greedy": Options(greedy=True),
}


@pytest.mark.parametrize("choice", OPTIONS)
@pytest.mark.parametrize("name", ["wavenet", "nade", "large vocabulary"])
def test_options_of_a_choice(twin: Any, name: str, choice: str) -> None:
    program = wavenet(A=1500).program if name == "large vocabulary" else LARGE[name]()
    options = OPTIONS[choice]
    request = make(program, 3, seed=9, length=None if program.positions else 4, options=options)
    run, reference = _run(twin, program, request), Reference(program).start(request)
    reference.advance()
    assert torch.equal(run.values, reference.values)
    torch.testing.assert_close(run.log_prob, reference.log_prob, rtol=1e-5, atol=1e-4)


def test_ties_go_to_the_lower_index(twin: Any) -> None:
    program = wavenet(A=40).program
    flat = {k: torch.zeros_like(w) if k.startswith("head") else w for k, w in program.weights.items()}
    program = program.with_weights(flat)
    for options in (Options(top_k=7), Options(top_p=0.21), Options(greedy=True)):
        request = make(program, 4, seed=2, length=6, options=options)
        run, reference = _run(twin, program, request), Reference(program).start(request)
        reference.advance()
        assert torch.equal(run.values, reference.values)


def test_given_support_and_uniforms(twin: Any) -> None:
    program = LARGE["wavenet"]()
    T, n = 24, 3
    given = torch.full((n, T, 1), -1)
    given[:, ::3] = torch.randint(100, (n, T // 3, 1))
    support = torch.zeros(T, 100, dtype=torch.bool)
    support[:, 10:20] = True
    u = torch.rand(n, T, 1, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
    request = make(program, n, seed=0, given=given, support=support, uniforms=u)
    run, reference = _run(twin, program, request), Reference(program).start(request)
    reference.advance()
    assert torch.equal(run.values, reference.values)
    torch.testing.assert_close(run.log_prob, reference.log_prob, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(run.log_weight, reference.log_weight, rtol=1e-5, atol=1e-4)


def test_continuous_support_and_discretised_levels(twin: Any) -> None:
    program = LARGE["rnade"]()
    request = make(program, 3, seed=4, support=(-0.3, 0.4))
    run, reference = _run(twin, program, request), Reference(program).start(request)
    reference.advance()
    torch.testing.assert_close(run.values, reference.values, rtol=1e-5, atol=1e-5)
    program = LARGE["colours"]()
    request = make(program, 4, seed=4, support=(1, 2))
    run, reference = _run(twin, program, request, rows=64), Reference(program).start(request)
    reference.advance()
    assert torch.equal(run.values, reference.values)


def test_rows_end_at_the_stop_symbol_and_at_their_lengths(twin: Any) -> None:
    program = transformer(A=5, N=16).program
    request = make(program, 6, seed=11, length=[16, 3, 16, 16, 1, 16], stop=1)
    reference = Reference(program).start(request)
    reference.advance()
    for rows in (1, 64):
        run = _run(twin, program, request, rows=rows)
        assert torch.equal(run.lengths, reference.lengths)
        assert torch.equal(run.values, reference.values)
        assert run.finished
        torch.testing.assert_close(run.log_prob, reference.log_prob, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("schedule", ["row", "grid"])
def test_what_is_not_a_number_names_position_and_instruction(twin: Any, schedule: str) -> None:
    program = LARGE["transformer"]()
    weights = dict(program.weights)
    weights["fc"] = torch.full_like(weights["fc"], 3e38)
    place = next(at for at, step in enumerate(program.code) if getattr(step, "weight", None) == "fc")
    run = Cuda(program.with_weights(weights), library=twin, schedule=schedule, rows=2).start(_request("t", program, 2))
    with pytest.raises(draws.SamplingError, match=rf"position 0, code\[{place}\] linear: row 0: the result is not"):
        run.advance()


def test_a_value_that_has_to_be_given_is_asked_for(twin: Any) -> None:
    program = CONSUMERS["transformer_given"][0]().program
    request = _request("transformer_given", program, 2)
    assert request.given is not None
    request.given[1, 0] = float("nan")
    with pytest.raises(draws.SamplingError, match=r"position 0, .*row 1: the value is not modelled"):
        _run(twin, program, request)


def test_refusals_name_the_argument(twin: Any) -> None:
    program = LARGE["nade"]()
    with pytest.raises(ValueError, match="precision: expected one of float32, bfloat16, float16, int8, got 'int4'"):
        Cuda(program, "int4", library=twin)
    with pytest.raises(ValueError, match=r"schedule: expected one of auto, row.*got 'column'"):
        Cuda(program, schedule="column", library=twin)
    with pytest.raises(ValueError, match="rows: expected a positive integer, got 0"):
        Cuda(program, rows=0, library=twin)
    with pytest.raises(RuntimeError, match=r"nade: row: a block needs \d+ bytes of shared memory and has 100"):
        Cuda(program, library=twin, shared_bytes=100)
    state = Cuda(program, library=twin).start(_request("nade", program)).state_dict()
    other = LARGE["wavenet"]()
    with pytest.raises(ValueError, match="recorded by another program"):
        Cuda(other, library=twin).resume(_request("wavenet", other), state)
