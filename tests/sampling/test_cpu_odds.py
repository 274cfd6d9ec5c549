"""Sigmoid states that the cpu executor keeps as odds: as exact as sums, over any range, and however a run is split."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from fastar import native
from fastar.sampling.cpu import Cpu, Run
from fastar.sampling.draws import Options
from fastar.sampling.instructions import Head
from fastar.sampling.program import Program
from fastar.sampling.reference import Reference
from fastar.sampling.request import Request, make
from tests.budget import assert_within_budget
from tests.sampling.agreement import assert_draws_agree
from tests.sampling.consumers import nade

pytestmark = pytest.mark.skipif(native.why_missing() is not None, reason=str(native.why_missing()))

D, H = 150, 70


def _weights(kind: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    w = {"c": normal(H), "W": 0.2 * normal(D, H), "V": 0.3 * normal(D, 1, H), "b": normal(D, 1)}
    if kind == "strong":
        w["W"] = 4 * normal(D, H)
    elif kind == "far":
        # Beyond the range of a float's exponent at first, and back within it later.
        w["c"] = torch.linspace(-250, 250, H)
        w["W"] = -torch.sign(w["c"]) * (3 + normal(D, H).abs())
    elif kind == "huge":
        w["W"] = 40 * normal(D, H)
    return w


def _program(kind: str) -> Program:
    return nade(D, H).program.with_weights(_weights(kind))


def _run(program: Program, request: Request, **options: object) -> Run:
    run = Cpu(program, **options).start(request)  # type: ignore[arg-type]
    run.advance()
    return run


@pytest.mark.parametrize("kind", ["usual", "strong", "far", "huge"])
def test_logits_are_as_exact_as_sums(kind: str) -> None:
    program = _program(kind)
    request = make(program, 5, seed=2)
    run = _run(program, request)
    assert (run.plan.own_floats > 0) == (kind != "huge")
    forced = dataclasses.replace(request, given=run.values)
    traces, log_probs = [], []
    for dtype in (torch.float64, torch.float32):
        reference = Reference(program, dtype).start(forced, trace=True)
        reference.advance()
        assert reference.trace is not None
        traces.append([one.params for one in reference.trace])
        log_probs.append(reference.log_prob)
    free, head = Reference(program).start(request), Head("bernoulli")
    for position, (exact, near) in enumerate(zip(*traces, strict=True)):
        u = free._uniforms(head, position)
        assert_draws_agree(
            head, exact, near.double(), u, run.values[:, position], torch.float32, integer=True, options=Options()
        )
    scale = torch.full_like(log_probs[0], 4.0 * D)
    assert_within_budget(run.log_prob.float(), log_probs[1].float(), log_probs[0], scale=scale, what="log_prob")


@pytest.mark.parametrize("kind", ["usual", "far"])
def test_values_given_or_drawn_have_one_law(kind: str) -> None:
    program = _program(kind)
    drawn = _run(program, make(program, 4, seed=9))
    given = drawn.values.long()
    given[1::2, ::3] = -1
    forced = _run(program, make(program, 4, seed=9, given=given))
    assert torch.equal(forced.values, drawn.values)
    torch.testing.assert_close(forced.log_prob, drawn.log_prob, rtol=1e-6, atol=1e-5)


def test_options_and_lengths() -> None:
    program = _program("usual")
    u = torch.rand(6, D, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).clamp(1e-6, 1 - 1e-6)
    for options in (
        {"options": Options(temperature=0.6)},
        {"options": Options(greedy=True)},
        {"uniforms": u, "length": [1, 64, 65, 130, D, D]},
        {"position_offset": 11, "row_offset": 1 << 40},
    ):
        request = make(program, 6, seed=3, **options)  # type: ignore[arg-type]
        run, reference = _run(program, request, threads=2, rows=6), Reference(program).start(request)
        reference.advance()
        assert torch.equal(run.values, reference.values)
        torch.testing.assert_close(run.log_prob, reference.log_prob, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["usual", "far"])
def test_bit_for_bit_when_paused_anywhere(kind: str) -> None:
    program = _program(kind)
    request = make(program, 11, seed=4)
    whole = _run(program, request, threads=1)
    run = Cpu(program, threads=2, rows=11, sharing="steps").start(request)
    for positions in (1, 36, 64, 2):
        run.advance(positions)
        run = Cpu(program, threads=2, rows=11).resume(request, run.state_dict())
    run.advance()
    assert torch.equal(run.values, whole.values)
    assert torch.equal(run.log_prob, whole.log_prob)


def test_the_state_is_told_as_a_sum() -> None:
    program = _program("far")
    request = make(program, 3, seed=4)
    run = Cpu(program).start(request)
    run.advance(100)
    reference = Reference(program, torch.float64).start(dataclasses.replace(request, given=run.values))
    reference.advance(100)
    a, b = run.state_dict()["buffers"]["a"], reference.state_dict()["buffers"]["a"]
    torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-4)
    record = run.state_dict()
    record["own"] = record["own"][:1]
    with pytest.raises(ValueError, match="own is"):
        Cpu(program).resume(request, record)


def test_not_a_number_names_its_position() -> None:
    program = _program("usual")
    weights = dict(program.weights)
    weights["b"] = weights["b"].clone()
    weights["b"][77] = float("inf")
    weights["V"] = weights["V"].clone()
    weights["V"][77] = -3e38
    run = Cpu(program.with_weights(weights)).start(make(program, 3, seed=1))
    with pytest.raises(RuntimeError, match="position 77, code"):
        run.advance()
