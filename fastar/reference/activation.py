"""The activations that layers and fused ops take by name.

Each is defined by its PyTorch one-liner. `backward` gives the gradient of the input from the gradient of the output and
one saved tensor: the output where the derivative can be written in terms of it, else the input (the pre-activation).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

APPLY: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda z: z,
    "relu": torch.relu,
    "elu": F.elu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
}

# concat_elu doubles the channels, elu([z, -z]), so it is composed around an op instead of fused into one.
NAMES = (*APPLY, "concat_elu")

# tanh_gate halves the channels, tanh(first half) * sigmoid(second half): only ops that say so take it.
GATE = "tanh_gate"

# The derivative of these cannot be had from the output alone: the pre-activation is kept for the backward.
NEEDS_PREACTIVATION = frozenset({"gelu", "gelu_tanh", "silu", GATE})


def check(activation: str | None, argument: str = "activation", gated: bool = False) -> str:
    """The name itself ("none" for None); ValueError with the list of names for an unknown one, a gate only if gated."""
    if activation is None:
        return "none"
    names = (*NAMES, GATE) if gated else NAMES
    if activation not in names:
        raise ValueError(f"{argument}: expected one of {', '.join(names)}, got {activation!r}")
    return activation


def apply(activation: str, z: Tensor, dim: int) -> Tensor:
    """act(z); `dim` is where concat_elu doubles and tanh_gate halves the channels."""
    if activation == GATE:
        return tanh_gate(z, dim)
    return concat_elu(z, dim) if activation == "concat_elu" else APPLY[activation](z)


def concat_elu(z: Tensor, dim: int) -> Tensor:
    """elu([z, -z]) along `dim`, which doubles."""
    return F.elu(torch.cat([z, -z], dim))


def tanh_gate(z: Tensor, dim: int) -> Tensor:
    """tanh(a) * sigmoid(b), where z holds a and b one after the other along `dim`."""
    a, b = z.chunk(2, dim)
    return torch.tanh(a) * torch.sigmoid(b)


def tanh_gate_backward(grad: Tensor, z: Tensor, dim: int) -> Tensor:
    """The gradient of z, from that of ``tanh_gate(z, dim)``."""
    a, b = z.chunk(2, dim)
    t, s = torch.tanh(a), torch.sigmoid(b)
    return torch.cat([grad * s * (1 - t * t), grad * t * s * (1 - s)], dim)


# torch's own derivatives: one pass each, where a formula of several operations takes several.
_aten = torch.ops.aten
_BACKWARD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda grad, y: _aten.threshold_backward(grad, y, 0),
    "elu": lambda grad, y: _aten.elu_backward(grad, 1, 1, 1, True, y),
    "tanh": _aten.tanh_backward,
    "sigmoid": _aten.sigmoid_backward,
    "silu": _aten.silu_backward,
    "gelu": _aten.gelu_backward,
    "gelu_tanh": lambda grad, z: _aten.gelu_backward(grad, z, approximate="tanh"),
}


def backward(activation: str, grad: Tensor, saved: Tensor) -> Tensor:
    """grad * act'(z), from y = act(z), or from z for the names in NEEDS_PREACTIVATION."""
    if activation == "none":
        return grad
    if activation not in _BACKWARD:
        raise ValueError(f"activation: no fused backward for {activation!r}")
    return _BACKWARD[activation](grad, saved)
