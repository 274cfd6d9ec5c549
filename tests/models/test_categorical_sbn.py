"""Softmax regressions per pixel, on raw and on one-hot history."""

from __future__ import annotations

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

from fastar.models import CategoricalSBN, Model

ORDER = [2, 0, 3, 1]


@pytest.fixture(params=["raw", "onehot", "raw ordered", "onehot ordered"])
def model(request: pytest.FixtureRequest) -> Model:
    history, _, ordered = request.param.partition(" ")
    return randomise(CategoricalSBN(4, 3, history, order=ORDER if ordered else None), 2.0)


def test_all_properties(model: Model, tmp_path: Path) -> None:
    x = torch.randint(0, 3, (5, 4))
    place = model.order.argsort()  # type: ignore[union-attr, operator]
    assert_autoregressive(model, x, place)
    assert_samples_follow(model, (4,))
    assert_prefix_is_conditioned(model, (4,), place, 2)
    assert_round_trips(model, x, tmp_path)
    assert_refuses_bad_data(model, x)


def test_parameters_by_formula() -> None:
    D, K = 5, 4
    assert CategoricalSBN(D, K).num_parameters() == D * (D - 1) // 2 * K + D * K
    assert CategoricalSBN(D, K, "onehot").num_parameters() == D * (D - 1) // 2 * K * K + D * K


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"history: onehot needs 161.1 GB of weights for 784 x 256; take raw"):
        CategoricalSBN(784, 256, "onehot")
    with pytest.raises(ValueError, match=r"history: expected raw or onehot, got 'both'"):
        CategoricalSBN(4, 3, "both")
    with pytest.raises(ValueError, match=r"levels: expected at least 2"):
        CategoricalSBN(4, 1)
