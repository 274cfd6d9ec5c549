"""CharRNN: cells of three kinds, its learned start, and samples of any length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_properties import (
    assert_autoregressive,
    assert_prefix_is_conditioned,
    assert_round_trips,
    assert_sampler_agrees,
    assert_samples_follow,
    randomise,
)

from fastar.models import CharRNN

MODELS: dict[str, Callable[[], CharRNN]] = {
    "tanh": lambda: CharRNN(3, 4),
    "lstm": lambda: CharRNN(3, 4, 2, cell="lstm", embedding=2),
    "gru": lambda: CharRNN(3, 5, 2, cell="gru", dropout=0.5),
}
T = 4


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> CharRNN:
    model = randomise(MODELS[request.param](), 1.5)
    assert isinstance(model, CharRNN)
    return model


def _x(n: int = 5) -> torch.Tensor:
    return torch.randint(0, 3, (n, T))


def test_autoregressive(model: CharRNN) -> None:
    assert_autoregressive(model, _x(), torch.arange(T))


def test_samples_follow_log_prob(model: CharRNN) -> None:
    assert_samples_follow(model, (T,), length=T)


def test_a_known_prefix_is_conditioned_on(model: CharRNN) -> None:
    assert_prefix_is_conditioned(model, (T,), torch.arange(T), 2)


def test_round_trips(model: CharRNN, tmp_path: Path) -> None:
    assert_round_trips(model, _x(), tmp_path)


def test_bad_data(model: CharRNN) -> None:
    with pytest.raises(ValueError, match=r"x: expected shape \[B, T\]"):
        model(_x()[0])
    with pytest.raises(ValueError, match="x: expected at least one position, got 0"):
        model(_x()[:, :0])
    with pytest.raises(ValueError, match=r"x: expected 0..2; at \[0, 0\] came 3"):
        model(torch.full((1, T), 3))
    with pytest.raises(ValueError, match="length: CharRNN is open"):
        model.sample(2)
    with pytest.raises(ValueError, match="cond: CharRNN takes none"):
        model.log_prob(_x(), torch.zeros(5, 1))


def test_entry_t_of_next_logits_is_entry_t_plus_one() -> None:
    model = randomise(CharRNN(3, 4, 2, cell="lstm"))
    assert isinstance(model, CharRNN)
    x = _x()
    torch.testing.assert_close(model.next_logits(x)[:, :-1], model(x)[:, 1:])


def test_rows_end_at_a_symbol(model: CharRNN) -> None:
    result = assert_sampler_agrees_until(model, stop=1)
    assert int(result.min()) < 20


def assert_sampler_agrees_until(model: CharRNN, stop: int) -> torch.Tensor:
    result = model.sample(16, length=20, stop=stop, seed=5, return_info=True)
    assert not isinstance(result, torch.Tensor)
    for row, length in enumerate(result.lengths.tolist()):
        with torch.no_grad():
            expected = model.log_prob(result.values[row : row + 1, :length])
        torch.testing.assert_close(result.log_prob[row].float(), expected[0], rtol=1e-4, atol=1e-4)
    return result.lengths


def test_long_samples_agree_in_every_backend(model: CharRNN) -> None:
    for backend in ("auto", "reference"):
        assert_sampler_agrees(model, 3, length=50, seed=2, backend=backend)


def test_parameters_by_formula() -> None:
    S, H, E, L = 7, 5, 3, 2
    for cell, gates in (("tanh", 1), ("lstm", 4), ("gru", 3)):
        cells = gates * H * (E + H + 2) + gates * H * (2 * H + 2)
        starts = L * H * (2 if cell == "lstm" else 1)
        model = CharRNN(S, H, L, cell=cell, embedding=E)
        assert model.num_parameters() == S * E + cells + starts + S * H + S
    assert CharRNN.preset("tanh-3x512").num_parameters() == 128 * 512 + 3 * (2 * 512 + 2) * 512 + 3 * 512 + 128 * 513


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CharRNN(0, 3), r"symbols: expected a positive integer"),
        (lambda: CharRNN(3, 3, 0), r"layers: expected a positive integer"),
        (lambda: CharRNN(3, 3, cell="elman"), r"cell: expected one of tanh, lstm, gru, got 'elman'"),
        (lambda: CharRNN(3, 3, dropout=1.0), r"dropout: expected a probability"),
        (lambda: CharRNN.preset("none"), r"preset: CharRNN has tanh-3x512"),
    ],
)
def test_bad_arguments(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
