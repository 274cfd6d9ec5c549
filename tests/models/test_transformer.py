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
from fastar.sampling import Sampler, SampleResult, philox, prefill
from fastar.sampling.categorical import pick

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


PREFILLED: dict[str, Callable[[], Transformer]] = {
    "bos": lambda: Transformer(5, 16, 8, 2, 2, bos=1),
    "given": lambda: Transformer(5, 16, 8, 2, 2),
    "window": lambda: Transformer(5, 16, 8, 2, 4, bos=0, window=5, kv_heads=2),
    "classes": lambda: Transformer(5, 16, 8, 2, 2, classes=3),
}


@pytest.mark.parametrize("name", PREFILLED)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_known_prefix_is_taken_in_at_once(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _random(PREFILLED[name], 1.5)
    given = torch.full((4, 16), -1)
    given[:, :11] = torch.randint(0, 5, (4, 11))
    options: dict[str, object] = {"given": given, "seed": 3, "return_info": True}
    if model.classes:
        options["cond"] = torch.tensor([0, 1, 2, 1])
    passes = []
    inner = model.prefill
    monkeypatch.setattr(model, "prefill", lambda *args: passes.append(1) or inner(*args))
    for stop in (None, 2):
        result = Sampler(model, 4, backend=backend).sample(stop=stop, **options)  # type: ignore[arg-type]
        one_by_one = Sampler(model, 1, backend=backend).sample(4, stop=stop, **options)  # type: ignore[arg-type]
        monkeypatch.setattr(prefill, "_WORTH_IT", 100)
        stepped = Sampler(model, 4, backend=backend).sample(stop=stop, **options)  # type: ignore[arg-type]
        monkeypatch.undo()
        monkeypatch.setattr(model, "prefill", lambda *args: passes.append(1) or inner(*args))
        assert isinstance(result, SampleResult)
        assert isinstance(stepped, SampleResult)
        assert isinstance(one_by_one, SampleResult)
        assert torch.equal(result.values, stepped.values)
        assert torch.equal(result.lengths, stepped.lengths)
        torch.testing.assert_close(result.log_prob, stepped.log_prob, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(result.log_weight, stepped.log_weight, rtol=1e-4, atol=1e-4)
        assert torch.equal(result.values, one_by_one.values)
        assert torch.equal(result.log_prob, one_by_one.log_prob)
    assert len(passes) == 16


def test_a_stream_begins_with_the_prefix() -> None:
    model = _random(PREFILLED["bos"], 1.5)
    given = torch.full((2, 16), -1)
    given[:, :10] = 3
    whole = model.sample(2, given=given, seed=1)
    pieces = list(Sampler(model, 2).stream(4, given=given, seed=1))
    assert [piece.shape[1] for piece in pieces] == [10, 4, 2]
    assert torch.equal(torch.cat(pieces, 1), whole)  # type: ignore[arg-type]
    pieces = list(Sampler(model, 2).stream(12, given=given, seed=1))
    assert [piece.shape[1] for piece in pieces] == [12, 4]
    assert torch.equal(torch.cat(pieces, 1), whole)  # type: ignore[arg-type]


@pytest.mark.parametrize("native", [True, False])
def test_a_prefill_is_of_the_weights_that_were_packed(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr(prefill, "why_missing", lambda: "not built")
    model = _random(PREFILLED["bos"], 1.5)
    sampler = Sampler(model, 2)
    given = torch.full((2, 16), -1)
    given[:, :12] = 3
    before = sampler.sample(given=given, seed=1, return_info=True)
    # Through .data, which raises no version counter.
    model.wte.weight.data.mul_(-1)
    after = sampler.sample(given=given, seed=1, return_info=True)
    assert isinstance(before, SampleResult)
    assert isinstance(after, SampleResult)
    assert torch.equal(before.values, after.values)
    torch.testing.assert_close(before.log_prob, after.log_prob, rtol=1e-4, atol=1e-4)
    sampler.refresh()
    fresh = sampler.sample(given=given, seed=1, return_info=True)
    assert isinstance(fresh, SampleResult)
    torch.testing.assert_close(fresh.log_prob.float(), model.log_prob(fresh.values), rtol=1e-4, atol=1e-4)


def test_what_is_asked_beyond_the_context() -> None:
    model = _random(lambda: Transformer(3, 6, 8, 2, 2, bos=1), 1.5)
    whole = model.sample(4, length=6, seed=2)
    assert torch.equal(model.sample(4, length=9, seed=2), whole)  # type: ignore[arg-type]
    slid = model.sample(4, length=15, seed=2, overflow="recompute", stride=2, return_info=True)
    assert isinstance(slid, SampleResult)
    assert torch.equal(slid.values[:, :6], whole)  # type: ignore[arg-type]
    # By the definition: each symbol from a full pass over what its window holds, by its own random number.
    rows, seeds = torch.arange(4), torch.full((4,), 2)
    total = torch.zeros(4, dtype=torch.float64)
    for t in range(15):
        start = 0 if t < 6 else (t - 6) // 2 * 2 + 2
        window = slid.values[:, start : t + 1]
        with torch.no_grad():
            logits = model.double()(window)[:, -1]
        u = philox.discrete(seeds, rows, t, 0)
        assert torch.equal(pick(logits.softmax(1), u), slid.values[:, t])
        total += torch.log_softmax(logits, 1).gather(1, slid.values[:, t, None])[:, 0]
    torch.testing.assert_close(slid.log_prob, total, rtol=1e-4, atol=1e-4)


def test_windows_keep_what_is_given_and_rows_that_ended() -> None:
    model = _random(lambda: Transformer(4, 6, 8, 1, 2), 1.5)
    given = torch.full((5, 14), -1)
    given[:, 0], given[:, 8] = 2, 1
    options = {"overflow": "recompute", "given": given, "seed": 4, "return_info": True}
    result = model.sample(5, **options)  # type: ignore[arg-type]
    assert isinstance(result, SampleResult)
    assert torch.equal(result.values[given >= 0], given[given >= 0])
    assert bool((result.log_weight < 0).all())
    lengths = [14, 3, 7, 14, 9]
    ragged = model.sample(5, length=lengths, stop=3, **options)  # type: ignore[arg-type]
    assert isinstance(ragged, SampleResult)
    for row, length in enumerate(ragged.lengths.tolist()):
        ends = torch.nonzero(result.values[row, : lengths[row]] == 3)[:, 0].tolist()
        assert length == (ends[0] + 1 if ends else lengths[row])
        assert torch.equal(ragged.values[row, :length], result.values[row, :length])
        assert not bool(ragged.values[row, length:].any())
    levels = torch.ones(14, 4, dtype=torch.bool)
    levels[7:, 3] = False
    confined = model.sample(5, support=levels, **options)  # type: ignore[arg-type]
    assert isinstance(confined, SampleResult)
    assert not bool((confined.values[:, 7:] == 3).any())
    with pytest.raises(ValueError, match="overflow: expected stop or recompute, got 'slide'"):
        model.sample(5, length=9, overflow="slide")
    with pytest.raises(ValueError, match="stride: expected less than the context, 6, got 6"):
        model.sample(5, length=9, overflow="recompute", stride=6, given=given[:, :9])


def test_positions_of_a_picture_are_rows_and_columns() -> None:
    model = _random(lambda: Transformer(2, 6, 4, 1, 1, bos=0, image=(2, 3)))
    assert model.positions.shape == (6, 4)
    torch.testing.assert_close(model.positions[4], model.wpe[0].weight[1] + model.wpe[1].weight[1])


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
