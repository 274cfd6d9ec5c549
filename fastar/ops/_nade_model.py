"""What implementations of NADE take in the place of a list of tensors."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Model:
    """W [H, D], V [D, K, H], c [H], the order of the positions (None: their own) and the hidden units' activation."""

    weight: Tensor
    readout: Tensor
    hidden_bias: Tensor
    order: Tensor | None
    activation: str
