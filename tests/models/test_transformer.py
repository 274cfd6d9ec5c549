"""Transformer: GPT-2's numbers, starts and classes, pictures, and samples that follow it."""

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
from torch import Tensor

from fastar.models import Transformer

T = 4
MODELS: dict[str, Callable[[], Transformer]] = {
    "bos": lambda: Transformer(3, 6, 8, 2, 2, bos=1),
    "window": lambda: Transformer(3, 6, 8, 2, 4, bos=0, window=2, kv_heads=2, bias=False, tied=False),
    "picture": lambda: Transformer(2, T, 8, 1, 2, bos=0, image=(2, 2), activation="relu", inner=5),
}


def _random(make: Callable[[], Transformer], size: float = 1.0) -> Transformer:
    model = randomise(make(), size)
    assert isinstance(model, Transformer)
    return model


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> Transformer:
    return _random(MODELS[request.param])


def _x(model: Transformer, n: int = 5) -> Tensor:
    return torch.randint(0, model.vocabulary, (n, T))


def test_autoregressive(model: Transformer) -> None:
    assert_autoregressive(model, _x(model), torch.arange(T))


def test_samples_follow_log_prob(model: Transformer) -> None:
    assert_samples_follow(model, (T,), length=T)


def test_a_known_prefix_is_conditioned_on(model: Transformer) -> None:
    assert_prefix_is_conditioned(model, (T,), torch.arange(T), 2)


def test_round_trips(model: Transformer, tmp_path: Path) -> None:
    assert_round_trips(model, _x(model), tmp_path)


def test_classes_stand_before_the_first_symbol(tmp_path: Path) -> None:
    model = _random(lambda: Transformer(3, 6, 8, 2, 2, classes=3), 1.5)
    cond = torch.tensor([2])
    assert_samples_follow(model, (T,), length=T, cond=cond)
    assert_autoregressive(model, _x(model), torch.arange(T), cond=torch.tensor([0, 1, 2, 0, 1]))
    assert_round_trips(model, _x(model, 1), tmp_path, cond)
    with pytest.raises(ValueError, match=r"cond: this Transformer takes classes \[5\] of 0..2, got NoneType"):
        model(_x(model))
    with pytest.raises(ValueError, match=r"cond: expected 0..2, got 3 to 3"):
        model.sample(1, length=2, cond=torch.tensor([3]))
    with pytest.raises(ValueError, match="next_logits: a class stands"):
        model.next_logits(_x(model))


def test_without_a_start_the_first_symbol_is_given() -> None:
    model = _random(lambda: Transformer(3, 6, 8, 2, 2), 1.5)
    x = _x(model)
    torch.testing.assert_close(model.next_logits(x)[:, :-1], model(x)[:, 1:])
    terms = torch.log_softmax(model(x)[:, 1:], 2).gather(2, x[:, 1:, None])
    torch.testing.assert_close(model.log_prob(x), terms.flatten(1).sum(1))
    bits = -model.log_prob(x) / (3 * torch.log(torch.tensor(2.0)))
    torch.testing.assert_close(model.nll_bits_per_dim(x), bits)
    given = torch.full((6, T), -1)
    given[:, 0] = 2
    result = assert_sampler_agrees(model, 6, seed=1, given=given)
    assert bool((result.values[:, 0] == 2).all())
    with pytest.raises(ValueError, match="given: Transformer does not model every position"):
        model.sample(2, length=3)


def test_next_logits_are_shifted_by_one(model: Transformer) -> None:
    x = _x(model)
    x[:, 0] = model.bos or 0
    torch.testing.assert_close(model.next_logits(x)[:, :-1], model(x[:, 1:]))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_published_sizes(name: str, count: int) -> None:
    assert Transformer.preset(name, device="meta").num_parameters() == count


def test_positions_of_a_picture_are_rows_and_columns() -> None:
    model = _random(lambda: Transformer(2, 6, 4, 1, 1, bos=0, image=(2, 3)))
    assert model.positions.shape == (6, 4)
    torch.testing.assert_close(model.positions[4], model.wpe[0].weight[1] + model.wpe[1].weight[1])


def test_a_cycle_is_learned() -> None:
    x = (torch.randint(0, 3, (512, 1)) + torch.arange(6)) % 3
    torch.manual_seed(0)
    model = Transformer(3, 6, 16, 1, 2, bos=0)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(120):
        optimizer.zero_grad()
        model.loss(x).backward()
        optimizer.step()
    assert model.loss(x).item() < 1.01 * torch.log(torch.tensor(3.0)).item()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Transformer(3, 6, 8, 2, 3), r"heads: expected a divisor of the width 8, got 3"),
        (lambda: Transformer(3, 6, 8, 0, 2), r"layers: expected a positive integer"),
        (lambda: Transformer(3, 6, 8, 2, 2, bos=3), r"bos: expected a symbol of 0..2, got 3"),
        (lambda: Transformer(3, 6, 8, 2, 2, bos=1, classes=2), r"classes: a class stands in the place of bos"),
        (lambda: Transformer(3, 6, 8, 2, 2, image=(2, 2)), r"image: expected \(height, width\) of 6 pixels"),
        (lambda: Transformer(3, 6, 8, 2, 2, activation="concat_elu"), r"activation: concat_elu doubles"),
        (
            lambda: Transformer(3, 6, 8, 2, 2)(torch.zeros(1, 7, dtype=torch.long)),
            r"x: expected 1 to 6 positions, got 7",
        ),
        (lambda: Transformer(3, 6, 8, 2, 2)(torch.full((1, 2), 3)), r"x: expected 0..2; at \[0, 0\] came 3"),
        (lambda: Transformer.preset("gpt5"), r"preset: Transformer has gpt2, gpt2-medium"),
    ],
)
def test_bad_arguments(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
