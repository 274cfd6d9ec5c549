"""DocNADE: softmax and tree, ragged documents."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model_properties import (
    assert_autoregressive,
    assert_frequencies,
    assert_prefix_is_conditioned,
    assert_refuses_bad_data,
    assert_round_trips,
    assert_sampler_agrees,
    assert_sums_to_one,
    index_of,
    randomise,
)

from fastar.models import DocNADE


@pytest.fixture(params=["softmax", "tree", "tree of 7"])
def model(request: pytest.FixtureRequest) -> DocNADE:
    made = randomise(DocNADE(7 if "7" in request.param else 4, 6, request.param != "softmax"), 2.0)
    assert isinstance(made, DocNADE)
    return made


def test_all_properties(model: DocNADE, tmp_path: Path) -> None:
    V, T = model.vocabulary, 3
    x = torch.randint(0, V, (5, T))
    assert_autoregressive(model, x, torch.arange(T))
    log_p = assert_sums_to_one(model, (T,))
    drawn = model.sample(4000, seed=1, length=T)
    assert isinstance(drawn, torch.Tensor)
    assert_frequencies(index_of(drawn, V), log_p.exp())
    assert_sampler_agrees(model, seed=2, length=T)
    assert_prefix_is_conditioned(model, (T,), torch.arange(T), 2)
    assert_round_trips(model, x, tmp_path)
    assert_refuses_bad_data(model, x)


def test_the_order_of_earlier_words_does_not_matter(model: DocNADE) -> None:
    a, b = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[2, 0, 1, 3]])
    torch.testing.assert_close(model(a)[:, 3], model(b)[:, 3])


def test_the_trees_path_gives_the_log_probability_of_its_leaf(model: DocNADE) -> None:
    x = torch.randint(0, model.vocabulary, (6, 5))
    expected = model(x).log_softmax(2).gather(2, x[..., None])[..., 0].sum(1)
    torch.testing.assert_close(model.log_prob(x), expected)


def test_ragged_documents(model: DocNADE) -> None:
    x = torch.randint(0, model.vocabulary, (3, 5))
    lengths = torch.tensor([5, 2, 0])
    found = model.log_prob(x, lengths=lengths)
    expected = torch.stack([model.log_prob(x[i : i + 1, :n])[0] for i, n in enumerate([5, 2, 0])])
    torch.testing.assert_close(found, expected)
    bits = model.nll_bits_per_dim(x, lengths=lengths)
    torch.testing.assert_close(bits[1], model.nll_bits_per_dim(x[1:2, :2])[0])
    assert bits[2] == 0
    with pytest.raises(ValueError, match=r"lengths: expected 0..5, got 0 to 6"):
        model.log_prob(x, lengths=torch.tensor([6, 1, 0]))


def test_parameters_by_formula() -> None:
    V, H = 11, 5
    assert DocNADE(V, H).num_parameters() == 2 * V * H + H + V
    assert DocNADE(V, H, tree=True).num_parameters() == V * H + H + (V - 1) * (H + 1)
