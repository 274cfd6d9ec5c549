"""y[b, o, t] = act(b[o] + sum over c and k of W[o, c, k] x[b, c, t - (K - 1 - k) dilation])."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastar.reference import activation as activations


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    dilation: int = 1,
    groups: int = 1,
    activation: str = "none",
    initial_state: Tensor | None = None,
    sequence_index: Tensor | None = None,
) -> Tensor:
    """``act(F.conv1d(F.pad(x, (reach, 0)), weight, bias, dilation=dilation, groups=groups))``.

    `initial_state` [B, C, reach] stands where the padding does, reach being (K - 1) * dilation. With `sequence_index`
    [B, T] an input is seen only at times of the same index.
    """
    reach, length = (weight.shape[2] - 1) * dilation, x.shape[2]
    if length == 0:
        return x.new_zeros(x.shape[0], weight.shape[0], 0)
    past = F.pad(x, (reach, 0)) if initial_state is None else torch.cat([initial_state, x], 2)
    if sequence_index is None:
        return activations.APPLY[activation](F.conv1d(past, weight, bias, dilation=dilation, groups=groups))
    z = x.new_zeros(()) if bias is None else bias[:, None]
    for k in range(weight.shape[2]):
        delay = reach - k * dilation
        seen = F.pad(sequence_index, (delay, 0))[:, None, :length] == sequence_index[:, None]
        delayed = torch.where(seen, past[:, :, k * dilation :][:, :, :length], torch.zeros_like(x))
        z = z + F.conv1d(delayed, weight[:, :, k : k + 1], groups=groups)
    return activations.APPLY[activation](z)
