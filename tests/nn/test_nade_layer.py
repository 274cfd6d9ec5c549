"""NADELayer: what it computes, its state dict, and errors."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

from fastar.nn import NADELayer
from fastar.reference import nade as reference

ORDER = torch.tensor([3, 0, 2, 1, 4])


@pytest.mark.parametrize("order", [None, ORDER])
@pytest.mark.parametrize("activation", ["sigmoid", "relu", "tanh"])
def test_is_the_op_over_its_parameters(activation: str, order: torch.Tensor | None) -> None:
    layer = NADELayer(5, 7, 3, activation=activation, order=order)
    x = torch.randn(4, 5)
    parameters = (layer.weight, layer.readout, layer.hidden_bias, layer.bias)
    torch.testing.assert_close(layer(x), reference.nade(x, *parameters, activation, order))


@pytest.mark.parametrize("order", [None, ORDER])
def test_log_prob(order: torch.Tensor | None) -> None:
    layer = NADELayer(5, 7, order=order)
    bits = torch.tensor([[i >> j & 1 for j in range(5)] for i in range(32)]).float()
    log_prob = layer.log_prob(bits)
    torch.testing.assert_close(log_prob, reference.bernoulli_log_prob(layer(bits)[..., 0], bits))
    torch.testing.assert_close(log_prob.exp().sum(), torch.tensor(1.0))
    log_prob.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_an_order_travels_with_the_weights() -> None:
    layer = NADELayer(5, 7, order=ORDER.int())
    assert set(layer.state_dict()) == {"weight", "readout", "hidden_bias", "bias", "order"}
    assert set(NADELayer(5, 7).state_dict()) == {"weight", "readout", "hidden_bias", "bias"}
    other = NADELayer(5, 7, order=torch.arange(5))
    other.load_state_dict(layer.state_dict(), strict=True)
    x = torch.randn(3, 5)
    for twin in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))


def test_the_order_is_a_copy() -> None:
    order = ORDER.clone()
    layer = NADELayer(5, 7, order=order)
    order.zero_()
    assert torch.equal(layer.order, ORDER)


def test_initial_sizes() -> None:
    layer = NADELayer(400, 900)
    assert layer.weight.abs().max() <= 1 / 20
    assert layer.readout.abs().max() <= 1 / 30
    assert layer.weight.std() > 0.5 / math.sqrt(400 * 3)
    assert not layer.bias.any()
    assert not layer.hidden_bias.any()


def test_dtype_and_description() -> None:
    layer = NADELayer(5, 7, 2, order=ORDER, dtype=torch.bfloat16)
    assert layer(torch.randn(2, 5, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert repr(layer) == "NADELayer(dim=5, hidden=7, params=2, activation=sigmoid, order=given)"
    assert repr(NADELayer(5, 7)) == "NADELayer(dim=5, hidden=7, params=1, activation=sigmoid)"


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "dim: expected a positive integer", {"dim": 0}),
        (TypeError, "hidden: expected a positive integer", {"hidden": 2.5}),
        (ValueError, "params: expected a positive integer", {"params": -1}),
        (ValueError, "activation: expected one of sigmoid, relu, tanh", {"activation": "elu"}),
        (TypeError, "order: expected a tensor, got list", {"order": [0, 1, 2, 3, 4]}),
        (TypeError, "order: expected dtype", {"order": torch.rand(5)}),
        (ValueError, r"order: expected shape \[5\]", {"order": torch.arange(4)}),
        (ValueError, "order: expected a permutation", {"order": torch.tensor([0, 1, 2, 3, 3])}),
    ],
)
def test_bad_input_is_named(error: type[Exception], message: str, options: dict[str, object]) -> None:
    with pytest.raises(error, match=message):
        NADELayer(**{"dim": 5, "hidden": 7, **options})  # type: ignore[arg-type]


def test_log_prob_needs_one_parameter() -> None:
    with pytest.raises(ValueError, match="params: expected 1"):
        NADELayer(5, 7, 2).log_prob(torch.zeros(3, 5))
