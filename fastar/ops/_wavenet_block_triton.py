"""The WaveNet block on the GPU: what kernels/wavenet_block.py and kernels/causal_conv1d.py are launched with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastar.ops import _triton
from fastar.ops._wavenet_block_plain import frame_sums


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


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
    from fastar.kernels import wavenet_block as kernels

    residual, skip = kernels.forward(
        x, weight, _contiguous(bias), residual_weight, _contiguous(residual_bias), skip_weight,
        _contiguous(skip_bias), _contiguous(conditioning), skip_sum, dilation, hop, residual_scale, skip_scale,
        _triton.allow_tf32(),
    )  # fmt: skip
    return residual, skip


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
    from fastar.kernels import causal_conv1d as convolution
    from fastar.kernels import wavenet_block as kernels

    need_x, need_weight, need_bias, *need_mixed, need_conditioning = needs
    tf32 = _triton.allow_tf32()
    h, grad_z = kernels.backward(
        grad_residual, grad_skip, x, weight, _contiguous(bias), residual_weight, skip_weight,
        _contiguous(conditioning), dilation, hop, residual_scale, skip_scale, tf32,
    )  # fmt: skip
    mixed: list[Tensor | None] = []
    for grad, matrix, scale, (need_matrix, need_vector) in (
        (grad_residual, residual_weight, residual_scale, need_mixed[:2]),
        (grad_skip, skip_weight, skip_scale, need_mixed[2:]),
    ):
        if grad is None:
            mixed += [
                torch.zeros_like(matrix, memory_format=torch.contiguous_format) if need_matrix else None,
                matrix.new_zeros(len(matrix)) if need_vector else None,
            ]
            continue
        products = None
        if need_matrix:
            products = convolution.weight_gradient(grad, h, matrix.unsqueeze(2), None, None, 1, 1, tf32).squeeze(2)
            products = products.mul_(scale).contiguous()
        _, sums = convolution.activation_gradient(grad, None, "none", need_sums=need_vector)
        mixed += [products, None if sums is None else sums.mul_(scale)]
    grad_x = grad_weight = grad_conditioning = None
    if need_x:
        grad_x = x.new_empty(x.shape)
        convolution.conv(
            grad_z, weight, None, None, None, dilation, 1, "none", grad_x, None, adjoint=True, plus=grad_residual,
            plus_scale=residual_scale, allow_tf32=tf32,
        )  # fmt: skip
    if need_weight:
        grad_weight = convolution.weight_gradient(grad_z, x, weight, None, None, dilation, 1, tf32).contiguous()
    _, grad_bias = convolution.activation_gradient(grad_z, None, "none", need_sums=need_bias)
    if need_conditioning and conditioning is not None:
        grad_conditioning = frame_sums(grad_z, conditioning.shape[2], hop)
    return grad_x, grad_weight, grad_bias, *mixed, grad_conditioning
