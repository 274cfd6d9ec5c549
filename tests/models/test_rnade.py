"""RNADE: mixtures of Gaussians and Laplaces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model_properties import (
    assert_autoregressive,
    assert_density,
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


@pytest.mark.parametrize("kind", ["gaussian", "laplace"])
def test_density(kind: str) -> None:
    assert_density(randomise(RNADE(2, 6, 2, kind, order=[1, 0]), 0.5), first=1)


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
