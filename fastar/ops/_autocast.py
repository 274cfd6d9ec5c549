"""Following torch.autocast in ops that register no autocast rule of their own."""

from __future__ import annotations

import torch
from torch import Tensor

# Asked once: torch 2.11 cannot trace the question inside torch.compile.
_KINDS = frozenset(
    kind for kind in ("cpu", "cuda", "xpu", "mps", "hpu", "mtia") if torch.amp.is_autocast_available(kind)
)


def target(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast is casting to on this device, or None where it is off or unknown (as on meta)."""
    kind = device.type
    if kind not in _KINDS or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def cast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """All three in autocast's dtype, as torch's own linear and convolution have them; float64 is left as it is."""
    to = target(x.device)
    if to is None or torch.float64 in (x.dtype, weight.dtype):
        return x, weight, bias
    return x.to(to), weight.to(to), None if bias is None else bias.to(to)


def learns(*tensors: Tensor | None) -> bool:
    """Whether autograd records what is computed from these."""
    return torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors)
