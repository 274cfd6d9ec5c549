"""The error budget that every fast implementation is held to.

An implementation may err twice as much as PyTorch does in the same dtype, plus a few units in the last place:

    max|fast - exact| <= 2 max|torch_same_dtype - exact| + 4 eps(dtype) max|exact|

`exact` is the reference in float64. Where PyTorch's own error happens to be tiny, a sum over many terms may pass
`scale`, the same sum over the absolute values of its terms, in the place of `exact` in the second term.
"""

from __future__ import annotations

import torch
from torch import Tensor


def assert_within_budget(
    fast: Tensor, same_dtype: Tensor, exact: Tensor, *, scale: Tensor | None = None, what: str = "result"
) -> None:
    """Fail with the figures where `fast` exceeds the error budget of its dtype."""
    assert fast.dtype == same_dtype.dtype, f"{what}: dtype {fast.dtype}, PyTorch gives {same_dtype.dtype}"
    assert exact.dtype == torch.float64, f"{what}: the exact result must be float64, got {exact.dtype}"
    assert fast.shape == same_dtype.shape == exact.shape, (
        f"{what}: shapes {fast.shape}, {same_dtype.shape}, {exact.shape}"
    )
    if fast.numel() == 0:
        return
    ours = (fast.double() - exact).abs().max().item()
    theirs = (same_dtype.double() - exact).abs().max().item()
    size = (exact if scale is None else scale).abs().max().item()
    allowed = 2 * theirs + 4 * torch.finfo(fast.dtype).eps * size
    # Written so that a NaN on our side fails.
    assert ours <= allowed, (
        f"{what}: error {ours:.3e} exceeds {allowed:.3e} (PyTorch's own {theirs:.3e}, size {size:.3e})"
    )
