"""FVSBN and NADE: bits and levels, tied and untied, in any order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_properties import (
    assert_autoregressive,
    assert_prefix_is_conditioned,
    assert_refuses_bad_data,
    assert_round_trips,
    assert_samples_follow,
    randomise,
)
from torch import nn

from fastar.models import FVSBN, NADE, Model

ORDER = [3, 1, 0, 2]
MODELS: dict[str, Callable[[], Model]] = {
    "fvsbn": lambda: FVSBN(4),
    "fvsbn ordered": lambda: FVSBN(4, order=ORDER),
    "nade": lambda: NADE(4, 3),
    "nade ordered": lambda: NADE(4, 3, order=ORDER, activation="tanh"),
    "nade levels": lambda: NADE(4, 3, levels=3, order=ORDER),
    "nade untied": lambda: NADE(4, 3, tied=False, order=ORDER),
    "nade untied levels": lambda: NADE(4, 3, levels=3, tied=False, activation="relu"),
}


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> Model:
    return randomise(MODELS[request.param](), 2.0)


def _x(model: Model, n: int = 5) -> torch.Tensor:
    assert model.distribution.levels is not None
    return torch.randint(0, model.distribution.levels, (n, 4))


def test_autoregressive_in_its_order(model: Model) -> None:
    assert_autoregressive(model, _x(model), model.order.argsort())  # type: ignore[union-attr, operator]


def test_samples_follow_log_prob(model: Model) -> None:
    assert_samples_follow(model, (4,))


def test_a_known_prefix_is_conditioned_on(model: Model) -> None:
    assert_prefix_is_conditioned(model, (4,), model.order.argsort(), 2)  # type: ignore[union-attr, operator]


def test_round_trips(model: Model, tmp_path: Path) -> None:
    assert_round_trips(model, _x(model), tmp_path)


def test_bad_data(model: Model) -> None:
    assert_refuses_bad_data(model, _x(model))


def test_parameters_by_formula() -> None:
    D, H, K = 7, 5, 4
    assert FVSBN(D).num_parameters() == D * (D + 1) // 2
    assert NADE(D, H).num_parameters() == 2 * D * H + H + D
    assert NADE(D, H, levels=K).num_parameters() == D * H + H + D * K * H + D * K
    untied = D * (D - 1) // 2 * H + D * H + D * H + D
    assert NADE(D, H, tied=False).num_parameters() == untied


def test_untied_with_equal_layers_is_the_tied_one() -> None:
    tied, untied = randomise(NADE(5, 3, order=[4, 0, 2, 1, 3])), NADE(5, 3, tied=False, order=[4, 0, 2, 1, 3])
    layer, twin = untied.layer, tied.layer
    with torch.no_grad():
        layer.inputs.weight.copy_(twin.weight.repeat(5, 1))  # type: ignore[operator, union-attr]
        layer.inputs.bias.copy_(twin.hidden_bias.repeat(5))  # type: ignore[operator, union-attr]
        layer.readout.copy_(twin.readout)
        layer.bias.copy_(twin.bias)
    x = torch.randint(0, 2, (6, 5))
    torch.testing.assert_close(untied(x), tied(x))


def test_bits_per_dim_of_fair_coins_is_one() -> None:
    model = FVSBN(6)
    nn.init.zeros_(model.linear.weight)
    torch.testing.assert_close(model.nll_bits_per_dim(torch.randint(0, 2, (3, 6))), torch.ones(3))
    with pytest.raises(ValueError, match=r"levels: FVSBN has 2 levels of its own"):
        model.nll_bits_per_dim(torch.zeros(1, 6), levels=4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NADE(4, 3, order=[0, 1, 2, 2]), r"order: expected a permutation of 0..3"),
        (lambda: NADE(4, 3, order=[0, 1, 2]), r"order: expected shape \[4\]"),
        (lambda: NADE(4, 3, activation="gelu"), r"activation: expected one of sigmoid"),
        (lambda: NADE(4, 3, levels=1), r"levels: expected at least 2"),
        (lambda: NADE(0, 3), r"dim: expected a positive integer"),
        (lambda: FVSBN(4).log_prob(torch.zeros(2, 4), torch.zeros(2, 1)), r"cond: FVSBN takes none"),
        (lambda: FVSBN(4)(torch.full((1, 4), 0.5)), r"x: expected 0 or 1; at \[0, 0\] came 0.5"),
    ],
)
def test_bad_arguments(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
