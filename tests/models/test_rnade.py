"""RNADE: mixtures of Gaussians and Laplaces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model_properties import (
    assert_autoregressive,
    assert_refuses_bad_data,
    assert_round_trips,
    assert_sampler_agrees,
    randomise,
)

from fastar.models import RNADE

ORDER = [2, 0, 1]


@pytest.fixture(params=["gaussian", "laplace", "uniform", "untied"])
def model(request: pytest.FixtureRequest) -> RNADE:
    kind = "laplace" if request.param == "laplace" else "gaussian"
    made = RNADE(3, 8, 2, kind, request.param == "uniform", tied=request.param != "untied", order=ORDER)
    randomise(made, 0.7)
    return made


def test_all_properties(model: RNADE, tmp_path: Path) -> None:
    x = torch.randn(5, 3)
    assert model(x).shape == (5, 3, 6)
    assert_autoregressive(model, x, model.order.argsort())
    assert_sampler_agrees(model, seed=1)
    assert_round_trips(model, x, tmp_path)
    assert_refuses_bad_data(model, x)


def test_density_integrates_to_one() -> None:
    model = randomise(RNADE(2, 6, 2, order=[1, 0]), 0.5)
    axis = torch.linspace(-12, 12, 481)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        density = model.log_prob(grid).double().exp()
    assert abs(float(density.sum()) * float(axis[1] - axis[0]) ** 2 - 1) < 1e-3


def test_samples_have_the_densitys_moments() -> None:
    model = randomise(RNADE(2, 6, 2), 0.5)
    axis = torch.linspace(-12, 12, 481)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        p = model.log_prob(grid).double().exp()[:, None]
    p = p / p.sum()
    mean = (p * grid).sum(0)
    covariance = ((grid - mean) * p).T.double() @ (grid - mean).double()
    drawn = model.sample(20000, seed=2)
    assert isinstance(drawn, torch.Tensor)
    torch.testing.assert_close(drawn.double().mean(0), mean, rtol=0, atol=0.05)
    torch.testing.assert_close(torch.cov(drawn.T.double()), covariance, rtol=0.06, atol=0.06)


def test_uniform_weights_have_no_logits_to_learn() -> None:
    D, H, K = 3, 8, 2
    learned = RNADE(D, H, K).num_parameters()
    uniform = RNADE(D, H, K, uniform_weights=True)
    assert learned == D * H + H + 3 * K * D * H + 3 * K * D
    assert uniform.num_parameters() == D * H + H + 2 * K * D * H + 2 * K * D
    assert not uniform(torch.randn(2, D))[..., :K].any()


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"kind: expected gaussian or laplace, got 'student'"):
        RNADE(3, 8, 2, "student")
    with pytest.raises(ValueError, match=r"components: expected a positive integer"):
        RNADE(3, 8, 0)
