"""Layers over the fused ops, state-dict compatible with their torch.nn twins."""

from fastar import _identity

_identity.require()

from fastar.nn.masked_linear import MaskedLinear  # noqa: E402
from fastar.nn.nade_layer import NADELayer  # noqa: E402

__all__ = ["MaskedLinear", "NADELayer"]
