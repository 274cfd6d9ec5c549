"""Each head: its log-probability against its own sampler's law, its configuration, and what it refuses."""

from __future__ import annotations

import json
import math

import pytest
import torch

from fastar.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    GaussianMixture,
    LaplaceMixture,
    LogisticMixture,
    Normal,
    make,
)
from fastar.sampling import draws

ALL: list[Distribution] = [
    Bernoulli(),
    Categorical(5),
    GaussianMixture(3),
    LaplaceMixture(2),
    LogisticMixture(3, steps=16),
    LogisticMixture(2, channels=3, steps=8, min_log_scale=-3.0),
    LogisticMixture(2, steps=1 << 16, integer=False),
    Normal(),
]


@pytest.mark.parametrize("one", ALL, ids=str)
def test_log_prob_is_that_of_the_samplers_draw(one: Distribution) -> None:
    n, integer = 40, one.levels is not None
    params = torch.randn(n, one.params)
    u = torch.rand(n, one.head.draws, dtype=torch.float64)
    values = draws.draw(one.head, params, u, integer=integer)
    x = values.long() if integer else values.float()
    expected = draws.log_prob(one.head, params, x.double(), integer)
    x = x[:, 0] if one.value.channels == 1 else x
    one.check(x)
    found = one.log_prob(params, x)
    torch.testing.assert_close(found.double(), expected, rtol=3e-5, atol=3e-5)
    moved = one.log_prob(params.T[None], x.T[None] if one.value.channels > 1 else x[None], 1)
    torch.testing.assert_close(moved[0], found)


@pytest.mark.parametrize("one", ALL, ids=str)
def test_configuration_round_trip(one: Distribution) -> None:
    assert make(json.loads(json.dumps(one.to_config()))) == one
    assert make(one) is one


@pytest.mark.parametrize("one", [Normal(), GaussianMixture(2), LaplaceMixture(2)], ids=str)
def test_densities_integrate_to_one(one: Distribution) -> None:
    grid = torch.linspace(-60, 60, 60001)
    params = torch.randn(one.params).clamp(-1, 1)
    density = one.log_prob(params.expand(len(grid), -1), grid).double().exp()
    assert math.isclose(float(torch.trapezoid(density, grid.double())), 1.0, abs_tol=1e-4)


def test_by_name() -> None:
    assert make("categorical", levels=7) == Categorical(7)
    assert make({"kind": "gaussian"}, components=2) == GaussianMixture(2)
    with pytest.raises(ValueError, match=r"head: expected one of bernoulli, categorical.*, got 'poisson'"):
        make("poisson")
    with pytest.raises(ValueError, match=r"head: bernoulli takes no options, not levels"):
        make("bernoulli", levels=2)
    with pytest.raises(TypeError, match=r"head: expected a distribution"):
        make(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("one", "x", "message"),
    [
        (Bernoulli(), torch.tensor([[0, 2]]), r"x: expected 0..1; at \[0, 1\] came 2"),
        (Bernoulli(), torch.tensor([0.5]), r"x: expected 0 or 1; at \[0\] came 0.5"),
        (Categorical(3), torch.tensor([-1]), r"x: expected 0..2; at \[0\] came -1"),
        (Normal(), torch.tensor([math.inf]), r"x: expected finite numbers; at \[0\] came inf"),
        (LogisticMixture(integer=False), torch.tensor([1.5]), r"x: expected numbers from -1.0 to 1.0; at \[0\]"),
    ],
)
def test_values_out_of_range_are_named(one: Distribution, x: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        one.check(x)
