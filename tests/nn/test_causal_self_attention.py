"""CausalSelfAttention: what it computes, position by position as well, GPT-2's weights, and errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastar.nn import CausalSelfAttention
from fastar.reference.attention import attention as reference

OPTIONS: list[dict[str, Any]] = [
    {},
    {"kv_heads": 2},
    {"kv_heads": 1, "bias": False, "window": 5},
    {"local": (1, 2, 6)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_is_the_reference_between_two_products(options: dict[str, Any]) -> None:
    layer, x = CausalSelfAttention(16, 4, **options), torch.randn(2, 30, 16)
    kv = 4 * options.get("kv_heads", 4)
    q, k, v = F.linear(x, layer.qkv.weight, layer.qkv.bias).split([16, kv, kv], -1)
    heads = [t.unflatten(-1, (-1, 4)).transpose(1, 2) for t in (q, k, v)]
    y = reference(*heads, window=options.get("window"), local=options.get("local"))
    torch.testing.assert_close(layer(x), F.linear(y.transpose(1, 2).flatten(2), layer.proj.weight, layer.proj.bias))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_steps_are_the_parallel_form(options: dict[str, Any]) -> None:
    layer, x = CausalSelfAttention(16, 4, **options), torch.randn(3, 30, 16)
    state = layer.init_state(3, 30)
    outputs = []
    for t in range(30):
        y, state = layer.step(x[:, t], state)
        outputs.append(y)
    assert state.position == 30
    torch.testing.assert_close(torch.stack(outputs, 1), layer(x))
    with pytest.raises(ValueError, match="state: expected room for another position, got 30 of 30 taken"):
        layer.step(x[:, 0], state)


def test_an_old_state_can_be_continued() -> None:
    layer, x = CausalSelfAttention(8, 2), torch.randn(2, 3, 8)
    _, first = layer.step(x[:, 0], layer.init_state(2, 3))
    _, second = layer.step(x[:, 1], first)
    layer.step(x[:, 2], second)
    y, _ = layer.step(x[:, 2], first)
    torch.testing.assert_close(y, layer(x[:, [0, 2]])[:, 1])


def test_output_depends_on_no_later_input() -> None:
    layer, x = CausalSelfAttention(8, 2), torch.randn(1, 9, 8, requires_grad=True)
    y = layer(x)
    for t in range(9):
        (seen,) = torch.autograd.grad(y[:, t].sum(), x, retain_graph=True)
        assert (seen[:, t + 1 :] == 0).all()
        assert (seen[:, : t + 1] != 0).all()


def test_weights_as_gpt2_stores_them() -> None:
    """c_attn [width, 3 width] and c_proj [width, width], to be multiplied from the right."""
    width, heads = 12, 3
    stored = {"c_attn.weight": torch.randn(width, 3 * width), "c_attn.bias": torch.randn(3 * width)}
    stored |= {"c_proj.weight": torch.randn(width, width), "c_proj.bias": torch.randn(width)}
    layer, x = CausalSelfAttention(width, heads), torch.randn(2, 7, width)
    layer.load_state_dict({
        "qkv.weight": stored["c_attn.weight"].T, "qkv.bias": stored["c_attn.bias"],
        "proj.weight": stored["c_proj.weight"].T, "proj.bias": stored["c_proj.bias"],
    })  # fmt: skip
    q, k, v = (x @ stored["c_attn.weight"] + stored["c_attn.bias"]).chunk(3, -1)
    merged = torch.cat([reference(*(t[:, None, :, i : i + 4] for t in (q, k, v)))[:, 0] for i in (0, 4, 8)], -1)
    torch.testing.assert_close(layer(x), merged @ stored["c_proj.weight"] + stored["c_proj.bias"])


def test_dropout_is_for_training() -> None:
    layer, x = CausalSelfAttention(8, 2, dropout=0.5), torch.randn(1, 9, 8)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_dtype_autocast_and_description() -> None:
    layer = CausalSelfAttention(8, 4, kv_heads=2, window=3, dropout=0.1, dtype=torch.bfloat16)
    assert layer(torch.randn(2, 5, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert layer.init_state(2, 3).key.dtype == torch.bfloat16
    assert "width=8, heads=4, kv_heads=2, window=3, dropout=0.1" in repr(layer)
    wide = CausalSelfAttention(8, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = wide.step(torch.randn(2, 8), wide.init_state(2, 3))
    assert y.dtype == torch.bfloat16
    assert state.key.dtype == torch.float32


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "width: expected a positive integer", {"width": 0}),
        (ValueError, "heads: expected a divisor of the width 8, got 3", {"heads": 3}),
        (ValueError, "kv_heads: expected a divisor of the number of heads 4, got 3", {"kv_heads": 3}),
        (ValueError, "window: expected a positive integer", {"window": -1}),
        (ValueError, "local: expected", {"local": (1,)}),
        (ValueError, "dropout: expected", {"dropout": -0.1}),
    ],
)
def test_bad_options_are_named(error: type[Exception], message: str, options: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        CausalSelfAttention(**{"width": 8, "heads": 4, **options})


def test_bad_input_is_named() -> None:
    layer = CausalSelfAttention(8, 2)
    state = layer.init_state(2, 3)
    with pytest.raises(ValueError, match=r"x: expected shape \[B, T, 8\]"):
        layer(torch.randn(2, 8))
    with pytest.raises(ValueError, match=r"x_t: expected shape \[B, 8\]"):
        layer.step(torch.randn(2, 1, 8), state)
    with pytest.raises(ValueError, match=r"state.key: expected shape \[3, 2, length, 4\]"):
        layer.step(torch.randn(3, 8), state)
    with pytest.raises(ValueError, match=r"state.value: expected shape"):
        layer.step(torch.randn(2, 8), state._replace(value=state.value[:, :, :2]))
    with pytest.raises(ValueError, match="length: expected a positive integer"):
        layer.init_state(2, 0)
    with pytest.raises(ValueError, match="batch: expected an integer"):
        layer.init_state(-1, 3)
