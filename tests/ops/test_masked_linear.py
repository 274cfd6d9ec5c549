"""The masked linear op against its reference in float64: forward and every gradient, on each CPU implementation."""

from __future__ import annotations

import functools
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
from fastar.ops import _masked_linear_cpu, _packed, masked_linear
from fastar.ops.mask_plan import MaskPlan
from fastar.ops.masked_linear import plan_of
from fastar.reference import activation as activations
from fastar.reference.masked_linear import mask_from_degrees
from fastar.reference.masked_linear import masked_linear as reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FUSED = list(activations.APPLY)


@pytest.fixture(autouse=True, params=["blocks", "whole"])
def _small_weights(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs on the sorted blocks and on the whole masked weight, whatever its sizes."""
    monkeypatch.setattr(_masked_linear_cpu, "SMALL", 0 if request.param == "blocks" else 1 << 62)


def degrees(size: int, top: int, generator: torch.Generator) -> Tensor:
    return torch.randint(1, top + 1, (size,), generator=generator)


def make_mask(kind: str, rows: int, columns: int, generator: torch.Generator) -> tuple[dict[str, Any], Tensor | None]:
    """Arguments of the op, and the mask that they mean."""
    if kind == "none":
        return {}, None
    if kind in {"degrees", "strict", "sorted"}:
        ins, outs = degrees(columns, 9, generator), degrees(rows, 9, generator)
        if kind == "sorted":
            ins, outs = ins.sort().values, outs.sort().values
        strict = kind == "strict"
        return {"in_degrees": ins, "out_degrees": outs, "strict": strict}, mask_from_degrees(ins, outs, strict)
    if kind == "nested":
        mask = mask_from_degrees(degrees(columns, 9, generator), degrees(rows, 9, generator))
    elif kind == "random":
        mask = torch.rand(rows, columns, generator=generator) < 0.5
    elif kind == "empty":
        mask = torch.zeros(rows, columns, dtype=torch.bool)
    else:  # bands: whole blocks are empty, and so are some rows
        position = torch.arange(rows)[:, None] * columns // max(rows, 1) - torch.arange(columns)[None, :]
        mask = (position.abs() < columns // 5 + 1) & (torch.arange(rows)[:, None] % 7 != 3)
    return {"mask": mask}, mask


# Where the budget's float64 comparison is not the point; float32 sums in another order differ by this at most.
close = functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)


def gradients(run: Callable[..., Tensor], grad: Tensor, *inputs: Tensor | None) -> list[Tensor]:
    """Output and gradients of `run`, of leaves made from the inputs."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
    y = run(*leaves)
    wanted = [t for t in leaves if t is not None]
    return [y.detach(), *torch.autograd.grad(y, wanted, grad.to(y.dtype).expand_as(y))]


def check_against_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grad: Tensor,
    call: dict[str, Any],
    mask: Tensor | None,
    activation: str,
) -> None:
    def fast(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return masked_linear(x, weight, bias, activation=activation, **call)

    def plain(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return reference(x, weight, bias, mask, activation)

    inputs = [x, weight] if bias is None else [x, weight, bias]
    ours = gradients(fast, grad, *inputs)
    same = gradients(plain, grad, *inputs)
    exact = gradients(plain, grad.double(), *(t.double() for t in inputs))
    # Sums over the batch of terms of both signs: their size is that of the absolute terms.
    terms = gradients(
        lambda x, w, b=None: reference(x, w, b, mask), grad.double().abs(), *(t.double().abs() for t in inputs)
    )
    for what, a, b, c, size in zip(["y", "dx", "dweight", "dbias"], ours, same, exact, terms, strict=False):
        assert_within_budget(a, b, c, scale=torch.maximum(c.abs(), size), what=what)
    if mask is not None:
        assert (ours[2][~mask] == 0).all()


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
@pytest.mark.parametrize("kind", ["none", "degrees", "strict", "sorted", "nested", "random", "bands", "empty"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_masks(implementation: str, kind: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(len(kind))
    call, mask = make_mask(kind, 331, 277, generator)
    x = torch.randn(19, 277, generator=generator).to(dtype)
    weight = torch.randn(331, 277, generator=generator).to(dtype)
    bias = torch.randn(331, generator=generator).to(dtype)
    grad = torch.randn(19, 331, generator=generator).to(dtype)
    with _dispatch.forced("masked_linear", implementation):
        check_against_reference(x, weight, bias, grad, call, mask, "none")


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
@pytest.mark.parametrize("activation", FUSED)
def test_activations(implementation: str, activation: str) -> None:
    generator = torch.Generator().manual_seed(3)
    call, mask = make_mask("degrees", 65, 40, generator)
    weight = torch.randn(65, 40, generator=generator) / math.sqrt(40)
    x, bias = torch.randn(11, 40, generator=generator), torch.randn(65, generator=generator)
    with _dispatch.forced("masked_linear", implementation):
        check_against_reference(x, weight, bias, torch.randn(11, 65, generator=generator), call, mask, activation)


def test_concat_elu_doubles_the_outputs() -> None:
    x, weight = torch.randn(5, 7), torch.randn(6, 7)
    y = masked_linear(x, weight, activation="concat_elu")
    z = F.linear(x, weight)
    close(y, F.elu(torch.cat([z, -z], -1)))


@given(
    batch=st.integers(0, 5),
    rows=st.integers(1, 150),
    columns=st.integers(1, 150),
    kind=st.sampled_from(["none", "degrees", "strict", "nested", "random", "bands", "empty"]),
    has_bias=st.booleans(),
    layout=st.sampled_from(["contiguous", "transposed", "strided", "expanded"]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_and_stride(
    batch: int, rows: int, columns: int, kind: str, has_bias: bool, layout: str, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    call, mask = make_mask(kind, rows, columns, generator)

    def matrix(m: int, n: int) -> Tensor:
        if layout == "transposed":
            return torch.randn(n, m, generator=generator).to(dtype).T
        if layout == "strided":
            return torch.randn(2 * m, 3 * n, generator=generator).to(dtype)[::2, ::3]
        if layout == "expanded":
            return torch.randn(1, n, generator=generator).to(dtype).expand(m, n)
        return torch.randn(m, n, generator=generator).to(dtype)

    bias = torch.randn(rows, generator=generator).to(dtype) if has_bias else None
    check_against_reference(
        matrix(batch, columns), matrix(rows, columns), bias, matrix(batch, rows), call, mask, "none"
    )


@pytest.mark.parametrize("shape", [(8,), (2, 8), (2, 3, 8), (0, 8), (2, 0, 3, 8)])
def test_leading_dimensions(shape: tuple[int, ...]) -> None:
    x, weight = torch.randn(shape), torch.randn(5, 8)
    ins, outs = torch.arange(8), torch.tensor([3, 1, 7, 0, 2])
    y = masked_linear(x, weight, in_degrees=ins, out_degrees=outs)
    close(y, F.linear(x, weight * (outs[:, None] >= ins)))


def test_sum_backward_sends_an_expanded_gradient() -> None:
    x, weight = torch.randn(6, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    mask = torch.rand(5, 8) < 0.5
    masked_linear(x, weight, mask=mask).sum().backward()
    close(x.grad, (weight * mask).sum(0).expand(6, 8).detach())


def test_a_masked_weight_never_reaches_the_output() -> None:
    ins, outs = torch.randint(1, 50, (300,)), torch.randint(1, 50, (200,))
    mask = mask_from_degrees(ins, outs)
    clean = torch.randn(200, 300)
    dirty = torch.where(mask, clean, torch.full_like(clean, math.nan)).requires_grad_()
    x = torch.randn(4, 300, requires_grad=True)
    y = masked_linear(x, dirty, in_degrees=ins, out_degrees=outs)
    y.sum().backward()
    close(y, F.linear(x, clean * mask))
    assert x.grad is not None
    assert dirty.grad is not None
    assert x.grad.isfinite().all()
    assert (dirty.grad[~mask] == 0).all()


def test_frozen_tensors_get_no_gradient() -> None:
    x, weight = torch.randn(3, 8), torch.randn(5, 8, requires_grad=True)
    masked_linear(x, weight, activation="gelu").sum().backward()
    assert x.grad is None
    assert weight.grad is not None


@pytest.mark.parametrize("write", ["in_place", "data", "set_data", "numpy"])
def test_a_changed_weight_is_seen(write: str) -> None:
    weight = torch.nn.Parameter(torch.randn(300, 200))
    mask = mask_from_degrees(torch.randint(0, 9, (200,)), torch.randint(0, 9, (300,)))
    plan, x = plan_of(weight.shape, mask=mask), torch.randn(4, 200)
    with torch.no_grad():
        masked_linear(x, weight, plan=plan)
        if write == "in_place":
            weight.mul_(2)
        elif write == "data":
            weight.data[17, 11] += 1
        elif write == "set_data":
            weight.data = torch.randn(300, 200)
        else:
            weight.detach().numpy()[299, 199] = 5.0
        close(masked_linear(x, weight, plan=plan), F.linear(x, weight * mask), rtol=1e-5, atol=1e-4)


def test_one_weight_under_two_masks() -> None:
    weight, x = torch.randn(200, 200), torch.randn(3, 200)
    masks = [mask_from_degrees(torch.randint(0, 9, (200,)), torch.randint(0, 9, (200,))) for _ in range(2)]
    plans = [plan_of(weight.shape, mask=mask) for mask in masks]
    for _ in range(2):
        for plan, mask in zip(plans, masks, strict=True):
            close(masked_linear(x, weight, plan=plan), F.linear(x, weight * mask), rtol=1e-5, atol=1e-4)


def test_packed_copies_go_with_their_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_masked_linear_cpu, "SMALL", 0)
    before = len(_packed._PACKED)
    weight = torch.randn(200, 200)
    masked_linear(torch.randn(3, 200), weight, in_degrees=torch.arange(200), out_degrees=torch.arange(200))
    assert len(_packed._PACKED) == before + 1
    del weight
    assert len(_packed._PACKED) == before


@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
@pytest.mark.parametrize("kind", ["none", "degrees", "random"])
def test_opcheck(kind: str, activation: str) -> None:
    generator = torch.Generator().manual_seed(0)
    call, _ = make_mask(kind, 9, 8, generator)
    plan = plan_of((9, 8), **call)
    x, weight, bias = torch.randn(4, 8), torch.randn(9, 8), torch.randn(9)
    keep = activation in activations.NEEDS_PREACTIVATION
    for learn in (False, True):
        arguments = [t.clone().requires_grad_(learn) for t in (x, weight, bias)]
        torch.library.opcheck(torch.ops.fastar.masked_linear.default, (*arguments, *plan, activation, keep))
    saved = None if activation == "none" else torch.randn(4, 9)
    torch.library.opcheck(
        torch.ops.fastar.masked_linear_backward.default,
        (torch.randn(4, 9), x, weight, saved, *plan, activation, True, True, False),
    )


def test_gradcheck_of_the_reference() -> None:
    mask = torch.rand(5, 4) < 0.5
    inputs = [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((3, 4), (5, 4), (5,))]
    for activation in FUSED:
        assert torch.autograd.gradcheck(lambda x, w, b, a=activation: reference(x, w, b, mask, a), inputs)
        assert torch.autograd.gradcheck(
            lambda x, w, b, a=activation: masked_linear(x, w, b, mask=mask, activation=a), inputs
        )


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_compile_fullgraph(activation: str) -> None:
    ins, outs = torch.randint(0, 9, (40,)), torch.randint(0, 9, (30,))
    plan = plan_of((30, 40), in_degrees=ins, out_degrees=outs)

    def model(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return masked_linear(x.sin(), weight, bias, plan=plan, activation=activation).cos()

    inputs = [torch.randn(7, 40), torch.randn(30, 40), torch.randn(30)]
    grad = torch.randn(7, 30)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for ours, plain in zip(gradients(compiled, grad, *inputs), gradients(model, grad, *inputs), strict=True):
        close(ours, plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_torchs(dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(6, 20), torch.randn(9, 20, requires_grad=True), torch.randn(9)
    with torch.autocast("cpu", dtype=dtype):
        ours, plain = masked_linear(x, weight, bias), F.linear(x, weight, bias)
    assert ours.dtype == plain.dtype == dtype
    torch.testing.assert_close(ours, plain)
    (gradient,) = torch.autograd.grad(ours.float().sum(), weight)
    assert gradient.dtype == torch.float32


def test_second_order_and_vmap_are_refused() -> None:
    x, weight = torch.randn(3, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(masked_linear(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second-order gradients are not available"):
        gradient.sum().backward()
    with pytest.raises(RuntimeError, match="vmap is not available"):
        torch.vmap(lambda one: masked_linear(one, weight))(torch.randn(2, 3, 8))


def test_float64_runs_on_the_reference() -> None:
    x, weight = torch.randn(3, 8, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    mask = torch.rand(5, 8) < 0.5
    torch.testing.assert_close(masked_linear(x, weight, mask=mask), F.linear(x, weight * mask), rtol=1e-14, atol=1e-14)


def test_threads_do_not_change_the_packed_weight() -> None:
    ins, outs = torch.randint(0, 99, (700,)), torch.randint(0, 99, (900,))
    x, weight = torch.eye(700), torch.randn(900, 700)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(masked_linear(x, weight.clone(), in_degrees=ins, out_degrees=outs))
    finally:
        torch.set_num_threads(before)
    expected = (weight * mask_from_degrees(ins, outs)).T
    assert all(torch.equal(one, expected) for one in results)


X, WEIGHT = torch.randn(3, 8), torch.randn(5, 8)
ALL = torch.ones(5, 8, dtype=torch.bool)
BAD: list[tuple[str, type[Exception], str, Callable[[], Any]]] = [
    ("integer x", TypeError, "x: expected dtype", lambda: masked_linear(X.long(), WEIGHT)),
    ("x no tensor", TypeError, "x: expected a tensor, got list", lambda: masked_linear([1.0], WEIGHT)),  # type: ignore[arg-type]
    ("width of x", ValueError, r"x: expected shape \[..., 8\]", lambda: masked_linear(torch.randn(3, 7), WEIGHT)),
    ("scalar x", ValueError, r"x: expected shape \[..., 8\]", lambda: masked_linear(torch.tensor(1.0), WEIGHT)),
    ("weight 1-D", ValueError, "weight: expected shape", lambda: masked_linear(X, WEIGHT[0])),
    ("weight dtype", TypeError, "weight: expected the dtype of x", lambda: masked_linear(X, WEIGHT.half())),
    ("weight device", ValueError, "weight: expected the device of x", lambda: masked_linear(X, WEIGHT.to("meta"))),
    ("bias shape", ValueError, r"bias: expected shape \[5\]", lambda: masked_linear(X, WEIGHT, torch.randn(8))),
    ("mask shape", ValueError, r"mask: expected shape \[5, 8\]", lambda: masked_linear(X, WEIGHT, mask=ALL.T)),
    ("mask dtype", TypeError, "mask: expected dtype bool", lambda: masked_linear(X, WEIGHT, mask=torch.ones(5, 8))),
    ("NaN mask", TypeError, "mask: expected dtype bool", lambda: masked_linear(X, WEIGHT, mask=ALL / 0.0)),
    ("mask and degrees", ValueError, "mask: expected either", lambda: masked_linear(
        X, WEIGHT, mask=ALL, in_degrees=torch.arange(8), out_degrees=torch.arange(5))),
    ("mask and plan", ValueError, "plan: expected either", lambda: masked_linear(
        X, WEIGHT, mask=ALL, plan=MaskPlan())),
    ("degrees of another size", ValueError, r"in_degrees: expected shape \[8\]", lambda: masked_linear(
        X, WEIGHT, in_degrees=torch.arange(7), out_degrees=torch.arange(5))),
    ("degrees one-sided", ValueError, "out_degrees: expected degrees for both", lambda: masked_linear(
        X, WEIGHT, in_degrees=torch.arange(8))),
    ("float degrees", TypeError, "out_degrees: expected dtype", lambda: masked_linear(
        X, WEIGHT, in_degrees=torch.arange(8), out_degrees=torch.rand(5))),
    ("activation", ValueError, "activation: expected one of none, relu", lambda: masked_linear(
        X, WEIGHT, activation="swish")),
    ("plan of another layer", ValueError, "plan: expected one made for weight", lambda: masked_linear(
        X, WEIGHT, plan=plan_of((6, 8), in_degrees=torch.arange(8), out_degrees=torch.arange(6)))),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "call"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_named(error: type[Exception], message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(error, match=message):
        call()


def test_training_follows_the_reference() -> None:
    """200 steps of Adam on a fixed regression: the fast op's loss curve is the reference's."""
    generator = torch.Generator().manual_seed(1)
    ins, outs = degrees(32, 9, generator), degrees(64, 9, generator)
    mask = mask_from_degrees(ins, outs)
    x, target = torch.randn(64, 32, generator=generator), torch.randn(64, 16, generator=generator)
    first, second = torch.randn(64, 32, generator=generator) / 6, torch.randn(16, 64, generator=generator) / 8

    def curve(dtype: torch.dtype, layer: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        w1, w2 = (w.to(dtype).clone().requires_grad_() for w in (first, second))
        optimiser = torch.optim.Adam([w1, w2], lr=3e-3)
        losses = []
        for _ in range(200):
            optimiser.zero_grad()
            loss = (F.linear(layer(x.to(dtype), w1), w2) - target.to(dtype)).square().mean()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    ours = curve(torch.float32, lambda x, w: masked_linear(x, w, in_degrees=ins, out_degrees=outs, activation="tanh"))
    plain = curve(torch.float32, lambda x, w: reference(x, w, None, mask, "tanh"))
    exact = curve(torch.float64, lambda x, w: reference(x, w, None, mask, "tanh"))
    assert exact[-1] < 0.5 * exact[0]
    assert_within_budget(ours, plain, exact, what="loss curve")


@pytest.mark.slow
def test_largest_shape_against_float64() -> None:
    generator = torch.Generator().manual_seed(2)
    ins, outs = degrees(4096, 783, generator), degrees(4096, 783, generator)
    x, weight = torch.randn(1024, 4096, generator=generator), torch.randn(4096, 4096, generator=generator)
    grad = torch.randn(1024, 4096, generator=generator)
    call = {"in_degrees": ins, "out_degrees": outs}
    check_against_reference(
        x, weight, torch.randn(4096, generator=generator), grad, call, mask_from_degrees(ins, outs), "none"
    )
