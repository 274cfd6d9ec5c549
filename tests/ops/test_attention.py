"""Causal attention against its reference in float64: every pattern, in every form, and its gradients."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from budget import assert_within_budget
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastar.ops import attention
from fastar.reference.attention import attention as reference
from fastar.reference.attention import visible

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


OP = sys.modules["fastar.ops.attention"]


@pytest.fixture(autouse=True)
def _in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small sizes, which are not worth it, are cut into blocks as well."""
    monkeypatch.setattr(OP, "LEAST_SAVED", 0)


PATTERNS: list[dict[str, Any]] = [
    {},
    {"window": 1},
    {"window": 9},
    {"window": 1000},
    {"local": (0, 3, 12)},
    {"local": (2, 1, 12)},
    {"local": (1, 50, 7)},
]


def inputs(
    B: int, heads: int, T: int, D: int, dtype: torch.dtype, kv_heads: int | None = None, S: int = 0
) -> list[Tensor]:
    shapes = (heads, T), *[(kv_heads or heads, S or T)] * 2
    return [torch.randn(B, h, t, D).to(dtype) for h, t in shapes]


def gradients(run: Callable[..., Tensor], grad: Tensor, tensors: list[Tensor], **options: Any) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = run(*leaves, **options)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype).expand_as(y))]


def absolute_sums(grad: Tensor, tensors: list[Tensor], scale: float | None = None, **pattern: Any) -> list[Tensor]:
    """The sums behind the result and each gradient, over the absolute values of their terms."""
    group = tensors[0].shape[1] // tensors[1].shape[1]
    q, k, v = tensors[0], *(t.repeat_interleave(group, 1) for t in tensors[1:])
    T, S = q.shape[2], k.shape[2]
    factor = q.shape[3] ** -0.5 if scale is None else scale
    seen = visible(torch.arange(S - T, S), torch.arange(S), **pattern)
    weights = torch.softmax((q @ k.mT * factor).masked_fill(~seen, -math.inf), -1)
    of_weights = grad.abs().expand_as(q) @ v.abs().mT
    # The gradient of a score is weight * (of_weight - sum of weights * of_weights), which is 0 where there is one key.
    of_scores = weights * (of_weights + (weights * of_weights).sum(-1, keepdim=True)) * factor
    by_head = of_scores.mT @ q.abs(), weights.mT @ grad.abs().expand_as(q)
    per_group = (t.unflatten(1, (-1, group)).sum(2) for t in by_head)
    return [weights @ v.abs(), of_scores @ k.abs(), *per_group]


def check_against_reference(grad: Tensor, tensors: list[Tensor], **options: Any) -> None:
    wide = [t.double() for t in tensors]
    ours = gradients(attention, grad, tensors, **options)
    same = gradients(reference, grad, tensors, **options)
    exact = gradients(reference, grad.double(), wide, **options)
    terms = absolute_sums(grad.double(), wide, **options)
    for what, a, b, c, size in zip(["y", "dq", "dk", "dv"], ours, same, exact, terms, strict=True):
        assert_within_budget(a, b, c, scale=size, what=what)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("saved", [0, 1 << 62])
def test_patterns(saved: int, dtype: torch.dtype, pattern: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OP, "LEAST_SAVED", saved)
    # 150 positions hold several blocks, and a last one of another length.
    check_against_reference(torch.randn(2, 3, 150, 8).to(dtype), inputs(2, 3, 150, 8, dtype), **pattern)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize(("T", "S"), [(1, 1), (1, 90), (40, 90), (90, 130)])
def test_queries_are_the_last_positions(T: int, S: int, pattern: dict[str, Any]) -> None:
    tensors = inputs(2, 4, T, 8, torch.float32, kv_heads=2, S=S)
    check_against_reference(torch.randn(2, 4, T, 8), tensors, scale=0.3, **pattern)


@given(
    B=st.integers(0, 3),
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2), (3, 3)]),
    T=st.integers(1, 120),
    more=st.integers(0, 70),
    D=st.integers(1, 9),
    layout=st.sampled_from(["contiguous", "transposed", "expanded"]),
    window=st.integers(1, 50) | st.none(),
    local=st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(1, 9)),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40, deadline=None)
def test_any_shape_and_stride(
    B: int, heads: tuple[int, int], T: int, more: int, D: int, layout: str, window: int | None,
    local: tuple[int, int, int], dtype: torch.dtype, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)

    def laid_out(t: Tensor) -> Tensor:
        if layout == "transposed":
            return t.transpose(1, 2).contiguous().transpose(1, 2)
        return t[:, :1].expand(t.shape) if layout == "expanded" else t

    tensors = [laid_out(t) for t in inputs(B, heads[0], T, D, dtype, heads[1], T + more)]
    pattern: dict[str, Any] = {"local": local} if window is None else {"window": window}
    check_against_reference(laid_out(torch.randn(B, heads[0], T, D).to(dtype)), tensors, **pattern)


def test_sum_backward_sends_an_expanded_gradient() -> None:
    check_against_reference(torch.ones(()), inputs(2, 2, 100, 4, torch.float32), window=5)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_position_depends_on_what_it_sees_alone(pattern: dict[str, Any]) -> None:
    q, k, v = (t.requires_grad_() for t in inputs(1, 1, 110, 4, torch.float32))
    y = attention(q, k, v, **pattern)
    seen = visible(torch.arange(110), torch.arange(110), **pattern)
    for t in (0, 1, 50, 109):
        for grad in torch.autograd.grad(y[0, 0, t].sum(), (k, v), retain_graph=True):
            assert (grad[0, 0, ~seen[t]] == 0).all()
        assert (grad[0, 0, seen[t]] != 0).all()


def test_what_the_neighbourhoods_are() -> None:
    t = torch.arange(5)
    assert visible(t, t, window=2).int().tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]
    ]  # fmt: skip
    # The pixel in row 2 and column 1 of an image 4 wide, one row up and one column to each side.
    seen = visible(torch.tensor([9]), torch.arange(12), local=(1, 1, 4))[0].view(3, 4)
    assert seen.int().tolist() == [[0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]]


def test_dropout_keeps_the_mean() -> None:
    q, k, v = inputs(1, 1, 80, 4, torch.float32)
    for pattern in ({}, {"window": 4}):
        dropped = torch.stack([attention(q, k, v, dropout=0.5, **pattern) for _ in range(400)])
        assert dropped.std(0).max() > 0.1
        torch.testing.assert_close(dropped.mean(0), attention(q, k, v, **pattern), atol=0.45, rtol=0)


def test_gradcheck_of_the_reference() -> None:
    tensors = [t.requires_grad_() for t in inputs(1, 2, 5, 2, torch.float64)]
    for run in (reference, attention):
        assert torch.autograd.gradcheck(lambda *t, f=run: f(*t, window=3), tensors)


@pytest.mark.parametrize("pattern", [{}, {"window": 9}, {"local": (1, 2, 8)}], ids=str)
def test_compile_fullgraph(pattern: dict[str, Any]) -> None:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, **pattern)

    tensors, grad = inputs(2, 2, 100, 4, torch.float32), torch.randn(2, 2, 100, 4)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for one, other in zip(gradients(compiled, grad, tensors), gradients(run, grad, tensors), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    tensors = inputs(2, 2, 100, 4, torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        y = attention(tensors[0], tensors[1].to(dtype), tensors[2], window=5)
    assert y.dtype == dtype
    torch.testing.assert_close(y, attention(*(t.to(dtype) for t in tensors), window=5))


def test_training_follows_the_reference() -> None:
    """200 steps of Adam on fixed data, where each output is to recall the input three positions before."""
    torch.manual_seed(0)
    data = torch.randn(8, 80, 4)
    first = [torch.randn(4, 8) * 0.5 for _ in range(3)]
    place = torch.randn(80, 8)

    def curve(dtype: torch.dtype, run: Callable[..., Tensor]) -> Tensor:
        weights = [w.to(dtype).clone().requires_grad_() for w in (*first, place)]
        optimiser = torch.optim.Adam(weights, lr=2e-2)
        x, losses = data.to(dtype), []
        for _ in range(200):
            optimiser.zero_grad()
            q, k, v = (x @ w for w in weights[:3])
            y = run(*((t + p)[:, None] for t, p in ((q, weights[3]), (k, weights[3].roll(3, 0)), (v, 0))), window=8)
            loss = (y[:, 0, 3:, :4] - x[:, :-3]).square().mean()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    exact = curve(torch.float64, reference)
    assert exact[-1] < 0.5 * exact[0]
    assert_within_budget(curve(torch.float32, attention), curve(torch.float32, reference), exact, what="loss curve")


Q = torch.randn(2, 4, 6, 8)


def call(**changed: Any) -> Callable[[], Any]:
    return lambda: attention(**{"q": Q, "k": Q, "v": Q, **changed})


BAD: list[tuple[str, type[Exception], str, Callable[[], Any]]] = [
    ("no tensor", TypeError, "q: expected a tensor, got list", call(q=[0.0])),
    ("integer", TypeError, "k: expected dtype", call(k=Q.long())),
    ("dimensions", ValueError, r"q: expected shape \[B, heads, T, D\]", call(q=Q[0])),
    ("head size", ValueError, r"k: expected shape \[2, kv_heads, S, 8\]", call(k=Q[..., :4])),
    ("value", ValueError, r"v: expected shape \[2, 4, 6, 8\]", call(v=Q[:, :2])),
    ("heads", ValueError, "k: expected a number of heads that divides q's 4, got 3", call(k=Q[:, :3], v=Q[:, :3])),
    ("short", ValueError, "k: expected at least as many positions as q, 6, got 5", call(k=Q[:, :, :5], v=Q[:, :, :5])),
    ("dtypes", TypeError, "v: expected the dtype of q", call(v=Q.half())),
    ("devices", ValueError, "v: expected the device of q", call(v=Q.to("meta"))),
    ("window", ValueError, "window: expected a positive integer, got 0", call(window=0)),
    ("window type", TypeError, "window: expected a positive integer", call(window=2.0)),
    ("both", ValueError, "local: expected either", call(window=2, local=(1, 1, 3))),
    ("local size", ValueError, "local: expected \\(rows, columns, image width\\)", call(local=(1, 1))),
    ("local type", TypeError, "local: expected .* as integers", call(local=(1, 1.5, 3))),
    ("local range", ValueError, "local: expected rows and columns of at least 0", call(local=(1, -1, 3))),
    ("dropout", ValueError, "dropout: expected a probability", call(dropout=1.0)),
]


@pytest.mark.parametrize(("error", "message", "run"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_named(error: type[Exception], message: str, run: Callable[[], Any]) -> None:
    with pytest.raises(error, match=message):
        run()
