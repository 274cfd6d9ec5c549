"""Heads at the edges: against mpmath where probabilities are tiny, and finite for extreme parameters."""

from __future__ import annotations

import itertools
import math
from typing import Any

import mpmath
import pytest
import torch

from fastar import _dispatch
from fastar.ops import (
    bernoulli_log_prob,
    categorical_log_prob,
    gaussian_mixture_log_prob,
    laplace_mixture_log_prob,
    logistic_mixture_log_prob,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
IMPLEMENTATIONS = ["cpu", "reference"]
CONTINUOUS = {"gaussian": gaussian_mixture_log_prob, "laplace": laplace_mixture_log_prob}


def exact_logistic(x: float, mean: float, log_scale: float) -> float:
    """log of a bin's mass, or of the density where that is below 1e-5, with 60 digits."""
    with mpmath.workdps(60):
        scale, half = mpmath.exp(max(log_scale, -7)), mpmath.mpf(1) / 255
        above = 1 / (1 + mpmath.exp(-(x + half - mean) / scale))
        below = 1 / (1 + mpmath.exp(-(x - half - mean) / scale))
        if x <= -1:
            return float(mpmath.log(above))
        if x >= 1:
            return float(-mpmath.log(1 + mpmath.exp((x - half - mean) / scale)))
        if above - below > mpmath.mpf("1e-5"):
            return float(mpmath.log(above - below))
        z = (mpmath.mpf(x) - mean) / scale
        return float(-z - mpmath.log(scale) - 2 * mpmath.log(1 + mpmath.exp(-z)) + mpmath.log(2 * half))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_logistic_against_mpmath(implementation: str) -> None:
    cases = [(x, m, s) for x in (-1.0, -0.5, 1.0) for m in (-3.0, -0.5, 0.25, 40.0) for s in (-9.0, -7.0, -3.0, 5.0)]
    x, m, s = (torch.tensor(column) for column in zip(*cases, strict=True))
    exact = torch.tensor([exact_logistic(*case) for case in cases], dtype=torch.float64)
    with _dispatch.forced("heads", implementation):
        ours = logistic_mixture_log_prob(torch.stack([torch.zeros_like(x), m, s], 1), x)
    # x, m and s are floats as they stand, so what is left is the rounding of z: |z| up to 45,000.
    torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=2e-6)


EXTREMES = [0.0, 1e-8, 1.0, -1.0, 30.0, -30.0, 300.0, -300.0, 6e4, -6e4]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["gaussian", "laplace", "logistic", "logistic without floor"])
def test_extreme_mixtures_stay_finite(implementation: str, dtype: torch.dtype, kind: str) -> None:
    top = [torch.finfo(dtype).max, -torch.finfo(dtype).max] if dtype != torch.float32 else [1e38, -1e38]
    values = EXTREMES + top
    grid = torch.tensor(list(itertools.product(values, values, values)), dtype=torch.float32)
    # Two components: an extreme one beside a usual one, and beside itself.
    usual = torch.tensor([0.3, 0.1, -1.0]).expand_as(grid)
    params = torch.cat([torch.stack([grid, usual], -1), torch.stack([grid, grid], -1)]).flatten(1).to(dtype)
    params.requires_grad_()
    for value in (-1.0, 0.0, 1.0):
        x = torch.full((len(params),), value)
        with _dispatch.forced("heads", implementation):
            if kind in CONTINUOUS:
                log_prob = CONTINUOUS[kind](params, x)
            else:
                options: dict[str, Any] = {"min_log_scale": None, "branch": 0.0} if "without" in kind else {}
                log_prob = logistic_mixture_log_prob(params, x, **options)
            (gradient,) = torch.autograd.grad(log_prob.sum(), params)
        assert not log_prob.isnan().any()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_logits(implementation: str, dtype: torch.dtype) -> None:
    values = torch.tensor([*EXTREMES, torch.finfo(dtype).max / 4, -torch.finfo(dtype).max / 4]).to(dtype)
    logits = torch.cartesian_prod(values, values).contiguous().requires_grad_()
    with _dispatch.forced("heads", implementation):
        for level in (0, 1):
            for layout in (logits, logits.T.contiguous().T):
                result = categorical_log_prob(layout, torch.full((len(logits),), level))
                (gradient,) = torch.autograd.grad(result.sum(), logits)
                assert result.isfinite().all()
                assert gradient.isfinite().all()
            result = bernoulli_log_prob(logits, torch.full(logits.shape, level))
            (gradient,) = torch.autograd.grad(result.sum(), logits)
            assert result.isfinite().all()
            assert gradient.isfinite().all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dim", [0, 1])
def test_a_level_may_have_no_probability(implementation: str, dim: int) -> None:
    logits = torch.randn(30, 40)
    logits[torch.rand(30, 40) < 0.4] = -math.inf
    logits[:, :12] = -math.inf
    logits[:, 39] = 0.5
    x = torch.full((30,), 39)
    expected = logits.log_softmax(1)[:, 39]
    leaf = (logits if dim == 1 else logits.T.contiguous()).requires_grad_()
    with _dispatch.forced("heads", implementation):
        log_prob = categorical_log_prob(leaf, x, dim=dim)
        (gradient,) = torch.autograd.grad(log_prob.sum(), leaf)
    torch.testing.assert_close(log_prob, expected)
    assert gradient.isfinite().all()
    assert (gradient[leaf == -math.inf] == 0).all()


def test_a_component_may_have_no_weight() -> None:
    params, x = torch.randn(20, 9), torch.randn(20)
    params[:, 1] = -math.inf
    kept = params[:, [0, 2, 3, 5, 6, 8]]
    for function in CONTINUOUS.values():
        torch.testing.assert_close(function(params, x), function(kept, x))


def test_a_derivative_stops_at_the_largest_number_and_the_loss_scale_is_not_hidden() -> None:
    params = torch.tensor([[0.0, 0.0, -8.0]], dtype=torch.float16, requires_grad=True)
    x = torch.tensor([1.0])
    (gradient,) = torch.autograd.grad(gaussian_mixture_log_prob(params, x).sum(), params)
    assert gradient[0, 1].item() == torch.finfo(torch.float16).max
    # A loss scale that is too large must still be seen as infinite by the gradient scaler.
    (scaled,) = torch.autograd.grad(gaussian_mixture_log_prob(params, x).sum() * 1024, params)
    assert scaled.isinf().any()
