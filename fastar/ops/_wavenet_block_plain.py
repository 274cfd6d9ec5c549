"""The WaveNet block by the reference; its gradients in plain PyTorch, from gate inputs that are computed again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastar.ops import _causal_conv1d_plain
from fastar.reference.wavenet_block import wavenet_block as reference


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual_weight: Tensor,
    residual_bias: Tensor | None,
    skip_weight: Tensor,
    skip_bias: Tensor | None,
    conditioning: Tensor | None,
    skip_sum: Tensor | None,
    dilation: int,
    hop: int,
    residual_scale: float,
    skip_scale: float,
) -> tuple[Tensor, Tensor]:
    """(residual, skip)."""
    residual, skip = reference(
        x,
        weight,
        bias,
        residual_weight,
        residual_bias,
        skip_weight,
        skip_bias,
        dilation=dilation,
        conditioning=conditioning,
        hop=hop,
        skip_sum=skip_sum,
        residual_scale=residual_scale,
        skip_scale=skip_scale,
    )
    return residual.contiguous(), skip.contiguous()


def frame_sums(grad_z: Tensor, frames: int, hop: int) -> Tensor:
    """The gradient of the conditioning: each frame's sum over its times."""
    whole = F.pad(grad_z, (0, frames * hop - grad_z.shape[2]))
    return whole.reshape(*grad_z.shape[:2], frames, hop).sum(3)


def backward(
    grad_residual: Tensor | None,
    grad_skip: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual_weight: Tensor,
    skip_weight: Tensor,
    conditioning: Tensor | None,
    dilation: int,
    hop: int,
    residual_scale: float,
    skip_scale: float,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight, bias, residual_weight and its bias, skip_weight and its bias, and the conditioning."""
    z, _ = _causal_conv1d_plain.forward(x, weight, bias, None, None, dilation, 1, "none", False)
    if conditioning is not None:
        z = z + conditioning.repeat_interleave(hop, 2)[:, :, : x.shape[2]]
    z_f, z_g = z.chunk(2, 1)
    filtered, gate = torch.tanh(z_f), torch.sigmoid(z_g)
    h = filtered * gate
    grad_h = torch.zeros_like(h)
    mixed: list[Tensor | None] = []
    for grad, matrix, scale, (need_matrix, need_bias) in (
        (grad_residual, residual_weight, residual_scale, needs[3:5]),
        (grad_skip, skip_weight, skip_scale, needs[5:7]),
    ):
        scaled = x.new_zeros(x.shape[0], len(matrix), x.shape[2]) if grad is None else grad * scale
        grad_h += matrix.t() @ scaled
        mixed += [(scaled @ h.mT).sum(0) if need_matrix else None, scaled.sum((0, 2)) if need_bias else None]
    grad_z = torch.cat([grad_h * gate * (1 - filtered * filtered), grad_h * filtered * gate * (1 - gate)], 1)
    grad_x, grad_weight, grad_bias, _ = _causal_conv1d_plain.backward(
        grad_z, x, weight, bias, None, None, None, dilation, 1, "none", (needs[0], needs[1], needs[2], False)
    )
    if grad_x is not None and grad_residual is not None:
        grad_x += grad_residual * residual_scale
    grad_conditioning = None
    if conditioning is not None and needs[7]:
        grad_conditioning = frame_sums(grad_z, conditioning.shape[2], hop)
    return grad_x, grad_weight, grad_bias, *mixed, grad_conditioning
