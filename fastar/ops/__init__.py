"""Fused ops, one file each: the equation, the checks of arguments, and the registration with torch.library."""

from fastar import _identity

_identity.require()

from fastar.ops.attention import attention  # noqa: E402
from fastar.ops.causal_conv1d import causal_conv1d  # noqa: E402
from fastar.ops.heads import (  # noqa: E402
    bernoulli_log_prob,
    categorical_log_prob,
    gaussian_mixture_log_prob,
    laplace_mixture_log_prob,
    logistic_mixture_log_prob,
)
from fastar.ops.lstm_scan import lstm_scan  # noqa: E402
from fastar.ops.masked_conv2d import masked_conv2d  # noqa: E402
from fastar.ops.masked_linear import masked_linear  # noqa: E402
from fastar.ops.nade import nade, nade_log_prob  # noqa: E402
from fastar.ops.tanh_gate import tanh_gate  # noqa: E402
from fastar.ops.wavenet_block import wavenet_block  # noqa: E402

__all__ = [
    "attention",
    "bernoulli_log_prob",
    "categorical_log_prob",
    "causal_conv1d",
    "gaussian_mixture_log_prob",
    "laplace_mixture_log_prob",
    "logistic_mixture_log_prob",
    "lstm_scan",
    "masked_conv2d",
    "masked_linear",
    "nade",
    "nade_log_prob",
    "tanh_gate",
    "wavenet_block",
]
