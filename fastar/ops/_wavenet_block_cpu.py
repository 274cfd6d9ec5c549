"""The WaveNet block on the CPU, by native code (csrc/cpu/wavenet.h): a window of 48 times goes through the whole block.

The forward writes its two outputs and nothing else. The backward goes over the windows once, computes z again and
writes h and the gradient of z, its workspace; the gradients of the weights and of x are products of these, by what
causal convolutions use.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastar.native import core
from fastar.ops._causal_conv1d_cpu import along_time, back, products
from fastar.ops._native import address, name
from fastar.ops._wavenet_block_plain import frame_sums

__all__ = ["backward", "forward"]


def _gates(
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
) -> object:
    """What both passes share; the caller keeps the tensors, of which x is along time, bias float, both contiguous."""
    return core().WavenetGates(
        name(x.dtype),
        (x.shape[0], x.shape[1], weight.shape[0] // 2, skip_weight.shape[0]),
        core().Source(x.data_ptr(), x.stride()[:2], x.shape[2]),
        weight.shape[2],
        dilation,
        weight.data_ptr(),
        weight.stride(),
        address(bias),
        residual_weight.data_ptr(),
        residual_weight.stride(),
        skip_weight.data_ptr(),
        skip_weight.stride(),
        address(conditioning),
        1 if conditioning is None else conditioning.shape[2],
        hop,
        residual_scale,
        skip_scale,
    )


def _float(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().float().contiguous()


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
    residual = x.new_empty(x.shape)
    skip = x.new_empty(x.shape[0], skip_weight.shape[0], x.shape[2])
    x, shift = along_time(x), _float(bias)
    frames = None if conditioning is None else conditioning.contiguous()
    given = None if skip_sum is None else along_time(skip_sum)
    biases = _float(residual_bias), _float(skip_bias)
    gates = _gates(x, weight, shift, residual_weight, skip_weight, frames, dilation, hop, residual_scale, skip_scale)
    core().wavenet_forward(
        gates, address(biases[0]), address(biases[1]), address(given), (0, 0) if given is None else given.stride()[:2],
        residual.data_ptr(), skip.data_ptr(), torch.get_num_threads(),
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
    need_x, need_weight, need_bias, *need_mixed, need_conditioning = needs
    x, shift = along_time(x), _float(bias)
    frames = None if conditioning is None else conditioning.contiguous()
    grads = [None if grad is None else along_time(grad) for grad in (grad_residual, grad_skip)]
    gates = _gates(x, weight, shift, residual_weight, skip_weight, frames, dilation, hop, residual_scale, skip_scale)
    h = x.new_empty(x.shape[0], weight.shape[0] // 2, x.shape[2])
    grad_z = x.new_empty(x.shape[0], weight.shape[0], x.shape[2])
    given = [value for one in grads for value in (address(one), (0, 0) if one is None else one.stride()[:2])]
    core().wavenet_backward(gates, *given, h.data_ptr(), grad_z.data_ptr(), torch.get_num_threads())
    mixed: list[Tensor | None] = []
    for grad, matrix, scale, (need_matrix, need_vector) in (
        (grads[0], residual_weight, residual_scale, need_mixed[:2]),
        (grads[1], skip_weight, skip_scale, need_mixed[2:]),
    ):
        if grad is None:
            mixed += [
                torch.zeros_like(matrix, memory_format=torch.contiguous_format) if need_matrix else None,
                matrix.new_zeros(len(matrix)) if need_vector else None,
            ]
            continue
        mixed += [
            products(grad, h, matrix.unsqueeze(2), None, None, 1, 1).squeeze(2).mul_(scale) if need_matrix else None,
            grad.sum(2).sum(0).mul_(scale) if need_vector else None,
        ]
    grad_x = None
    if need_x:
        grad_x = x.new_empty(x.shape)
        back(grad_z, weight, None, dilation, 1, grad_x, 0)
        if grads[0] is not None:
            grad_x.add_(grads[0], alpha=residual_scale)
    grad_conditioning = None
    if need_conditioning and conditioning is not None:
        grad_conditioning = frame_sums(grad_z, conditioning.shape[2], hop)
    return (
        grad_x,
        products(grad_z, x, weight, None, None, dilation, 1) if need_weight else None,
        grad_z.sum(2).sum(0) if need_bias else None,
        *mixed,
        grad_conditioning,
    )
