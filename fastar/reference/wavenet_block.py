"""z = dilated causal conv(x) + conditioning, h = tanh(z_f) sigmoid(z_g); residual and skip are linear in h."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastar.reference.causal_conv1d import causal_conv1d


def wavenet_block(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual_weight: Tensor,
    residual_bias: Tensor | None,
    skip_weight: Tensor,
    skip_bias: Tensor | None,
    *,
    dilation: int = 1,
    conditioning: Tensor | None = None,
    hop: int = 1,
    skip_sum: Tensor | None = None,
    residual_scale: float = 1.0,
    skip_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """``h = tanh(z_f) * sigmoid(z_g)`` of ``z = causal_conv1d(x, weight, bias) + conditioning``, each frame hop times.

    Returns ``(conv1d(h, residual_weight, residual_bias) + x) * residual_scale`` and
    ``conv1d(h, skip_weight, skip_bias) * skip_scale + skip_sum``.
    """
    z = causal_conv1d(x, weight, bias, dilation=dilation)
    if conditioning is not None:
        z = z + conditioning.repeat_interleave(hop, 2)[:, :, : x.shape[2]]
    z_f, z_g = z.chunk(2, 1)
    h = torch.tanh(z_f) * torch.sigmoid(z_g)
    residual = (_mixed(h, residual_weight, residual_bias) + x) * residual_scale
    skip = _mixed(h, skip_weight, skip_bias) * skip_scale
    return residual, skip if skip_sum is None else skip + skip_sum


def _mixed(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if h.shape[2] == 0:
        return h.new_zeros(h.shape[0], weight.shape[0], 0)
    return F.conv1d(h, weight.unsqueeze(2), bias)
