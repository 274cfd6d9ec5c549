"""Masked linear's Triton kernels in the interpreter, against the reference in float64."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from budget import assert_within_budget
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastar import _dispatch
from fastar.kernels import _tiles
from fastar.kernels import masked_linear as kernels
from fastar.kernels._launch import Config
from fastar.ops import mask_plan, masked_linear
from fastar.ops.mask_plan import MaskPlan
from fastar.reference import activation as activations
from fastar.reference.masked_linear import mask_from_degrees
from fastar.reference.masked_linear import masked_linear as reference

# The interpreter gets bfloat16 products wrong.
DTYPES = [torch.float32, torch.float16]
PLANS = ["dense", "sorted", "strict", "rows", "columns", "both", "blocks", "random", "empty"]
FUSED = list(activations.APPLY)


def make_plan(kind: str, N: int, K: int, generator: torch.Generator) -> tuple[MaskPlan, Tensor]:
    """A plan, and the mask that it stands for."""
    if kind == "dense":
        return MaskPlan(), torch.ones(N, K, dtype=torch.bool)
    if kind in {"blocks", "random", "empty"}:
        mask = torch.rand(N, K, generator=generator) < 0.5
        if kind == "empty":
            mask = torch.zeros(N, K, dtype=torch.bool)
        if kind == "blocks":
            mask[64:128] = True
            mask[:40, 64:] = False
            mask[128:, 128:] = False
        # from_mask would find the triangle behind some of these: the map is wanted here.
        return MaskPlan(mask=mask, block_map=mask_plan._block_map(mask)), mask
    ins, outs = (torch.randint(1, 30, (size,), generator=generator) for size in (K, N))
    if kind not in {"columns", "both"}:
        ins = ins.sort().values
    if kind not in {"rows", "both"}:
        outs = outs.sort().values
    plan = mask_plan.from_degrees(ins, outs, kind == "strict")
    assert (plan.row_order is None, plan.column_order is None) == (
        kind not in {"rows", "both"},
        kind not in {"columns", "both"},
    )
    return plan, mask_from_degrees(ins, outs, kind == "strict")


def check(
    x: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor, plan: MaskPlan, mask: Tensor, activation: str
) -> None:
    """Forward and all gradients, through the op, against the reference."""

    def gradients(run: Any, *inputs: Tensor | None, grad: Tensor) -> list[Tensor]:
        leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
        y = run(*leaves)
        return [y.detach(), *torch.autograd.grad(y, [t for t in leaves if t is not None], grad)]

    def fast(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return masked_linear(x, weight, bias, plan=plan, activation=activation)

    def plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return reference(x, weight, bias, mask, activation)

    def doubled(*tensors: Tensor | None) -> list[Tensor | None]:
        return [None if t is None else t.double() for t in tensors]

    with _dispatch.forced("masked_linear", "triton"):
        ours = gradients(fast, x, weight, bias, grad=grad)
    same = gradients(plain, x, weight, bias, grad=grad)
    exact = gradients(plain, *doubled(x, weight, bias), grad=grad.double())
    terms = gradients(
        lambda x, w, b: reference(x, w, b, mask),
        *(None if t is None else t.abs() for t in doubled(x, weight, bias)),
        grad=grad.double().abs(),
    )
    for what, a, b, c, size in zip(["y", "dx", "dweight", "dbias"], ours, same, exact, terms, strict=False):
        assert_within_budget(a, b, c, scale=torch.maximum(c.abs(), size), what=what)
    assert (ours[2][~mask] == 0).all()


def inputs(M: int, N: int, K: int, dtype: torch.dtype, generator: torch.Generator) -> list[Tensor]:
    shapes = [(M, K), (N, K), (N,), (M, N)]
    x, weight, bias, grad = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return [x, weight / max(K, 1) ** 0.5, bias, grad]


@contextlib.contextmanager
def tiles(config: Config) -> Iterator[None]:
    """These tiles in the place of the small ones that the interpreter gets."""
    usual = _tiles.configs
    _tiles.configs = lambda *_: [config]
    try:
        yield
    finally:
        _tiles.configs = usual


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", PLANS)
def test_plans(kind: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(len(kind))
    x, weight, bias, grad = inputs(37, 170, 133, dtype, generator)
    plan, mask = make_plan(kind, 170, 133, generator)
    check(x, weight, bias, grad, plan, mask, "none")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", FUSED)
def test_activations(activation: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight, bias, grad = inputs(33, 70, 45, dtype, generator)
    plan, mask = make_plan("both", 70, 45, generator)
    check(3 * x, weight, bias, grad, plan, mask, activation)


@pytest.mark.parametrize("activation", FUSED)
@pytest.mark.parametrize("size", [1e-6, 1e-3, 30.0])
def test_activations_of_tiny_and_huge_values(activation: str, size: float) -> None:
    # Small values show cancellation: 1 - exp(-x) would lose all digits.
    generator = torch.Generator().manual_seed(2)
    x, weight, bias, grad = inputs(9, 20, 13, torch.float32, generator)
    plan, mask = make_plan("sorted", 20, 13, generator)
    check(size * x, weight, size * bias, grad, plan, mask, activation)


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (Config(256, 128, 64, 8, 4), (270, 300, 290)),
        (Config(128, 256, 64, 8, 4), (270, 300, 290)),
        (Config(64, 64, 16, 4, 3), (70, 140, 150)),
        (Config(16, 32, 16, 2, 3), (20, 140, 70)),
    ],
)
@pytest.mark.parametrize("kind", ["both", "blocks"])
def test_tiles_of_the_cards(kind: str, config: Config, sizes: tuple[int, int, int]) -> None:
    M, N, K = sizes
    generator = torch.Generator().manual_seed(3)
    x, weight, bias, grad = inputs(M, N, K, torch.float32, generator)
    plan, mask = make_plan(kind, N, K, generator)
    with tiles(config):
        check(x, weight, bias, grad, plan, mask, "gelu")


@given(
    M=st.integers(0, 40),
    N=st.integers(1, 140),
    K=st.integers(1, 140),
    kind=st.sampled_from(PLANS),
    has_bias=st.booleans(),
    layout=st.sampled_from(["contiguous", "transposed", "strided", "expanded"]),
    activation=st.sampled_from(["none", "relu", "gelu"]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_any_shape_and_stride(
    M: int, N: int, K: int, kind: str, has_bias: bool, layout: str, activation: str, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, weight, bias, grad = inputs(M, N, K, dtype, generator)
    plan, mask = make_plan("dense" if kind in {"rows", "columns", "both"} and min(N, K) < 40 else kind, N, K, generator)
    if layout == "transposed":
        x, weight, grad = (t.T.contiguous().T for t in (x, weight, grad))
    elif layout == "strided":
        x, weight, grad = (torch.stack([t, t], -1)[..., 0] for t in (x, weight, grad))
    elif layout == "expanded":
        x, grad = x[:1].expand(M, K), grad.new_ones(()).expand(M, N)
    check(x, weight, bias if has_bias else None, grad, plan, mask, activation)


@pytest.mark.parametrize(
    "needs", [(True, False, False), (False, True, False), (False, False, True), (False, False, False)]
)
@pytest.mark.parametrize("kind", ["dense", "both"])
def test_only_the_gradients_that_are_needed(kind: str, needs: tuple[bool, bool, bool]) -> None:
    generator = torch.Generator().manual_seed(4)
    x, weight, bias, grad = inputs(20, 60, 50, torch.float32, generator)
    plan, _ = make_plan(kind, 60, 50, generator)
    y, _ = kernels.forward(x, weight, bias, *plan, "tanh", False, False)
    every = kernels.backward(grad, x, weight, y, *plan, "tanh", (True, True, True), False)
    some = kernels.backward(grad, x, weight, y, *plan, "tanh", needs, False)
    for need, one, full in zip(needs, some, every, strict=True):
        assert (one is not None) == need
        if need:
            assert torch.equal(one, full)


@pytest.mark.parametrize("kind", ["both", "blocks"])
def test_masked_weights_that_are_not_finite(kind: str) -> None:
    generator = torch.Generator().manual_seed(5)
    x, weight, bias, grad = inputs(20, 130, 140, torch.float32, generator)
    plan, mask = make_plan(kind, 130, 140, generator)
    check(x, torch.where(mask, weight, torch.inf), bias, grad, plan, mask, "none")


def test_no_inputs_at_all() -> None:
    x, weight, bias = torch.empty(3, 0), torch.empty(5, 0), torch.randn(5)
    y, _ = kernels.forward(x, weight, bias, *MaskPlan(), "relu", False, False)
    assert torch.equal(y, bias.relu().expand(3, 5))


@pytest.mark.parametrize("config", [Config(32, 32, 32, 4, 1), Config(64, 128, 64, 4, 1), Config(16, 64, 16, 4, 1)])
@pytest.mark.parametrize("kind", ["dense", "sorted", "both", "blocks"])
def test_executes_the_products_that_are_counted_and_no_others(
    kind: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime import interpreter

    M, N, K = 40, 250, 215
    generator = torch.Generator().manual_seed(6)
    x, weight, _, grad = inputs(M, N, K, torch.float32, generator)
    plan, _ = make_plan(kind, N, K, generator)
    products = []
    multiply = interpreter.interpreter_builder.create_dot

    def counting(a: Any, *rest: Any, **options: Any) -> Any:
        products.append(a.data.shape)
        return multiply(a, *rest, **options)

    monkeypatch.setattr(interpreter.interpreter_builder, "create_dot", counting)
    counted = kernels.block_products(plan.reach, plan.block_map, M, N, K, config)
    with tiles(config):
        kernels.forward(x, weight, None, *plan, "none", False, False)
        assert len(products) == counted["forward"][0]
        for name, needs in (("input_gradient", (True, False, False)), ("weight_gradient", (False, True, False))):
            products.clear()
            kernels.backward(grad, x, weight, None, *plan, "none", needs, False)
            assert len(products) == counted[name][0]
    if kind != "dense":
        assert all(executed < dense for executed, dense in counted.values())
