"""The gate of a PixelCNN."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastar.reference import activation as activations


def tanh_gate(z: Tensor, above: Tensor | None = None) -> Tensor:
    """tanh(a) * sigmoid(b), with ``a, b = z.chunk(2, 1)``, of z + `above` moved down by one row where that is given."""
    return activations.tanh_gate(z if above is None else z + lowered(above), 1)


def lowered(above: Tensor) -> Tensor:
    """Images [B, C, H, W] moved down by one row; the first row is 0."""
    return F.pad(above[:, :, :-1], (0, 0, 1, 0))


def raised(below: Tensor) -> Tensor:
    """The adjoint of `lowered`: images moved up by one row."""
    return F.pad(below[:, :, 1:], (0, 0, 0, 1))
