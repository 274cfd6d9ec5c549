"""When two executors agree: each draw is the same, or its u lies within tau of a boundary of the reference's CDF."""

from __future__ import annotations

import torch
from torch import Tensor

from fastar.sampling import draws
from fastar.sampling.draws import DISCRETE, Options
from fastar.sampling.instructions import Head
from tests.budget import assert_within_budget


def assert_draws_agree(
    head: Head,
    exact: Tensor,
    same_dtype: Tensor,
    u: Tensor,
    values: Tensor,
    dtype: torch.dtype,
    integer: bool,
    options: Options,
) -> None:
    """Values [n, V] drawn at u [n, draws], against a full pass's parameters in float64 and in the executor's dtype.

    tau is the error budget of a cumulative probability: twice what PyTorch's own parameters in the same dtype cause,
    and a few units in the last place of 1.
    """
    expected = draws.draw(head, exact, u, options, integer=integer)
    theirs = draws.draw(head, same_dtype, u, options, integer=integer)
    eps = torch.finfo(dtype).eps
    if head.kind in DISCRETE:
        law, same = draws.law(head, exact, options), draws.law(head, same_dtype, options)
        cdf = torch.cumsum(law, 1)
        tau = 2 * (torch.cumsum(same, 1) - cdf).abs().max() + 4 * eps
        # A Bernoulli is 1 iff u < p(1), so its boundary is p(1); a categorical's are the cumulative probabilities.
        boundaries = law[:, 1:] if head.kind == "bernoulli" else cdf
        near = ((u[:, :1] - boundaries).abs() <= tau).any(1)
        wrong = (values[:, 0] != expected[:, 0]) & ~near
        assert not bool(wrong.any()), f"{int(wrong.sum())} draws differ away from any boundary (tau {float(tau):.2e})"
    elif integer:
        # A level apart is allowed where the inverse CDF falls near the middle between two levels.
        assert float((values - expected).abs().max()) <= 1
        assert float((values != expected).double().mean()) <= 0.01 + 1e4 * eps
    else:
        assert_within_budget(values.to(dtype), theirs.to(dtype), expected, what=f"values of {head.kind}")
