"""The reference executor over whole programs, against naive full passes in torch."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from fastar.sampling import draws
from fastar.sampling.draws import Options
from fastar.sampling.program import Program
from fastar.sampling.reference import Reference, Run
from fastar.sampling.request import Request, make
from tests.budget import assert_within_budget
from tests.sampling.agreement import assert_draws_agree
from tests.sampling.consumers import Consumer, nade, wavenet
from tests.sampling.consumers_more import CONSUMERS, colours, flow, gated_pixelcnn, made, pixelcnn, transformer

EVERY = pytest.mark.parametrize("name", CONSUMERS)


def _request(name: str, program: Program, n: int = 7, seed: int = 3, **options: object) -> Request:
    length = CONSUMERS[name][1]
    if name == "transformer_given" and "given" not in options:
        given = torch.full((n, length, 1), -1)
        given[:, 0] = 2
        options["given"] = given
    return make(program, n, seed=seed, length=length, **options)  # type: ignore[arg-type]


def _run(program: Program, request: Request, dtype: torch.dtype = torch.float32) -> Run:
    run = Reference(program, dtype).start(request, trace=True)
    run.advance()
    return run


def _params(run: Run) -> Tensor:
    assert run.trace is not None
    return torch.stack([one.params for one in run.trace], 1)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_free_run_draws_from_the_law_of_the_full_pass(name: str, dtype: torch.dtype) -> None:
    consumer = CONSUMERS[name][0]()
    run = _run(consumer.program, _request(name, consumer.program), dtype)
    assert run.trace is not None
    skipped = run.values.shape[1] - len(run.trace)
    exact = consumer.params(run.values, torch.float64)[:, skipped:]
    same = consumer.params(run.values, dtype)[:, skipped:]
    assert_within_budget(_params(run), same, exact, what="head parameters")
    integer = consumer.program.value.dtype == "int"
    for k, one in enumerate(run.trace):
        assert_draws_agree(consumer.head, exact[:, k], same[:, k], one.u, one.value, dtype, integer, Options())


@EVERY
def test_teacher_forced_values_give_the_full_pass_and_its_log_prob(name: str) -> None:
    consumer = CONSUMERS[name][0]()
    free = _run(consumer.program, _request(name, consumer.program, seed=11), torch.float64)
    shuffled = free.values[torch.tensor([3, 1, 4, 0, 6, 5, 2])]
    given = shuffled.long() if consumer.program.value.dtype == "int" else shuffled
    run = _run(consumer.program, _request(name, consumer.program, given=given), torch.float64)
    assert torch.equal(run.values, shuffled)
    assert run.trace is not None
    exact = consumer.params(shuffled, torch.float64)
    integer = consumer.program.value.dtype == "int"
    expected = sum(draws.log_prob(consumer.head, exact[:, t.position], t.value, integer) for t in run.trace)
    torch.testing.assert_close(run.log_prob, expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(run.log_weight, run.log_prob)


def _enumerate(consumer: Consumer, T: int) -> tuple[Tensor, Tensor]:
    levels, V = consumer.program.value.levels or 0, consumer.program.value.channels
    everything = torch.tensor(list(itertools.product(range(levels), repeat=T * V)), dtype=torch.float64).view(-1, T, V)
    exact = consumer.params(everything, torch.float64)
    log_prob = torch.stack([draws.log_prob(consumer.head, exact[:, t], everything[:, t]) for t in range(T)], 1).sum(1)
    return everything, log_prob


def _chi_squared(consumer: Consumer, T: int, n: int, seed: int) -> None:
    everything, log_prob = _enumerate(consumer, T)
    p = log_prob.exp()
    torch.testing.assert_close(p.sum(), torch.ones((), dtype=torch.float64), rtol=0, atol=1e-9)
    run = Reference(consumer.program).start(make(consumer.program, n, seed=seed, length=T))
    run.advance()
    base = (consumer.program.value.levels or 0) ** torch.arange(everything[0].numel() - 1, -1, -1, dtype=torch.float64)
    counts = torch.bincount((run.values.flatten(1) @ base).long(), minlength=len(p)).double()
    # Outcomes too rare for the test's normal approximation are put together.
    rare = p * n < 8
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([p[~rare], p[rare].sum()[None]]) * n
    kept = expected > 0
    statistic = float(((observed - expected)[kept] ** 2 / expected[kept]).sum())
    freedom = int(kept.sum()) - 1
    # Five standard deviations of a chi-squared variable: 3e-7 to fail by chance, and the seed is fixed.
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5, (
        f"chi-squared {statistic:.1f} at {freedom} degrees of freedom"
    )


@pytest.mark.parametrize(
    ("consumer", "T"),
    [
        (lambda: nade(D=5), 5),
        (lambda: wavenet(A=3), 4),
        (lambda: made(D=4), 4),
        (lambda: pixelcnn(H=2, W=2, C=1, K=3), 4),
        (lambda: gated_pixelcnn(H=2, W=3), 6),
        (lambda: transformer(A=3), 4),
        (lambda: colours(levels=3), 2),
    ],
)
def test_frequencies_follow_log_prob(consumer: object, T: int) -> None:
    _chi_squared(consumer(), T, 8_000, seed=5)  # type: ignore[operator]


@EVERY
def test_rows_do_not_depend_on_the_batch(name: str) -> None:
    program = CONSUMERS[name][0]().program
    whole = _run(program, _request(name, program, n=9))
    for start, n in ((0, 1), (1, 3), (4, 5), (8, 1)):
        part = _run(program, _request(name, program, n=n, row_offset=start))
        rows = slice(start, start + n)
        assert torch.equal(part.values, whole.values[rows])
        assert torch.equal(_params(part), _params(whole)[rows])
        assert torch.equal(part.log_prob, whole.log_prob[rows])


@EVERY
def test_chunks_and_resuming_change_nothing(name: str) -> None:
    program = CONSUMERS[name][0]().program
    request = _request(name, program)
    whole = _run(program, request)
    executor = Reference(program)
    run = executor.start(request)
    advanced = []
    while not run.finished:
        advanced.append(run.advance(2))
        run = executor.resume(request, run.state_dict())
    assert sum(advanced) == request.length
    assert max(advanced) == 2
    assert torch.equal(run.values, whole.values)
    assert torch.equal(run.log_prob, whole.log_prob)


def test_a_seed_per_row_equals_runs_of_their_own() -> None:
    program = nade().program
    both = _run(program, make(program, 2, seed=[5, 2**63 + 1]))
    for row, seed in enumerate([5, 2**63 + 1]):
        alone = _run(program, make(program, 1, seed=seed, row_offset=row))
        assert torch.equal(alone.values[0], both.values[row])


def test_uniforms_replace_the_random_numbers() -> None:
    program = nade().program
    drawn = _run(program, make(program, 4, seed=9))
    assert drawn.trace is not None
    u = torch.stack([one.u for one in drawn.trace], 1)
    assert torch.equal(_run(program, make(program, 4, seed=1, uniforms=u)).values, drawn.values)


def test_stop_ends_a_row_and_pads_it() -> None:
    program = wavenet(A=3).program
    free = _run(program, make(program, 16, seed=2, length=20))
    run = _run(program, make(program, 16, seed=2, length=20, stop=1))
    for row in range(16):
        hits = torch.nonzero(free.values[row, :, 0] == 1)
        length = int(hits[0]) + 1 if len(hits) else 20
        assert int(run.lengths[row]) == length
        assert torch.equal(run.values[row, :length], free.values[row, :length])
        assert not bool(run.values[row, length:].any())


def test_a_length_per_row() -> None:
    program = wavenet().program
    whole = _run(program, make(program, 3, seed=4, length=9))
    ragged = _run(program, make(program, 3, seed=4, length=[2, 9, 5]))
    for row, length in enumerate([2, 9, 5]):
        assert torch.equal(ragged.values[row, :length], whole.values[row, :length])
        assert not bool(ragged.values[row, length:].any())


def test_known_values_after_unknown_ones_are_clamped_and_weighed() -> None:
    # Importance sampling with the weights recovers the exact conditional mean of the first dimension.
    consumer = nade(D=4)
    everything, log_prob = _enumerate(consumer, 4)
    matches = everything[:, 3, 0] == 1
    exact = (log_prob.exp() * matches * everything[:, 0, 0]).sum() / (log_prob.exp() * matches).sum()
    n = 20_000
    given = torch.full((n, 4, 1), -1)
    given[:, 3] = 1
    run = _run(consumer.program, make(consumer.program, n, seed=6, given=given))
    weight = run.log_weight.exp()
    estimate = (weight * run.values[:, 0, 0]).sum() / weight.sum()
    assert abs(float(estimate - exact)) < 0.02


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_flow_inverts_and_accumulates_its_density(layers: int) -> None:
    program, w = flow(D=4, layers=layers)
    run = _run(program, make(program, 5, seed=1), torch.float64)
    x, log_det = run.values[:, :, 0], torch.zeros(5, dtype=torch.float64)
    for k in reversed(range(layers)):
        a, m = (x @ w[f"{part}{k}"].double().T for part in "am")
        x, log_det = (x - m) * torch.exp(-a), log_det - a.sum(1)
        x = x.flip(1) if k else x
    expected = torch.distributions.Normal(0, 1).log_prob(x).sum(1) + log_det
    torch.testing.assert_close(run.log_prob, expected, rtol=1e-9, atol=1e-9)


def test_greedy_and_support_confine_the_draws() -> None:
    consumer = made(D=5, K=4)
    greedy = _run(consumer.program, make(consumer.program, 3, seed=0, options=Options(greedy=True)))
    best = consumer.params(greedy.values, torch.float64).argmax(2)
    assert torch.equal(greedy.values[..., 0].long(), best)
    low, high = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 1, 3, 3, 0])
    confined = _run(consumer.program, make(consumer.program, 50, seed=0, support=(low, high))).values[..., 0]
    assert bool(((confined >= low) & (confined <= high)).all())


def test_nan_parameters_end_in_an_error_that_names_the_place() -> None:
    program = wavenet().program
    given = torch.full((1, 4, 1), -1)
    executor = Reference(program)
    executor.weights["head.b"] = executor.weights["head.b"] * float("nan")
    with pytest.raises(draws.SamplingError, match=r"position 0, code\[\d+\] draw: row 0: .*NaN"):
        executor.start(make(program, 1, seed=0, length=4, given=given)).advance()


def test_a_record_of_another_program_is_refused() -> None:
    one, other = nade(), nade(D=7)
    state = _run(one.program, make(one.program, 2, seed=0)).state_dict()
    with pytest.raises(ValueError, match="another program"):
        Reference(other.program).resume(make(other.program, 2, seed=0), state)
    with pytest.raises(ValueError, match="values"):
        Reference(one.program).resume(make(one.program, 3, seed=0), state)
