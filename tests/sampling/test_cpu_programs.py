"""The cpu executor over whole programs: agreement with the reference executor, and with itself however it is split."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastar import native
from fastar.sampling import draws
from fastar.sampling.cpu import Cpu, Run
from fastar.sampling.draws import Options
from fastar.sampling.instructions import Draw, Head
from fastar.sampling.program import Program
from fastar.sampling.reference import Reference
from fastar.sampling.request import Request, make
from tests.budget import assert_within_budget
from tests.sampling.agreement import assert_draws_agree
from tests.sampling.consumers import nade, rnade, wavenet
from tests.sampling.consumers_more import (
    CONSUMERS,
    colours,
    flow,
    gated_pixelcnn,
    made,
    pixelcnn,
    recurrent,
    transformer,
)

pytestmark = pytest.mark.skipif(native.why_missing() is not None, reason=str(native.why_missing()))

EVERY = pytest.mark.parametrize("name", CONSUMERS)

# Sizes at which matrices come in tiles, whole and broken, and taps in parts.
LARGE: dict[str, Callable[[], Program]] = {
    "nade": lambda: nade(12, 83).program,
    "rnade": lambda: rnade(5, 70, 4).program,
    "wavenet": lambda: wavenet(T=24, A=100, R=64, S=80, dilations=(1, 2, 4, 3)).program,
    "wavenet_narrow": lambda: wavenet(T=24, A=70, R=20, S=90, dilations=(1, 2, 4)).program,
    "made": lambda: made(D=9, H=70).program,
    "pixelcnn": lambda: pixelcnn(F=40).program,
    "gated_pixelcnn": lambda: gated_pixelcnn(F=64).program,
    "transformer": lambda: transformer(A=90, D=128, heads=4).program,
    **{kind: (lambda kind=kind: recurrent(kind, H=96).program) for kind in ("tanh", "lstm", "gru")},
    "colours": lambda: colours().program,
    "flow": lambda: flow()[0],
}


def _request(name: str, program: Program, n: int = 7, seed: int = 3, **options: object) -> Request:
    length = None if program.positions is not None else 8
    if name == "transformer_given" and "given" not in options:
        given = torch.full((n, length or 0, 1), -1)
        given[:, 0] = 2
        options["given"] = given
    return make(program, n, seed=seed, length=length, **options)  # type: ignore[arg-type]


def _run(program: Program, request: Request, **options: object) -> Run:
    run = Cpu(program, **options).start(request)  # type: ignore[arg-type]
    run.advance()
    return run


def _forced(program: Program, request: Request, values: Tensor, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    # The reference's parameters and log-probabilities on the prefix that another executor drew.
    forced = dataclasses.replace(request, given=values)
    run = Reference(program, dtype).start(forced, trace=True)
    run.advance()
    assert run.trace is not None
    return [one.params for one in run.trace], run.log_prob


def _assert_agrees(program: Program, request: Request, run: Run, options: Options) -> None:
    heads = [one.head for one in program.code if isinstance(one, Draw) and one.out is None and one.head.params]
    exact, log_prob = _forced(program, request, run.values, torch.float64)
    same, same_log_prob = _forced(program, request, run.values, torch.float32)
    reference = Reference(program, torch.float32).start(request)
    skipped = request.length - len(exact)
    for k, (params, near) in enumerate(zip(exact, same, strict=True)):
        position = k + skipped
        u = reference._uniforms(heads[0], position)
        integer = program.value.dtype == "int"
        assert_draws_agree(heads[0], params, near.double(), u, run.values[:, position], torch.float32, integer, options)
    scale = torch.full_like(log_prob, float(max(1, len(exact))) * 4)
    assert_within_budget(run.log_prob.float(), same_log_prob.float(), log_prob, scale=scale, what="log_prob")


@EVERY
@pytest.mark.parametrize("threads", [1, 2])
def test_free_run_agrees_with_the_reference_on_the_same_prefix(name: str, threads: int) -> None:
    program = CONSUMERS[name][0]().program
    request = _request(name, program)
    _assert_agrees(program, request, _run(program, request, threads=threads, sharing="steps"), Options())


@pytest.mark.parametrize("name", [one for one in LARGE if one != "flow"])
@pytest.mark.parametrize("level", native.core().levels_usable() if native.why_missing() is None else [])
def test_every_vector_level_agrees_with_the_reference(name: str, level: str) -> None:
    program = LARGE[name]()
    request = _request(name, program, 5)
    before = native.core().level()
    native.core().select_level(level)
    try:
        run = _run(program, request)
    finally:
        native.core().select_level(before)
    _assert_agrees(program, request, run, Options())


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_bit_for_bit_whatever_the_split(name: str, precision: str) -> None:
    program = LARGE[name]()
    n = 7
    whole = _run(program, _request(name, program, n), precision=precision, threads=1)
    assert float(whole.values.double().std()) > 0
    for threads, rows, sharing in ((2, 7, "rows"), (2, 7, "steps"), (2, 1, "steps"), (3, 2, "auto"), (5, 7, "rows")):
        run = _run(
            program, _request(name, program, n), precision=precision, threads=threads, rows=rows, sharing=sharing
        )
        assert torch.equal(run.values, whole.values)
        assert torch.equal(run.log_prob, whole.log_prob)
    executor = Cpu(program, precision, threads=2)
    parts = [executor.start(_request(name, program, 1, row_offset=row)) for row in range(n)]
    for part in parts:
        while not part.finished:
            part.advance(3)
    assert torch.equal(torch.cat([part.values for part in parts]), whole.values)
    assert torch.equal(torch.cat([part.log_prob for part in parts]), whole.log_prob)


@pytest.mark.parametrize("name", LARGE)
def test_a_paused_run_continues_elsewhere(name: str) -> None:
    program = LARGE[name]()
    request = _request(name, program, 3)
    whole = _run(program, request, threads=1)
    first = Cpu(program, threads=2, sharing="steps").start(request)
    first.advance(2)
    second = Cpu(program, threads=1).resume(request, first.state_dict())
    second.advance()
    assert torch.equal(second.values, whole.values)
    assert torch.equal(second.log_prob, whole.log_prob)
    # A record of the reference executor serves as well, from the same place in the program.
    reference = Reference(program).start(request)
    reference.advance(2)
    third = Cpu(program).resume(request, reference.state_dict())
    third.advance()
    assert third.done == whole.done


@pytest.mark.parametrize(("precision", "bar"), [("bfloat16", 0.01), ("int8", 0.03)])
def test_narrow_weights_keep_the_law(precision: str, bar: float) -> None:
    # Random weights stand in for a trained model's: as wide as its activations, on the values that float32 drew.
    program = wavenet(T=64, A=64, R=64, S=128, dilations=(1, 2, 4, 8)).program
    request = _request("wavenet", program, 8)
    exact = _run(program, request)
    forced = dataclasses.replace(request, given=exact.values)
    narrow = _run(program, forced, precision=precision)
    assert torch.equal(narrow.values, exact.values)
    difference = (narrow.log_prob - exact.log_prob).abs().mean() / request.length
    assert 0 < float(difference) <= bar


OPTIONS = {
    "temperature": Options(temperature=0.7),
    "greedy": Options(greedy=True),
    "top_k": Options(top_k=3),
    "top_p": Options(top_p=0.6),
    "all": Options(temperature=1.4, top_k=20, top_p=0.8),
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", ["nade", "wavenet", "rnade", "colours"])
def test_options_of_a_draw(name: str, option: str) -> None:
    options = OPTIONS[option]
    program = LARGE[name]()
    head: Head = next(one.head for one in program.code if isinstance(one, Draw))
    if head.kind not in draws.DISCRETE and option in ("top_k", "top_p", "all"):
        with pytest.raises(ValueError, match=r"top_[kp]"):
            options.check(head)
        return
    request = _request(name, program, 6, options=options)
    _assert_agrees(program, request, _run(program, request), options)


def test_given_values_support_and_uniforms() -> None:
    program = LARGE["wavenet"]()
    T, A = program.positions or 0, 100
    given = torch.full((4, T, 1), -1)
    given[:, ::3] = torch.randint(A, (4, len(range(0, T, 3)), 1), generator=torch.Generator().manual_seed(0))
    support = torch.zeros(T, A, dtype=torch.bool)
    support[:, 10:20] = True
    u = torch.rand(4, T, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).clamp(1e-6, 1 - 1e-6)
    request = make(program, 4, seed=0, given=given, support=support, uniforms=u)
    run, reference = _run(program, request), Reference(program).start(request)
    reference.advance()
    assert torch.equal(run.values[:, ::3], given[:, ::3].double())
    free = torch.tensor([t for t in range(T) if t % 3])
    assert bool(((run.values[:, free] >= 10) & (run.values[:, free] < 20)).all())
    assert torch.equal(run.values, reference.values)
    torch.testing.assert_close(run.log_prob, reference.log_prob, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(run.log_weight, reference.log_weight, rtol=1e-5, atol=1e-4)


def test_continuous_support() -> None:
    program = LARGE["rnade"]()
    request = make(program, 5, seed=4, support=(-0.3, 0.4))
    run, reference = _run(program, request), Reference(program).start(request)
    reference.advance()
    assert bool(((run.values >= -0.3) & (run.values <= 0.4)).all())
    torch.testing.assert_close(run.values, reference.values, rtol=1e-5, atol=1e-5)


def test_rows_end_at_the_stop_symbol_and_at_their_lengths() -> None:
    program = transformer(A=5, N=16).program
    request = make(program, 6, seed=11, length=[16, 3, 16, 16, 1, 16], stop=1)
    run, reference = _run(program, request, threads=2, rows=6), Reference(program).start(request)
    reference.advance()
    assert torch.equal(run.lengths, reference.lengths)
    assert torch.equal(run.values, reference.values)
    assert int(run.lengths[4]) == 1
    torch.testing.assert_close(run.log_prob, reference.log_prob, rtol=1e-5, atol=1e-5)


def test_what_is_not_a_number_names_position_and_instruction() -> None:
    program = LARGE["transformer"]()
    weights = dict(program.weights)
    name = next(one for one in weights if weights[one].dim() == 2 and weights[one].shape[0] >= 64)
    weights[name] = torch.full_like(weights[name], 3e38)
    for threads in (1, 2):
        run = Cpu(program.with_weights(weights), threads=threads, sharing="steps").start(_request("t", program, 2))
        with pytest.raises(draws.SamplingError, match=r"position \d+, code\[\d+\] .*row 0"):
            run.advance()


def test_refusals_name_the_argument() -> None:
    program = LARGE["nade"]()
    with pytest.raises(ValueError, match="precision: expected one of float32, bfloat16, int8, got 'int4'"):
        Cpu(program, "int4")
    with pytest.raises(ValueError, match="threads: expected a positive integer, got 0"):
        Cpu(program, threads=0)
    with pytest.raises(ValueError, match="sharing"):
        Cpu(program, sharing="columns")
    state = Cpu(program).start(_request("nade", program)).state_dict()
    other = LARGE["wavenet"]()
    with pytest.raises(ValueError, match="recorded by another program"):
        Cpu(other).resume(_request("wavenet", other), state)
