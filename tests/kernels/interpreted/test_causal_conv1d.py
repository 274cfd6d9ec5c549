"""The causal convolution's Triton kernels in the interpreter, against the reference in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from budget import assert_within_budget
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastar import _dispatch
from fastar.kernels import _tiles
from fastar.kernels._launch import Config
from fastar.ops import causal_conv1d
from fastar.reference import activation as activations
from fastar.reference.causal_conv1d import causal_conv1d as reference

# The interpreter gets bfloat16 products wrong.
DTYPES = [torch.float32, torch.float16]


def check(inputs: dict[str, Tensor], grad: Tensor, activation: str, **call: Any) -> None:
    """Forward and all gradients, through the op, against the reference."""

    def gradients(run: Any, values: dict[str, Tensor], grad: Tensor, activation: str) -> list[Tensor]:
        leaves = {name: t.detach().requires_grad_() for name, t in values.items()}
        y = run(**leaves, activation=activation, **call)
        return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), grad)]

    with _dispatch.forced("causal_conv1d", "triton"):
        ours = gradients(causal_conv1d, inputs, grad, activation)
    same = gradients(reference, inputs, grad, activation)
    doubled = {name: t.double() for name, t in inputs.items()}
    exact = gradients(reference, doubled, grad.double(), activation)
    sizes = gradients(reference, {name: t.abs() for name, t in doubled.items()}, grad.double().abs(), "none")
    for what, a, b, c, size in zip(["y", *inputs], ours, same, exact, sizes, strict=True):
        assert_within_budget(a, b, c, scale=torch.maximum(c.abs(), size), what=what)


def tensors(shape: tuple[int, ...], dtype: torch.dtype, past: str) -> tuple[dict[str, Tensor], Tensor, Any]:
    batch, inputs, outputs, length, taps, dilation, groups = shape
    made = {
        "x": torch.randn(batch, inputs, length),
        "weight": torch.randn(outputs, inputs // groups, taps) / math.sqrt(taps * inputs // groups),
        "bias": torch.randn(outputs),
    }
    if past == "state":
        made["initial_state"] = torch.randn(batch, inputs, (taps - 1) * dilation)
    index = (torch.arange(length) // 7).repeat(batch, 1) if past == "index" else None
    grad = torch.randn(batch, outputs, length).to(dtype)
    return {name: t.to(dtype) for name, t in made.items()}, grad, index


@pytest.mark.parametrize(
    ("past", "dtype"), [("zeros", torch.float32), ("state", torch.float16), ("index", torch.float32)]
)
@pytest.mark.parametrize(
    "shape", [(2, 33, 40, 70, 3, 4, 1), (1, 6, 4, 50, 4, 2, 2), (2, 8, 8, 40, 4, 1, 8), (2, 4, 8, 37, 3, 5, 4)]
)
def test_shapes(shape: tuple[int, ...], past: str, dtype: torch.dtype) -> None:
    inputs, grad, index = tensors(shape, dtype, past)
    check(inputs, grad, "none", dilation=shape[5], groups=shape[6], sequence_index=index)


@pytest.mark.parametrize(
    ("activation", "groups"), [*((name, 1) for name in activations.APPLY), ("relu", 4), ("silu", 4), ("tanh", 4)]
)
def test_activations(activation: str, groups: int) -> None:
    inputs, grad, _ = tensors((2, 4, 4, 20, 2, 3, groups), torch.float32, "state")
    check(inputs, grad, activation, dilation=3, groups=groups)


@pytest.mark.parametrize("config", [Config(128, 128, 64, 8, 4), Config(64, 32, 16, 4, 3)])
def test_tiles_of_the_cards(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tiles, "configs", lambda *_: [config])
    inputs, grad, _ = tensors((2, 40, 70, 130, 2, 16, 1), torch.float32, "zeros")
    check(inputs, grad, "tanh", dilation=16)


@given(
    batch=st.integers(0, 2),
    groups=st.integers(1, 2),
    inputs=st.integers(1, 5),
    outputs=st.integers(1, 5),
    length=st.integers(1, 40),
    taps=st.integers(1, 4),
    dilation=st.integers(1, 9),
    layout=st.sampled_from(["contiguous", "channels_last", "expanded"]),
    past=st.sampled_from(["zeros", "state", "index"]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=8, deadline=None)
def test_any_shape_and_stride(
    batch: int,
    groups: int,
    inputs: int,
    outputs: int,
    length: int,
    taps: int,
    dilation: int,
    layout: str,
    past: str,
    dtype: torch.dtype,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    shape = (batch, inputs * groups, outputs * groups, length, taps, dilation, groups)
    made, grad, index = tensors(shape, dtype, past)
    if layout == "channels_last":
        made = {name: t if t.dim() == 1 else t.mT.contiguous().mT for name, t in made.items()}
        grad = grad.mT.contiguous().mT
    elif layout == "expanded":
        made["x"] = torch.randn(1, shape[1], 1).to(dtype).expand(made["x"].shape)
        grad = torch.randn(1, 1, length).to(dtype).expand(grad.shape)
    check(made, grad, "silu", dilation=dilation, groups=groups, sequence_index=index)
