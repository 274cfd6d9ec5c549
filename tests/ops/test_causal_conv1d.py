"""The causal convolution against its reference in float64: forward and every gradient, on each implementation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from budget import assert_within_budget
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastar import _dispatch
from fastar.native import core
from fastar.ops import causal_conv1d
from fastar.ops.causal_conv1d import final_state
from fastar.reference import activation as activations
from fastar.reference.causal_conv1d import causal_conv1d as reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FUSED = list(activations.APPLY)
# batch, in, out, length, kernel_size, dilation, groups
SHAPES = [
    (2, 5, 7, 131, 3, 4, 1),
    (1, 64, 33, 300, 2, 64, 1),
    (2, 150, 20, 97, 3, 1, 1),
    (3, 6, 4, 50, 4, 2, 2),
    (2, 8, 8, 200, 4, 1, 8),
    (2, 8, 16, 77, 3, 5, 8),
    (1, 1, 40, 100, 2, 1, 1),
    (2, 3, 9, 600, 1, 1, 1),
    (2, 4, 4, 9, 3, 11, 4),
    (2, 4, 5, 9, 3, 11, 1),
]


def gradients(run: Callable[..., Tensor], grad: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Output and gradients of `run`, of leaves made from the inputs."""
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    y = run(**leaves)
    return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), grad.to(y.dtype))]


def check(inputs: dict[str, Tensor], grad: Tensor, activation: str, **call: Any) -> None:
    ours = gradients(lambda **t: causal_conv1d(**t, activation=activation, **call), grad, inputs)
    same = gradients(lambda **t: reference(**t, activation=activation, **call), grad, inputs)
    doubled = {name: t.double() for name, t in inputs.items()}
    exact = gradients(lambda **t: reference(**t, activation=activation, **call), grad.double(), doubled)
    # Sums of terms of both signs: their size is that of the absolute terms.
    sizes = {name: t.abs() for name, t in doubled.items()}
    terms = gradients(lambda **t: reference(**t, **call), grad.double().abs(), sizes)
    for what, a, b, c, size in zip(["y", *inputs], ours, same, exact, terms, strict=True):
        assert_within_budget(a, b, c, scale=torch.maximum(c.abs(), size), what=what)


def tensors(
    shape: tuple[int, ...], dtype: torch.dtype, *, bias: bool = True, state: bool = False
) -> tuple[dict[str, Tensor], Tensor]:
    """The inputs by name, and a gradient of the output."""
    batch, inputs, outputs, length, taps, dilation, groups = shape
    made = {
        "x": torch.randn(batch, inputs, length),
        "weight": torch.randn(outputs, inputs // groups, taps) / math.sqrt(taps * inputs // groups),
    }
    if bias:
        made["bias"] = torch.randn(outputs)
    if state:
        made["initial_state"] = torch.randn(batch, inputs, (taps - 1) * dilation)
    return {name: t.to(dtype) for name, t in made.items()}, torch.randn(batch, outputs, length).to(dtype)


def index_of(batch: int, length: int) -> Tensor:
    """Sequences of seven and of thirteen times."""
    return torch.stack([torch.arange(length) // (7 if row % 2 else 13) for row in range(batch)])


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
@pytest.mark.parametrize("past", ["zeros", "state", "index"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes(implementation: str, past: str, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        inputs, grad = tensors(shape, dtype, state=past == "state")
        index = index_of(shape[0], shape[3]) if past == "index" else None
        with _dispatch.forced("causal_conv1d", implementation):
            check(inputs, grad, "none", dilation=shape[5], groups=shape[6], sequence_index=index)


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
@pytest.mark.parametrize("activation", FUSED)
@pytest.mark.parametrize("groups", [1, 8])
def test_activations(implementation: str, activation: str, groups: int) -> None:
    inputs, grad = tensors((2, 8, 8, 70, 3, 2, groups), torch.float32, state=True)
    with _dispatch.forced("causal_conv1d", implementation):
        check(inputs, grad, activation, dilation=2, groups=groups)


def test_concat_elu_doubles_the_channels() -> None:
    x, weight = torch.randn(2, 3, 9), torch.randn(4, 3, 2)
    z = reference(x, weight)
    torch.testing.assert_close(causal_conv1d(x, weight, activation="concat_elu"), F.elu(torch.cat([z, -z], 1)))


@given(
    batch=st.integers(0, 3),
    groups=st.integers(1, 3),
    inputs=st.integers(1, 12),
    outputs=st.integers(1, 12),
    length=st.integers(0, 120),
    taps=st.integers(1, 5),
    dilation=st.integers(1, 9),
    layout=st.sampled_from(["contiguous", "channels_last", "strided", "expanded"]),
    past=st.sampled_from(["zeros", "state", "index"]),
    activation=st.sampled_from(["none", "relu", "silu", "gelu"]),
    has_bias=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40, deadline=None)
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
    activation: str,
    has_bias: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    shape = (batch, inputs * groups, outputs * groups, length, taps, dilation, groups)
    made, grad = tensors(shape, dtype, bias=has_bias, state=past == "state")
    if layout == "channels_last":
        made = {name: t if t.dim() == 1 else t.mT.contiguous().mT for name, t in made.items()}
        grad = grad.mT.contiguous().mT
    elif layout == "strided":
        made = {name: torch.stack([t, t], -1)[..., 0] for name, t in made.items()}
        grad = torch.stack([grad, grad], -1)[..., 0]
    elif layout == "expanded":
        made["x"] = torch.randn(1, shape[1], 1).to(dtype).expand(made["x"].shape)
        grad = torch.randn(1, 1, length).to(dtype).expand(grad.shape)
    index = index_of(batch, length) if past == "index" and batch else None
    if length == 0:
        y = causal_conv1d(**made, dilation=dilation, groups=groups, activation=activation)
        assert y.shape == (batch, shape[2], 0)
        return
    check(made, grad, activation, dilation=dilation, groups=groups, sequence_index=index)


@pytest.mark.parametrize("groups", [1, 6])
@pytest.mark.parametrize("past", ["zeros", "index"])
def test_outputs_see_no_later_input(groups: int, past: str) -> None:
    x = torch.randn(1, 6, 40, requires_grad=True)
    weight = torch.randn(6, 6 // groups, 3)
    index = index_of(1, 40) if past == "index" else None
    y = causal_conv1d(x, weight, dilation=5, groups=groups, sequence_index=index)
    for t in range(40):
        (gradient,) = torch.autograd.grad(y[:, :, t].sum(), x, retain_graph=True)
        seen = {t - 5 * k for k in range(3) if t >= 5 * k}
        if index is not None:
            seen = {s for s in seen if index[0, s] == index[0, t]}
        assert set(gradient[0].abs().sum(0).nonzero().flatten().tolist()) == seen


@pytest.mark.parametrize("groups", [1, 6])
def test_packed_sequences_are_those_sequences(groups: int) -> None:
    weight, bias = torch.randn(6, 6 // groups, 4), torch.randn(6)
    parts = [torch.randn(1, 6, length) for length in (3, 50, 1, 60)]
    index = torch.cat([torch.full((1, part.shape[2]), i) for i, part in enumerate(parts)], 1)
    y = causal_conv1d(torch.cat(parts, 2), weight, bias, dilation=2, groups=groups, sequence_index=index)
    alone = [causal_conv1d(part, weight, bias, dilation=2, groups=groups) for part in parts]
    torch.testing.assert_close(y, torch.cat(alone, 2))


@pytest.mark.parametrize("chunk", [1, 3, 50])
def test_chunks_joined_by_their_states_are_the_whole(chunk: int) -> None:
    x, weight = torch.randn(2, 4, 100), torch.randn(5, 4, 3)
    state, parts = torch.zeros(2, 4, 14), []
    for part in x.split(chunk, 2):
        parts.append(causal_conv1d(part, weight, dilation=7, initial_state=state))
        state = final_state(part, 14, state)
    torch.testing.assert_close(torch.cat(parts, 2), causal_conv1d(x, weight, dilation=7))
    assert torch.equal(state, x[:, :, -14:])
    assert torch.equal(final_state(x[:, :, :3], 5), F.pad(x[:, :, :3], (2, 0)))


def test_threads_do_not_change_a_bit() -> None:
    before = torch.get_num_threads()
    try:
        for shape in SHAPES:
            inputs, grad = tensors(shape, torch.float32)
            results = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(
                    gradients(lambda s=shape, **t: causal_conv1d(**t, dilation=s[5], groups=s[6]), grad, inputs)
                )
            # The gradient of the bias is torch's own sum.
            for one in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(one[:3], results[0][:3], strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("level", core().levels_usable())
def test_vector_levels(level: str) -> None:
    usual = core().level()
    core().select_level(level)
    try:
        for dtype in DTYPES:
            for shape in SHAPES:
                inputs, grad = tensors(shape, dtype, state=True)
                check(inputs, grad, "tanh", dilation=shape[5], groups=shape[6])
    finally:
        core().select_level(usual)


def test_frozen_tensors_get_no_gradient() -> None:
    for groups in (1, 4):
        x, weight = torch.randn(2, 4, 9), torch.randn(4, 4 // groups, 3, requires_grad=True)
        causal_conv1d(x, weight, groups=groups, activation="silu").sum().backward()
        assert x.grad is None
        assert weight.grad is not None


@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("past", ["zeros", "state", "index"])
def test_opcheck(activation: str, groups: int, past: str) -> None:
    inputs, grad = tensors((2, 4, 4, 9, 3, 2, groups), torch.float32)
    state = torch.randn(2, 4, 4) if past == "state" else None
    index = index_of(2, 9).int() if past == "index" else None
    keep = activation == "silu" and groups == 1
    for learn in (False, True):
        given = [None if t is None else t.clone().requires_grad_(learn) for t in (*inputs.values(), state)]
        torch.library.opcheck(torch.ops.fastar.causal_conv1d.default, (*given, index, 2, groups, activation, keep))
    saved = None if activation == "none" or groups == 4 else torch.randn(2, 4, 9)
    x, weight, bias = inputs.values()
    torch.library.opcheck(
        torch.ops.fastar.causal_conv1d_backward.default,
        (grad, x, saved, weight, bias, state, index, 2, groups, activation, [True, True, False, state is not None]),
    )


@pytest.mark.parametrize("run", [reference, causal_conv1d])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("past", ["zeros", "state", "index"])
def test_gradcheck(run: Callable[..., Tensor], groups: int, past: str) -> None:
    made, _ = tensors((2, 4, 4, 6, 3, 2, groups), torch.float64, state=past == "state")
    index = index_of(2, 6) // 2 if past == "index" else None

    def call(*values: Tensor) -> Tensor:
        named = dict(zip(made, values, strict=True))
        return run(**named, dilation=2, groups=groups, activation="silu", sequence_index=index)

    assert torch.autograd.gradcheck(call, [t.requires_grad_() for t in made.values()])


@pytest.mark.parametrize("groups", [1, 4])
def test_compile_fullgraph(groups: int) -> None:
    inputs, grad = tensors((2, 4, 4, 30, 3, 2, groups), torch.float32, state=True)

    def model(x: Tensor, weight: Tensor, bias: Tensor, initial_state: Tensor) -> Tensor:
        return causal_conv1d(
            x.sin(), weight, bias, dilation=2, groups=groups, activation="silu", initial_state=initial_state
        ).cos()

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for ours, plain in zip(gradients(compiled, grad, inputs), gradients(model, grad, inputs), strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_torchs(dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(2, 6, 20), torch.randn(9, 6, 3, requires_grad=True), torch.randn(9)
    with torch.autocast("cpu", dtype=dtype):
        ours, plain = causal_conv1d(x, weight, bias), F.conv1d(F.pad(x, (2, 0)), weight, bias)
    assert ours.dtype == plain.dtype == dtype
    torch.testing.assert_close(ours, plain)
    (gradient,) = torch.autograd.grad(ours.float().sum(), weight)
    assert gradient.dtype == torch.float32


def test_second_order_and_vmap_are_refused() -> None:
    x, weight = torch.randn(2, 3, 8, requires_grad=True), torch.randn(5, 3, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(causal_conv1d(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second-order gradients are not available"):
        gradient.sum().backward()
    with pytest.raises(RuntimeError, match="vmap is not available"):
        torch.vmap(lambda one: causal_conv1d(one, weight))(torch.randn(4, 2, 3, 8))


X, WEIGHT = torch.randn(2, 4, 9), torch.randn(6, 4, 3)
STATE, INDEX = torch.zeros(2, 4, 2), torch.zeros(2, 9, dtype=torch.int32)
BAD: list[tuple[str, type[Exception], str, Callable[[], Any]]] = [
    ("integer x", TypeError, "x: expected dtype", lambda: causal_conv1d(X.long(), WEIGHT)),
    ("x no tensor", TypeError, "x: expected a tensor, got list", lambda: causal_conv1d([1.0], WEIGHT)),  # type: ignore[arg-type]
    ("channels of x", ValueError, r"x: expected shape \[batch, 4, time\]", lambda: causal_conv1d(X[:, :3], WEIGHT)),
    ("x without batch", ValueError, r"x: expected shape \[batch, 4, time\]", lambda: causal_conv1d(X[0], WEIGHT)),
    ("weight 2-D", ValueError, "weight: expected shape", lambda: causal_conv1d(X, WEIGHT[0])),
    ("no taps", ValueError, "weight: expected at least one tap", lambda: causal_conv1d(X, WEIGHT[:, :, :0])),
    ("weight dtype", TypeError, "weight: expected the dtype of x", lambda: causal_conv1d(X, WEIGHT.half())),
    ("weight device", ValueError, "weight: expected the device of x", lambda: causal_conv1d(X, WEIGHT.to("meta"))),
    ("bias shape", ValueError, r"bias: expected shape \[6\]", lambda: causal_conv1d(X, WEIGHT, torch.randn(4))),
    ("dilation 0", ValueError, "dilation: expected a positive", lambda: causal_conv1d(X, WEIGHT, dilation=0)),
    ("dilation -1", ValueError, "dilation: expected a positive", lambda: causal_conv1d(X, WEIGHT, dilation=-1)),
    ("dilation 1.5", TypeError, "dilation: expected a positive", lambda: causal_conv1d(X, WEIGHT, dilation=1.5)),  # type: ignore[arg-type]
    ("groups", ValueError, "groups: expected a divisor of the 6", lambda: causal_conv1d(X, WEIGHT, groups=4)),
    ("activation", ValueError, "activation: expected one of", lambda: causal_conv1d(X, WEIGHT, activation="swish")),
    ("length of the state", ValueError, r"initial_state: expected shape \[2, 4, 4\]", lambda: causal_conv1d(
        X, WEIGHT, dilation=2, initial_state=STATE)),
    ("state dtype", TypeError, "initial_state: expected dtype", lambda: causal_conv1d(
        X, WEIGHT, initial_state=STATE.half())),
    ("state and index", ValueError, "initial_state: expected either", lambda: causal_conv1d(
        X, WEIGHT, initial_state=STATE, sequence_index=INDEX)),
    ("index shape", ValueError, r"sequence_index: expected shape \[2, 9\]", lambda: causal_conv1d(
        X, WEIGHT, sequence_index=INDEX[:, :8])),
    ("float index", TypeError, "sequence_index: expected dtype", lambda: causal_conv1d(
        X, WEIGHT, sequence_index=INDEX.float())),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "call"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_named(error: type[Exception], message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("groups", [1, 8])
def test_training_follows_the_reference(groups: int) -> None:
    """200 steps of Adam on a fixed regression: the fast op's loss curve is the reference's."""
    x, target = torch.randn(4, 8, 40), torch.randn(4, 8, 40)
    first, second = torch.randn(8, 8 // groups, 3) / 4, torch.randn(8, 8, 2) / 4

    def curve(dtype: torch.dtype, layer: Callable[..., Tensor]) -> Tensor:
        w1, w2 = (w.to(dtype).clone().requires_grad_() for w in (first, second))
        optimiser = torch.optim.Adam([w1, w2], lr=3e-3)
        losses = []
        for _ in range(200):
            optimiser.zero_grad()
            y = layer(layer(x.to(dtype), w1, dilation=2, groups=groups, activation="tanh"), w2)
            loss = (y - target.to(dtype)).square().mean()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    ours, plain = curve(torch.float32, causal_conv1d), curve(torch.float32, reference)
    exact = curve(torch.float64, reference)
    assert exact[-1] < 0.95 * exact[0]
    assert_within_budget(ours, plain, exact, what="loss curve")
