"""Conditions that are vectors: floats as they are, class labels as one-hot vectors."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastar import _checks


def vector(owner: str, cond: object, cond_dim: int, rows: int) -> Tensor | None:
    """The condition as floats [rows, cond_dim], None where the model takes none; errors speak of `owner`."""
    if cond_dim == 0:
        if cond is not None:
            raise ValueError(f"cond: {owner} takes none")
        return None
    if cond is None:
        raise ValueError(f"cond: {owner} needs it, floats [B, {cond_dim}] or class labels [B]")
    t = _checks.tensor("cond", cond)
    if t.is_floating_point():
        _checks.shape("cond", t, [rows, cond_dim])
        return t
    _checks.dtype("cond", t, _checks.INTEGERS)
    _checks.shape("cond", t, [rows])
    if t.device.type == "cpu" and not torch.compiler.is_compiling() and bool(((t < 0) | (t >= cond_dim)).any()):
        raise ValueError(f"cond: expected classes 0..{cond_dim - 1}, got {int(t.min())} to {int(t.max())}")
    return F.one_hot(t.long(), cond_dim).to(torch.get_default_dtype())


def pair(owner: str, cond: Any, has_vector: bool, has_other: bool, other: str) -> tuple[Any, Any]:
    """(the vector or classes, the other condition): cond itself, or where the model has both a pair of them."""
    if not (has_vector and has_other):
        return (None, cond) if has_other else (cond, None)
    if not isinstance(cond, tuple | list) or len(cond) != 2:
        raise ValueError(f"cond: {owner} needs a pair, the vector and the {other}, got {type(cond).__name__}")
    return cond[0], cond[1]
