"""Fused ops, one file each: the equation, the checks of arguments, and the registration with torch.library."""

from fastar import _identity

_identity.require()

from fastar.ops.masked_conv2d import masked_conv2d  # noqa: E402
from fastar.ops.masked_linear import masked_linear  # noqa: E402
from fastar.ops.nade import nade, nade_log_prob  # noqa: E402

__all__ = ["masked_conv2d", "masked_linear", "nade", "nade_log_prob"]
