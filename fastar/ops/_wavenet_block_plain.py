"""The WaveNet block by the reference; its gradients in plain PyTorch, from gate inputs that are computed again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastar.ops import _causal_conv1d_plain
from fastar.ops._causal_layer import Convolution
from fastar.ops._wavenet_layer import Layer
from fastar.reference.wavenet_block import wavenet_block as reference


def forward(x: Tensor, layer: Layer, skip_sum: Tensor | None) -> tuple[Tensor, Tensor]:
    """(residual, skip)."""
    residual, skip = reference(x, **layer._asdict(), skip_sum=skip_sum)
    return residual.contiguous(), skip.contiguous()


def backward(
    grads: Sequence[Tensor | None], x: Tensor, layer: Layer, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight, bias, residual_weight and its bias, skip_weight and its bias, and the conditioning."""
    convolution = Convolution(layer.weight, layer.bias, dilation=layer.dilation)
    z, _ = _causal_conv1d_plain.forward(x, convolution, False)
    if layer.conditioning is not None:
        z = z + layer.conditioning.repeat_interleave(layer.hop, 2)[:, :, : x.shape[2]]
    z_f, z_g = z.chunk(2, 1)
    filtered, gate = torch.tanh(z_f), torch.sigmoid(z_g)
    h = filtered * gate
    grad_h = torch.zeros_like(h)
    matrices, scales = (layer.residual_weight, layer.skip_weight), (layer.residual_scale, layer.skip_scale)
    for grad, matrix, scale in zip(grads, matrices, scales, strict=True):
        if grad is not None:
            grad_h += matrix.t() @ (grad * scale)
    outputs = layer.output_gradients(
        grads, needs[3:7], lambda grad, _: (grad @ h.mT).sum(0), lambda grad: grad.sum((0, 2))
    )
    grad_z = torch.cat([grad_h * gate * (1 - filtered * filtered), grad_h * filtered * gate * (1 - gate)], 1)
    grad_x, grad_weight, grad_bias, _ = _causal_conv1d_plain.backward(grad_z, x, convolution, None, (*needs[:3], False))
    if grad_x is not None and grads[0] is not None:
        grad_x += grads[0] * layer.residual_scale
    return grad_x, grad_weight, grad_bias, *outputs, layer.frame_sums(grad_z) if needs[7] else None
