"""PixelDefend: bits per dim, rank p-values, and purification against brute force."""

from __future__ import annotations

import math

import pytest
import torch
from model_properties import randomise

from fastar import anomaly
from fastar.models import FVSBN, MADE, NADE


def test_bits_per_dim_is_the_models_own() -> None:
    model = randomise(NADE(6, 4))
    x = torch.randint(0, 2, (600, 6))
    torch.testing.assert_close(anomaly.bits_per_dim(model, x), model.nll_bits_per_dim(x).detach())
    assert anomaly.bits_per_dim(model, x[:0]).shape == (0,)


def test_p_values_are_uniform_for_the_models_own_samples_and_small_for_others() -> None:
    model = randomise(FVSBN(40), 3.0)
    own = model.sample(900, seed=1)
    assert isinstance(own, torch.Tensor)
    p = anomaly.rank_p_value(model, own[:300], own[300:])
    for q in (0.1, 0.5, 0.9):
        assert math.isclose(float((p <= q).double().mean()), q, abs_tol=0.08)
    noise = torch.randint(0, 2, (300, 40))
    assert float(anomaly.rank_p_value(model, noise, own[300:]).median()) < 0.02
    assert float(anomaly.rank_p_value(model, own[:1], own[:1])) == 1.0
    with pytest.raises(ValueError, match=r"reference: expected at least one example"):
        anomaly.rank_p_value(model, own, own[:0])


def test_purification_takes_the_likeliest_allowed_value_in_turn() -> None:
    order = [2, 0, 3, 1]
    model = randomise(MADE(4, 16, {"kind": "categorical", "levels": 6}, order=order), 2.0)
    x, eps = torch.randint(0, 6, (20, 4)), 1
    expected = x.clone()
    levels = torch.arange(6)
    for d in order:
        with torch.no_grad():
            logits = model(expected)[:, d]
        allowed = (levels - x[:, d : d + 1]).abs() <= eps
        expected[:, d] = logits.masked_fill(~allowed, -math.inf).argmax(1)
    found = anomaly.purify(model, x, eps)
    assert found.dtype == x.dtype
    assert torch.equal(found, expected)
    assert not torch.equal(found, x)
    assert torch.equal(anomaly.purify(model, x, 0), x)
    with pytest.raises(ValueError, match=r"eps: expected a number of at least 0"):
        anomaly.purify(model, x, -1)
    with pytest.raises(ValueError, match=r"x: expected 0..5"):
        anomaly.purify(model, x + 3, 1)
