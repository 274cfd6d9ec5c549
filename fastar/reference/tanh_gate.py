"""The gate of a PixelCNN."""

from __future__ import annotations

from torch import Tensor

from fastar.reference import activation as activations


def tanh_gate(z: Tensor) -> Tensor:
    """tanh(a) * sigmoid(b), with ``a, b = z.chunk(2, 1)``."""
    return activations.tanh_gate(z, 1)
