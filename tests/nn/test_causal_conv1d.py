"""CausalConv1d: compatibility with torch.nn.Conv1d, its state, and errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastar.nn import CausalConv1d


@pytest.mark.parametrize(("groups", "bias"), [(1, True), (2, False), (4, True)])
def test_loads_and_is_loaded_by_its_twin(groups: int, bias: bool) -> None:
    torch.manual_seed(5)
    layer = CausalConv1d(4, 8, 3, 2, groups, bias)
    torch.manual_seed(5)
    twin = nn.Conv1d(4, 8, 3, dilation=2, groups=groups, bias=bias)
    for name, value in twin.state_dict().items():
        assert torch.equal(layer.state_dict()[name], value)
    x = torch.randn(2, 4, 20)
    torch.testing.assert_close(layer(x)[:, :, 4:], twin(x))
    twin.load_state_dict(layer.state_dict(), strict=True)
    layer.load_state_dict(twin.state_dict(), strict=True)


@pytest.mark.parametrize("activation", [None, "silu", "concat_elu"])
@pytest.mark.parametrize("groups", [1, 4])
def test_steps_are_the_forward(groups: int, activation: str | None) -> None:
    layer, x = CausalConv1d(4, 8, 3, 5, groups, activation=activation), torch.randn(2, 4, 30)
    state, steps = layer.init_state(2), []
    assert state.shape == (2, 4, 10)
    for t in range(30):
        y, state = layer.step(x[:, :, t], state)
        steps.append(y)
    torch.testing.assert_close(torch.stack(steps, 2), layer(x))
    assert torch.equal(state, x[:, :, -10:])


def test_chunks_are_the_forward() -> None:
    layer, x = CausalConv1d(4, 8, 3, 5, activation="tanh"), torch.randn(2, 4, 30)
    state, chunks = layer.init_state(2), []
    for chunk in x.split([1, 9, 20], 2):
        y, state = layer.extend(chunk, state)
        chunks.append(y)
    torch.testing.assert_close(torch.cat(chunks, 2), layer(x))


def test_weight_norm_and_compile() -> None:
    layer = nn.utils.parametrizations.weight_norm(CausalConv1d(4, 8, 2, activation="relu"))
    x = torch.randn(2, 4, 9)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).sum().backward()
    assert layer.parametrizations.weight.original1.grad is not None


def test_repr_names_what_differs() -> None:
    text = repr(CausalConv1d(4, 8, 3, 2, 4, bias=False, activation="relu"))
    assert text == "CausalConv1d(4, 8, kernel_size=3, dilation=2, groups=4, bias=False, activation=relu)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4, 3), "in_channels: expected a positive"),
        ((4, 4, 0), "kernel_size: expected a positive"),
        ((4, 4, 3, -1), "dilation: expected a positive"),
        ((4, 6, 3, 1, 4), "groups: expected a divisor of out_channels = 6"),
        ((6, 4, 3, 1, 4), "groups: expected a divisor of in_channels = 6"),
    ],
)
def test_bad_sizes(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CausalConv1d(*arguments)


def test_bad_steps() -> None:
    layer = CausalConv1d(4, 8, 3)
    with pytest.raises(ValueError, match=r"state: expected shape \[2, 4, 2\]"):
        layer.step(torch.randn(2, 4), torch.zeros(2, 4, 3))
    with pytest.raises(ValueError, match=r"x_t: expected shape \[batch, 4\]"):
        layer.step(torch.randn(2, 5), layer.init_state(2))
    with pytest.raises(ValueError, match="activation: expected one of"):
        CausalConv1d(4, 8, 3, activation="swish")
