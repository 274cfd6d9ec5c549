"""The LSTM scan's oracle: the op on whichever implementation, against its reference in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from budget import assert_within_budget
from torch import Tensor

from fastar.ops import lstm_scan
from fastar.ops._lstm_scan_dense import neighbours
from fastar.reference.lstm_scan import lstm_scan as plain

NAMES = ["h", "last h", "last c", "dx", "dweight", "dh0", "dc0"]


def model(
    B: int, H: int, rows: int, columns: int, k: int, dtype: torch.dtype, *, with_state: bool = False
) -> list[Tensor]:
    """x_gates, weight and, where they are asked for, both initial states."""
    shapes = [(B, 4 * H, rows, columns), (4 * H, H, k), *[(B, H, columns)] * (2 if with_state else 0)]
    x, weight, *state = (torch.randn(shape) for shape in shapes)
    return [t.to(dtype) for t in (x, weight / (H * k) ** 0.5, *state)]


def reference(*tensors: Tensor, along: str) -> tuple[Tensor, ...]:
    h, last_h, last_c = plain(*tensors, along=along)
    return (h, last_h, last_c) if along == "rows" else (h,)


def fast(x: Tensor, weight: Tensor, *state: Tensor, along: str) -> tuple[Tensor, ...]:
    if along != "rows":
        return (lstm_scan(x, weight, along=along),)
    h, last = lstm_scan(x, weight, along=along, state=state or None, return_state=True)
    return (h, *last)


def gradients(
    run: Callable[..., tuple[Tensor, ...]], grads: list[Tensor], tensors: list[Tensor], along: str
) -> dict[str, Tensor]:
    """Results and gradients of `run`, of leaves made from the tensors."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    results = run(*leaves, along=along)
    found = torch.autograd.grad(results, leaves, [g.to(y.dtype).expand_as(y) for g, y in zip(grads, results)])  # noqa: B905
    return dict(zip([*NAMES[: len(results)], *NAMES[3:]], [y.detach() for y in results] + list(found)))  # noqa: B905


def check_against_reference(grads: list[Tensor], tensors: list[Tensor], along: str, **options: Any) -> None:
    wide = [t.double() for t in tensors]
    ours = gradients(fast, grads, tensors, along)
    same = gradients(reference, grads, tensors, along)
    exact = gradients(reference, [g.double() for g in grads], wide, along)
    # dW is a sum over all pixels; the others have a few terms each.
    seen = neighbours(exact["h"], wide[2] if len(wide) > 2 else None, along, tensors[1].shape[2])
    terms = torch.einsum("bgrc,bnrc->gn", exact["dx"].abs(), seen.abs())
    for name, result in ours.items():
        scale = terms if name == "dweight" else None
        assert_within_budget(result, same[name], exact[name], scale=scale, what=name)
