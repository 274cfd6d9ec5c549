"""DeepNADE and ConvNADE: any order, ensembles, what is known first, and the reweighted loss."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_properties import (
    assert_autoregressive,
    assert_frequencies,
    assert_prefix_is_conditioned,
    assert_refuses_bad_data,
    assert_round_trips,
    assert_samples_follow,
    every_x,
    index_of,
    randomise,
)
from torch import Tensor

from fastar.models import ConvNADE, DeepNADE
from fastar.models.orderless import Orderless
from fastar.sampling import SampleResult

MODELS: dict[str, Callable[[], Orderless]] = {
    "one layer": lambda: DeepNADE(4, 8),
    "deep, levels": lambda: DeepNADE(4, [8, 9], {"kind": "categorical", "levels": 3}, activation="tanh"),
    "convolutions": lambda: ConvNADE((2, 2), [6, 5]),
    "valid and full": lambda: ConvNADE(
        (2, 2), [5, 4, 3], kernel_size=[2, 1, 2, 3], padding=["valid", "same", "full", "same"]
    ),
    "convolutions, levels": lambda: ConvNADE((2, 2), 6, {"kind": "categorical", "levels": 3}, activation="elu"),
}


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> Orderless:
    made = randomise(MODELS[request.param](), 1.5)
    assert isinstance(made, Orderless)
    return made


def _x(model: Orderless, n: int = 5) -> Tensor:
    return torch.randint(0, model.distribution.levels or 2, (n, *model.data_shape))  # type: ignore[arg-type]


def _shape(model: Orderless) -> tuple[int, ...]:
    return tuple(int(one) for one in model.data_shape)


def test_the_natural_order_is_autoregressive(model: Orderless) -> None:
    assert_autoregressive(model, _x(model, 32), torch.arange(4), dense=isinstance(model, DeepNADE))


def test_samples_follow_log_prob(model: Orderless) -> None:
    assert_samples_follow(model, _shape(model))
    assert_prefix_is_conditioned(model, _shape(model), torch.arange(4).view(_shape(model)), 2)


def test_what_is_not_known_does_not_matter(model: Orderless) -> None:
    x = _x(model, 16)
    known = torch.tensor([True, False, True, False]).view(_shape(model))
    other = torch.where(known, x, _x(model, 16))
    assert torch.equal(model(x, known), model(other, known))
    assert not torch.equal(model(x, known), model(x, ~known))


def test_any_order_sums_to_one_and_is_sampled(model: Orderless) -> None:
    order = [2, 0, 3, 1]
    levels = model.distribution.levels
    assert levels is not None
    x = every_x(_shape(model), levels)
    with torch.no_grad():
        p = model.log_prob(x, order=order).double().exp()
    assert math.isclose(float(p.sum()), 1, abs_tol=1e-5)
    drawn = model.sample(4000, seed=2, order=order, return_info=True)
    assert isinstance(drawn, SampleResult)
    assert_frequencies(index_of(drawn.values, levels), p)
    with torch.no_grad():
        expected = model.log_prob(drawn.values, order=order).double()
    torch.testing.assert_close(drawn.log_prob, expected, rtol=1e-4, atol=1e-4)


def test_an_ensemble_averages_probabilities(model: Orderless) -> None:
    x = _x(model)
    orders = [[2, 0, 3, 1], [0, 1, 2, 3]]
    with torch.no_grad():
        each = torch.stack([model.log_prob(x, order=one) for one in orders]).exp()
        torch.testing.assert_close(model.log_prob(x, ensemble=orders).exp(), each.mean(0))
        assert torch.equal(model.log_prob(x, ensemble=3), model.log_prob(x, ensemble=3))


def test_known_dimensions_come_first_in_every_row(model: Orderless) -> None:
    levels = model.distribution.levels
    assert levels is not None
    x = every_x(_shape(model), levels)
    flat = torch.full((6000, 4), -1)
    flat[::2, 1], flat[::2, 3], flat[1::2, 2] = 1, 0, 1
    result = model.sample(6000, seed=5, given=flat.view(-1, *_shape(model)), return_info=True)
    assert isinstance(result, SampleResult)
    patterns = (([1, 3, 0, 2], {1: 1, 3: 0}, slice(0, None, 2)), ([2, 0, 1, 3], {2: 1}, slice(1, None, 2)))
    for order, fixed, rows in patterns:
        agrees = torch.stack([x.flatten(1)[:, d] == value for d, value in fixed.items()]).all(0)
        with torch.no_grad():
            p = torch.where(agrees, model.log_prob(x, order=order).double().exp(), 0.0)
        assert_frequencies(index_of(result.values[rows], levels), p / p.sum())
        weight = result.log_weight[rows]
        torch.testing.assert_close(weight, p.sum().log().expand(len(weight)), rtol=1e-4, atol=1e-4)


def test_rows_do_not_depend_on_their_company(model: Orderless) -> None:
    given = torch.full((8, 4), -1)
    given[3:, 1], given[5:, 0] = 1, 1
    given = given.view(-1, *_shape(model))
    whole = model.sample(8, seed=6, given=given)
    assert isinstance(whole, Tensor)
    parts = [model.sample(4, seed=6, row_offset=k, given=given[k : k + 4]) for k in (0, 4)]
    assert torch.equal(whole, torch.cat(parts))  # type: ignore[arg-type]
    assert torch.equal(model.sample(8, seed=6, given=torch.full_like(given, -1)), model.sample(8, seed=6))  # type: ignore[arg-type]


def test_support_is_per_dimension() -> None:
    model = randomise(DeepNADE(4, 8, {"kind": "categorical", "levels": 5}))
    given = torch.tensor([[-1, -1, 3, -1], [-1] * 4])
    low, high = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 2, 4, 3])
    values = model.sample(2, given=given, support=(low, high), seed=1)
    assert isinstance(values, Tensor)
    assert bool(((values >= low) & (values <= high)).all())
    levels = torch.zeros(4, 5, dtype=torch.bool)
    levels[torch.arange(4), torch.tensor([4, 0, 3, 1])] = True
    assert model.sample(2, given=given, support=levels, seed=1).tolist() == [[4, 0, 3, 1]] * 2  # type: ignore[union-attr]


def test_missing_values_leave_the_density_of_the_rest() -> None:
    model = randomise(DeepNADE(3, 8), 2.0)
    x = every_x((3,), 2)
    observed = torch.tensor([True, False, True]).expand(8, 3)
    with torch.no_grad():
        marginal = model.log_prob(x, observed=observed)
        both = model.log_prob(x, order=[0, 2, 1], observed=observed)
        first = torch.where(
            x[:, 0] == 1, model(x, torch.zeros(3).bool())[:, 0, 0], -model(x, torch.zeros(3).bool())[:, 0, 0]
        )
    assert torch.equal(marginal, both)
    assert torch.equal(marginal[x[:, 1] == 0], marginal[x[:, 1] == 1])
    assert bool((marginal <= torch.nn.functional.logsigmoid(first) + 1e-6).all())
    assert math.isclose(float(marginal.exp().sum()), 2.0, abs_tol=1e-5)


def test_the_loss_estimates_the_mean_over_all_orders() -> None:
    model = randomise(DeepNADE(3, 8), 2.0)
    x = torch.randint(0, 2, (1, 3))
    with torch.no_grad():
        orders = [list(one) for one in itertools.permutations(range(3))]
        mean = torch.stack([-model.log_prob(x, order=one) for one in orders]).mean()
        found = model.loss(x.expand(40000, 3))
    torch.testing.assert_close(found, mean, rtol=0.03, atol=0)


def test_round_trips_and_bad_data(model: Orderless, tmp_path: Path) -> None:
    assert_round_trips(model, _x(model), tmp_path)
    assert_refuses_bad_data(model, _x(model))


@pytest.mark.parametrize(
    "forms",
    [{}, {"kernel_size": [5, 3, 1]}, {"kernel_size": [4, 3, 6], "padding": ["valid", "valid", "full"]}],
    ids=["square", "uneven", "valid and full"],
)
def test_what_a_sampler_keeps_is_what_a_full_pass_gives(forms: dict[str, Any]) -> None:
    # On a larger image than the kernels reach, with a permutation.
    model = randomise(ConvNADE((7, 6), [4, 4], **forms))
    assert isinstance(model, ConvNADE)
    order = torch.randperm(42)
    drawn = model.sample(8, seed=1, order=order, return_info=True)
    assert isinstance(drawn, SampleResult)
    with torch.no_grad():
        expected = model.log_prob(drawn.values, order=order).double()
    torch.testing.assert_close(drawn.log_prob, expected, rtol=1e-4, atol=1e-4)


def test_reals() -> None:
    model = randomise(DeepNADE(3, [12], {"kind": "gaussian", "components": 2}), 0.5)
    drawn = model.sample(32, seed=1, order=[2, 0, 1], return_info=True)
    assert isinstance(drawn, SampleResult)
    with torch.no_grad():
        expected = model.log_prob(drawn.values, order=[2, 0, 1]).double()  # type: ignore[call-arg]
    torch.testing.assert_close(drawn.log_prob, expected, rtol=1e-4, atol=1e-4)


def test_parameters_by_formula() -> None:
    D, H, G, K = 5, 7, 6, 3
    head = {"kind": "categorical", "levels": K}
    assert DeepNADE(D, [H, G], head).num_parameters() == 2 * D * H + H + H * G + G + D * K * G + D * K
    assert ConvNADE((4, 3), [H, G], head).num_parameters() == 9 * (2 * H + H * G + G * K) + H + G + K


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DeepNADE(4, []), r"hidden: expected at least one hidden layer"),
        (lambda: ConvNADE((4,), 3), r"size: expected \(height, width\)"),
        (lambda: ConvNADE((4, 4), 3, kernel_size=2), r"kernel_size: expected an odd number for padding=.same., got 2"),
        (lambda: ConvNADE((4, 4), 3, kernel_size=[3]), r"kernel_size: expected one for each of 2 convolutions, got 1"),
        (lambda: ConvNADE((4, 4), 3, padding="valid"), r"padding: expected the image's size in the end, got planes of"),
        (lambda: ConvNADE((4, 4), 3, padding="wide"), r"padding: expected same, valid or full, got 'wide'"),
        (lambda: DeepNADE(4, 3)(torch.zeros(2, 4), torch.zeros(3).bool()), r"known: expected shape \[4\] or \[2, 4\]"),
        (lambda: DeepNADE(4, 3).log_prob(torch.zeros(2, 4), order=[0, 1]), r"order: expected shape \[4\]"),
        (
            lambda: DeepNADE(4, 3).log_prob(torch.zeros(2, 4), order=[0, 1, 2, 3], ensemble=2),
            r"order: expected either an order or an ensemble",
        ),
        (lambda: DeepNADE(4, 3).sample(2, given=torch.zeros(2, 3)), r"given: expected shape \[2, 4\]"),
        (lambda: DeepNADE(4, 3).sample(2, cond=1), r"cond: DeepNADE takes none"),
    ],
)
def test_bad_arguments(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
