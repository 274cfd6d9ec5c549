"""MADE in its forms: depths, orders, degrees, layouts, ensembles, conditions, and masks from a graph."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_properties import (
    assert_autoregressive,
    assert_density,
    assert_frequencies,
    assert_prefix_is_conditioned,
    assert_refuses_bad_data,
    assert_round_trips,
    assert_sampler_agrees,
    assert_samples_follow,
    every_x,
    index_of,
    randomise,
)

from fastar.models import MADE
from fastar.models._masks import DEGREES
from fastar.sampling import LoweringError, Sampler, SampleResult
from fastar.sampling.cost import cost

ORDER = [2, 0, 3, 1]
MODELS: dict[str, Callable[[], MADE]] = {
    "one layer": lambda: MADE(4, 12),
    "no layer": lambda: MADE(4, []),
    "three layers, random order, direct": lambda: MADE(4, [9, 8, 7], order="random", direct=True, seed=3),
    "levels, given order, chunked": lambda: MADE(
        4, [12, 12], {"kind": "categorical", "levels": 3}, order=ORDER, layout="chunked"
    ),
    "residual": lambda: MADE(4, [10, 10, 10], residual=True, activation="tanh", dropout=0.5),
    "cyclic": lambda: MADE(4, [8, 8], degrees="cyclic", direct=True),
    "given degrees": lambda: MADE(4, [6], degrees=[[0, 1, 2, 3, 1, 2]]),
}


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> MADE:
    made = randomise(MODELS[request.param](), 2.0)
    assert isinstance(made, MADE)
    return made


def _x(model: MADE, n: int = 5) -> torch.Tensor:
    assert model.distribution.levels is not None
    return torch.randint(0, model.distribution.levels, (n, model.dim))


def test_autoregressive_in_its_order(model: MADE) -> None:
    assert_autoregressive(model, _x(model, 32), model.order.argsort())


def test_samples_follow_log_prob(model: MADE) -> None:
    assert_samples_follow(model, (4,))


def test_a_known_prefix_is_conditioned_on(model: MADE) -> None:
    assert_prefix_is_conditioned(model, (4,), model.order.argsort(), 2)


def test_round_trips(model: MADE, tmp_path: Path) -> None:
    assert_round_trips(model, _x(model), tmp_path)


def test_bad_data(model: MADE) -> None:
    assert_refuses_bad_data(model, _x(model))


@pytest.mark.parametrize("degrees", DEGREES)
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_every_rule_for_degrees_connects_all_that_it_may(degrees: str, dim: int) -> None:
    model = randomise(MADE(dim, [3 * dim, 3 * dim], degrees=degrees))
    assert_autoregressive(model, torch.randint(0, 2, (32, dim)), torch.arange(dim), dense=degrees != "random")


@pytest.mark.parametrize(
    "head", ["normal", {"kind": "gaussian", "components": 3}, {"kind": "laplace", "components": 2}]
)
def test_real_numbers(head: object) -> None:
    model = randomise(MADE(3, [16, 16], head, order=[1, 2, 0]), 0.7)  # type: ignore[arg-type]
    assert_autoregressive(model, torch.randn(4, 3), torch.tensor([2, 0, 1]))
    assert_sampler_agrees(model, seed=5)
    assert_density(randomise(MADE(2, [12], head, order=[1, 0]), 0.5), first=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"levels: real data"):
        model.nll_bits_per_dim(torch.randn(2, 3))
    bits = model.nll_bits_per_dim(torch.zeros(2, 3), levels=256, data_range=(-1.0, 1.0))
    expected = (-model.log_prob(torch.zeros(2, 3)) / 3 - math.log(2 / 256)) / math.log(2)
    torch.testing.assert_close(bits, expected)


def test_quantised_logistics() -> None:
    model = randomise(MADE(3, 16, {"kind": "logistic", "components": 2, "steps": 5}), 1.0)
    assert_samples_follow(model, (3,))


def test_steps_by_their_places_have_bits_too() -> None:
    law = {"kind": "logistic", "components": 2, "steps": 5}
    numbers, places = MADE(3, 16, law), MADE(3, 16, {**law, "integer": False})
    places.load_state_dict(numbers.state_dict())
    x = torch.randint(0, 5, (4, 3))
    torch.testing.assert_close(places.nll_bits_per_dim(x / 2 - 1), numbers.nll_bits_per_dim(x))
    with pytest.raises(ValueError, match=r"levels: MADE has 5 levels of its own"):
        places.nll_bits_per_dim(x / 2 - 1, levels=5)


@pytest.mark.parametrize("order", ["natural", "random"])
def test_an_ensemble_averages_probabilities(order: str) -> None:
    model = randomise(MADE(4, [8], order=order, num_masks=3, seed=1), 2.0)
    assert isinstance(model, MADE)
    x = every_x((4,), 2)
    each = torch.stack([model.log_prob(x, mask=k) for k in range(3)])
    assert not torch.allclose(each[0], each[1])
    torch.testing.assert_close(each.exp().sum(1), torch.ones(3))
    torch.testing.assert_close(model.log_prob(x).exp(), each.exp().mean(0))
    assert_samples_follow(model, (4,))
    with pytest.raises(LoweringError, match=r"num_masks: a mixture of 3 mask sets is no single program"):
        Sampler(model, 4)
    whole = model.sample(20, seed=4)
    assert isinstance(whole, torch.Tensor)
    parts = [model.sample(10, seed=4, row_offset=k) for k in (0, 10)]
    assert torch.equal(whole, torch.cat(parts))  # type: ignore[arg-type]
    assert {model.loss(x).item() for _ in range(30)} == {-one.mean().item() for one in each}


def test_completion_by_an_ensemble_is_corrected_by_its_weights() -> None:
    model = randomise(MADE(3, [8], order="random", num_masks=4, seed=2), 2.0)
    given = torch.tensor([-1, 1, 0]).expand(6000, 3).contiguous()
    result = model.sample(6000, seed=1, given=given, return_info=True)
    assert isinstance(result, SampleResult)
    x = every_x((3,), 2)
    p = model.log_prob(x).double().exp()
    p = torch.where((x[:, 1] == 1) & (x[:, 2] == 0), p, 0.0)
    weight = result.log_weight.exp()
    found = torch.zeros(8, dtype=torch.float64).index_add(0, index_of(result.values, 2), weight) / weight.sum()
    torch.testing.assert_close(found, p / p.sum(), rtol=0, atol=0.04)


def test_conditions() -> None:
    model = randomise(MADE(3, [12, 12], cond_dim=4, direct=True, order=[2, 1, 0]), 2.0)
    labels = torch.arange(4)
    one_hot = torch.eye(4)
    x = torch.randint(0, 2, (4, 3))
    torch.testing.assert_close(model.log_prob(x, labels), model.log_prob(x, one_hot))
    assert_autoregressive(model, x, torch.tensor([2, 1, 0]), cond=one_hot)
    assert not torch.equal(model(x[:1], labels[:1]), model(x[:1], labels[1:2]))
    assert_samples_follow(model, (3,), cond=torch.randn(1, 4))
    sampler = Sampler(model, 8)
    drawn = sampler.sample(8, cond=labels.repeat(2), seed=1, return_info=True)
    assert isinstance(drawn, SampleResult)
    torch.testing.assert_close(model.log_prob(drawn.values, labels.repeat(2)).double(), drawn.log_prob)
    ensemble = randomise(MADE(3, 9, cond_dim=4, num_masks=2), 2.0)
    assert_sampler_agrees(ensemble, 4, cond=labels, seed=1)
    for cond, message in (
        (None, r"cond: this MADE needs it"),
        (torch.zeros(3, 4), r"cond: expected shape \[4, 4\]"),
        (labels + 1, r"cond: expected classes 0..3, got 1 to 4"),
    ):
        with pytest.raises(ValueError, match=message):
            model(x, cond)
    with pytest.raises(ValueError, match=r"cond: this MADE takes none"):
        MADE(3, 4)(x, one_hot)


def _seen(model: MADE) -> torch.Tensor:
    # seen[i, j]: whether the parameters of i move with x_j, for some x.
    x = torch.randint(0, 2, (64, model.dim))
    seen = torch.zeros(model.dim, model.dim, dtype=torch.bool)
    with torch.no_grad():
        for j in range(model.dim):
            changed = x.clone()
            changed[:, j] = 1 - changed[:, j]
            seen[:, j] = (model(changed) != model(x)).any(0).any(1)
    return seen


@pytest.mark.parametrize("direct", [False, True])
def test_parents_and_nobody_else_are_seen(direct: bool) -> None:
    parents = [[], [0], [], [1, 2], [0]]
    expected = torch.zeros(5, 5, dtype=torch.bool)
    for i, row in enumerate(parents):
        expected[i, row] = True
    for form in (parents, expected, expected.tolist()):
        model = randomise(MADE(5, [16, 16], parents=form, direct=direct))
        assert isinstance(model, MADE)
        assert torch.equal(_seen(model), expected)
    assert_samples_follow(model, (5,))


def test_a_markov_graph_gives_looking_back_blankets() -> None:
    # The chain 0 - 2 - 1: in the natural order 1 sees 0 through 2, which comes later.
    model = randomise(MADE(3, [12], markov_graph=[[2], [2], [0, 1]]))
    assert isinstance(model, MADE)
    assert _seen(model).tolist() == [[False] * 3, [True, False, False], [True, True, False]]
    # In the order 0, 2, 1 the chain needs the neighbour only.
    ordered = randomise(MADE(3, [12], markov_graph=[[2], [2], [0, 1]], order=[0, 2, 1]))
    assert isinstance(ordered, MADE)
    assert _seen(ordered).tolist() == [[False] * 3, [False, False, True], [True, False, False]]


def test_a_grids_blanket_is_its_frontier() -> None:
    # In raster order a pixel of a grid sees the row's width of pixels before it, by paths through those below.
    H, W = 3, 3
    graph = torch.zeros(9, 9, dtype=torch.bool)
    for i in range(9):
        for j in range(9):
            near = abs(i // W - j // W) + abs(i % W - j % W) == 1
            graph[i, j] = near
    model = randomise(MADE(H * W, [64, 64], markov_graph=graph))
    assert isinstance(model, MADE)
    # Below the last row there is nothing to go round by.
    expected = torch.tensor(
        [[0 < i - j <= W and (i < W * (H - 1) or j == i - 1 or j < W * (H - 1)) for j in range(9)] for i in range(9)]
    )
    assert torch.equal(_seen(model), expected)


def test_structured_masks_travel(tmp_path: Path) -> None:
    model = randomise(MADE(5, [8], parents=[[], [0], [], [1, 2], [0]]))
    assert_round_trips(model, torch.randint(0, 2, (3, 5)), tmp_path)
    foreign = MADE(4, [6], order=[1, 0, 3, 2])
    masks = [torch.rand(6, 4) < 0.5, torch.zeros(4, 6, dtype=torch.bool)]
    masks[1][3] = ~(masks[0][:, 3] | masks[0][:, 2])
    foreign.set_masks([masks[0]], masks[1])
    assert_round_trips(randomise(foreign), torch.randint(0, 2, (3, 4)), tmp_path / "foreign")
    assert_samples_follow(foreign, (4,))


def test_each_weight_is_multiplied_once_per_sample() -> None:
    model = MADE(16, [64, 64], order="random")
    work = cost(model.lower())
    assert work.multiply_adds * 16 <= model.num_parameters()


@pytest.mark.parametrize(("D", "sizes", "K"), [(5, [7], 1), (4, [6, 9], 3)])
def test_parameters_by_formula(D: int, sizes: list[int], K: int) -> None:
    model = MADE(D, sizes, {"kind": "categorical", "levels": K} if K > 1 else None, degrees="cyclic")
    degrees = [list(range(1, D + 1)), *([k % (D - 1) + 1 for k in range(size)] for size in sizes)]
    count = sum(sum(b >= a for a in before for b in after) for before, after in itertools.pairwise(degrees))
    count += K * sum(b > a for a in degrees[-1] for b in range(1, D + 1)) + sum(sizes) + D * K
    assert model.num_parameters() == count


def test_parameters_without_a_distribution() -> None:
    model = randomise(MADE(4, 8, params=5))
    assert isinstance(model, MADE)
    assert model(torch.randn(2, 4)).shape == (2, 4, 5)
    for call in (lambda: model.log_prob(torch.randn(2, 4)), model.lower):
        with pytest.raises(ValueError, match=r"head: this MADE has 5 parameters per dimension and no distribution"):
            call()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MADE(4, 8, order="sorted"), r"order: expected natural, random or a permutation, got 'sorted'"),
        (lambda: MADE(4, 8, order=[0, 1, 2, 4]), r"order: expected a permutation"),
        (lambda: MADE(4, 8, "bernoulli", params=1), r"params: expected either a head or a number"),
        (lambda: MADE(4, 8, degrees="odd"), r"degrees: expected one of random"),
        (lambda: MADE(4, 8, degrees=[[1, 2]]), r"degrees: expected \[8\] of them, got \[2\]"),
        (lambda: MADE(4, 2, degrees=[[1, 4]]), r"degrees: expected 0..3, got 1 to 4"),
        (lambda: MADE(4, [8, 9], residual=True), r"residual: expected hidden layers of one size"),
        (lambda: MADE(4, 8, activation="concat_elu"), r"activation: concat_elu doubles the units"),
        (lambda: MADE(4, 8, layout="rows"), r"layout: expected one of feature, chunked"),
        (lambda: MADE(2, 8, parents=[[1], []]), r"parents: dimension 0 has the parent 1, which does not come before"),
        (lambda: MADE(2, 8, parents=[[]]), r"parents: expected an entry for each of 2 dimensions, got 1"),
        (lambda: MADE(2, 8, parents=[[], [3]]), r"parents: dimension 1 names 3, expected 0..1"),
        (lambda: MADE(2, 8, markov_graph=[[], [0]]), r"markov_graph: expected an undirected graph"),
        (lambda: MADE(2, 8, markov_graph=[[], []], parents=[[], []]), r"parents: expected either"),
        (lambda: MADE(2, 8, num_masks=2)(torch.zeros(1, 2), mask=2), r"mask: expected 0..1, got 2"),
        (lambda: MADE(2, 8).set_masks([], torch.ones(2, 8).bool()), r"masks: expected 1 for hidden layers and no"),
    ],
)
def test_bad_arguments(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_frequencies_of_the_wrong_law_are_found() -> None:
    # The chi-squared test itself can fail.
    p = torch.full((8,), 1 / 8, dtype=torch.float64)
    with pytest.raises(AssertionError, match=r"chi-squared"):
        assert_frequencies(torch.multinomial(torch.tensor([0.2] + [0.8 / 7] * 7), 4000, replacement=True), p)
