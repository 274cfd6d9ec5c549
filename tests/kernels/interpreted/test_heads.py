"""The heads' Triton kernels in the interpreter, against the reference in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from budget import assert_within_budget
from torch import Tensor

from fastar import _dispatch
from fastar.kernels import heads as kernels
from fastar.ops import (
    bernoulli_log_prob,
    categorical_log_prob,
    gaussian_mixture_log_prob,
    laplace_mixture_log_prob,
    logistic_mixture_log_prob,
)
from fastar.reference import heads as reference
from fastar.reference.heads import Head

DTYPES = [torch.float32, torch.float16]
CONTINUOUS = {"gaussian": gaussian_mixture_log_prob, "laplace": laplace_mixture_log_prob}
PLACES = [((2, 3), (5, 7)), ((1,), ()), ((0,), (3,))]


def run(head: Head, params: Tensor, x: Tensor) -> Tensor:
    if head.kind == "bernoulli":
        return bernoulli_log_prob(params, x, event_dims=head.event_dims)
    if head.kind == "categorical":
        return categorical_log_prob(params, x, dim=head.dim)
    if head.kind == "logistic":
        floor = None if head.min_log_scale == -math.inf else head.min_log_scale
        return logistic_mixture_log_prob(params, x, dim=head.dim, min_log_scale=floor, branch=head.branch)
    return CONTINUOUS[head.kind](params, x, dim=head.dim)


def check(head: Head, params: Tensor, x: Tensor) -> None:
    """Forward and all gradients, through the op, against the reference."""
    continuous = head.kind in CONTINUOUS
    grad = torch.randn(head.positions(params.shape))

    def gradients(run: object, params: Tensor, x: Tensor) -> list[Tensor]:
        leaves = [params.detach().requires_grad_(), *([x.detach().requires_grad_()] if continuous else [])]
        y = run(leaves[0], leaves[-1] if continuous else x)  # type: ignore[operator]
        return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype))]

    with _dispatch.forced("heads", "triton"):
        ours = gradients(lambda p, x: run(head, p, x), params, x)
    same = gradients(lambda p, x: reference.log_prob(p, x, head), params, x)
    wide = x.double() if x.is_floating_point() else x
    exact = gradients(lambda p, x: reference.log_prob(p, x, head), params.double(), wide)
    for what, a, b, c in zip(["log p", "dparams", "dx"], ours, same, exact, strict=False):
        assert_within_budget(a, b, c, what=f"{head.kind} {what}")


def layouts(params: Tensor, dim: int) -> list[Tensor]:
    """As it is, with a position's parameters side by side, and with strides that need a copy."""
    rows = params.movedim(dim, -1).contiguous().movedim(-1, dim)
    return [params, rows, torch.stack([params, params], -1)[..., 0]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("event_dims", [0, 1, 2])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bool, torch.int64])
def test_bernoulli(event_dims: int, x_dtype: torch.dtype, dtype: torch.dtype) -> None:
    for shape in ((3, 1500), (5, 7), (1, 1), (0, 4)):
        logits, x = 3 * torch.randn(shape), torch.randint(0, 2, shape)
        check(Head("bernoulli", event_dims=event_dims), logits.to(dtype), x.to(x_dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels", [1, 5, 300])
def test_categorical(levels: int, dtype: torch.dtype) -> None:
    for before, after in PLACES:
        logits = (3 * torch.randn(*before, levels, *after)).to(dtype)
        x = torch.randint(0, levels, (*before, *after))
        for layout in layouts(logits, len(before)):
            check(Head("categorical", len(before)), layout, x)


@pytest.mark.parametrize("side_by_side", [True, False])
def test_rows_longer_than_a_tile(side_by_side: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_WHOLE", 64)
    logits = 3 * torch.randn(5, 333)
    logits[0, :100] = -math.inf
    layout = logits if side_by_side else logits.T.contiguous()
    x = torch.tensor([332, 0, 64, 63, 150])
    check(Head("categorical", 1 if side_by_side else 0), layout, x)


def test_what_is_no_level_gives_nan() -> None:
    with _dispatch.forced("heads", "triton"):
        log_prob = categorical_log_prob(torch.randn(4, 6), torch.tensor([0, 6, -1, 5]))
    assert log_prob.isnan().tolist() == [False, True, True, False]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("components", [1, 10])
@pytest.mark.parametrize("kind", list(CONTINUOUS))
def test_continuous_mixtures(kind: str, components: int, dtype: torch.dtype) -> None:
    for before, after in PLACES:
        params = torch.randn(*before, 3 * components, *after).to(dtype)
        x = torch.randn(*before, *after).to(dtype)
        for layout in layouts(params, len(before)):
            check(Head(kind, len(before)), layout, x)


@pytest.mark.parametrize(
    ("channels", "floor", "branch", "dtype"),
    [
        (1, -7.0, 1e-5, torch.float32),
        (2, -math.inf, 0.0, torch.float32),
        (3, -7.0, 1e-5, torch.float32),
        (3, -math.inf, 0.0, torch.float16),
    ],
)
def test_logistic_mixtures(channels: int, floor: float, branch: float, dtype: torch.dtype) -> None:
    K = 5
    for before, after in PLACES:
        dim = len(before)
        shape = (*before, K, *after)
        parts = [torch.randn(shape)]
        parts += [torch.rand(shape) * 2 - 1 for _ in range(channels)]
        parts += [torch.rand(shape) * 9 - 8 for _ in range(channels)]
        parts += [torch.randn(shape) for _ in range(channels * (channels - 1) // 2)]
        params = torch.cat(parts, dim).to(dtype)
        x = torch.randint(0, 256, (*before, channels, *after))
        x = torch.where(torch.rand(x.shape) < 0.2, 255 * (x % 2), x)
        for layout in layouts(params, dim):
            check(Head("logistic", dim, min_log_scale=floor, branch=branch), layout, x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["gaussian", "laplace", "logistic", "logistic without floor"])
def test_extreme_mixtures_stay_finite(kind: str, dtype: torch.dtype) -> None:
    top = torch.finfo(dtype).max if dtype == torch.float16 else 1e38
    values = [0.0, 1e-8, 1.0, -30.0, 30.0, 6e4, -6e4, top, -top]
    grid = torch.tensor(list(itertools.product(values, values, values)))
    usual = torch.tensor([0.3, 0.1, -1.0]).expand_as(grid)
    params = torch.stack([grid, usual], -1).flatten(1).to(dtype).requires_grad_()
    head = Head("logistic", min_log_scale=-7.0, branch=1e-5) if kind == "logistic" else Head(kind.split()[0])
    for value in (-1.0, 0.0, 1.0):
        with _dispatch.forced("heads", "triton"):
            log_prob = run(head, params, torch.full((len(params),), value))
            (gradient,) = torch.autograd.grad(log_prob.sum(), params)
        assert not log_prob.isnan().any()
        assert gradient.isfinite().all()
