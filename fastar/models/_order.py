"""Orders of a vector's dimensions: order[t] is the dimension that is drawn t-th."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastar import _checks
from fastar.ops.nade import check_order

Order = Sequence[int] | Tensor | None


def permutation(order: Order, dim: int) -> Tensor:
    """The order as int64 [dim], on the CPU; None is 0, 1, 2..."""
    if order is None:
        return torch.arange(dim)
    t = torch.as_tensor(order).detach().cpu()
    _checks.dtype("order", t, _checks.INTEGERS)
    _checks.shape("order", t, [dim])
    check_order(t, dim)
    return t.long()


def listed(order: Order) -> list[int] | None:
    """The order as a configuration holds it."""
    return None if order is None else torch.as_tensor(order).tolist()


def is_natural(order: Tensor) -> bool:
    """Whether it is 0, 1, 2..."""
    return bool((order == torch.arange(len(order))).all())
