"""The WaveNet block on the GPU: what kernels/wavenet_block.py and kernels/causal_conv1d.py are launched with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastar.ops import _triton
from fastar.ops._wavenet_layer import Layer

# What the kernels take contiguous; the matrices have strides.
_CONTIGUOUS = frozenset({"bias", "residual_bias", "skip_bias", "conditioning"})


def _arguments(layer: Layer, *without: str) -> dict[str, Any]:
    """The layer as the kernels take it."""
    return {
        name: one.contiguous() if name in _CONTIGUOUS and one is not None else one
        for name, one in layer._asdict().items()
        if name not in without
    }


def forward(x: Tensor, layer: Layer, skip_sum: Tensor | None) -> tuple[Tensor, Tensor]:
    """(residual, skip)."""
    from fastar.kernels import wavenet_block as kernels

    residual, skip = kernels.forward(x, skip_sum=skip_sum, **_arguments(layer), allow_tf32=_triton.allow_tf32())
    return residual, skip


def backward(
    grads: Sequence[Tensor | None], x: Tensor, layer: Layer, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight, bias, residual_weight and its bias, skip_weight and its bias, and the conditioning."""
    from fastar.kernels import causal_conv1d as convolution
    from fastar.kernels import wavenet_block as kernels

    tf32 = _triton.allow_tf32()
    h, grad_z = kernels.backward(*grads, x, **_arguments(layer, "residual_bias", "skip_bias"), allow_tf32=tf32)

    def sums(grad: Tensor) -> Tensor:
        found: Tensor = convolution.activation_gradient(grad, None, "none", need_sums=True)[1]
        return found

    def products(grad: Tensor, matrix: Tensor) -> Tensor:
        found = convolution.weight_gradient(grad, h, matrix.unsqueeze(2), None, None, 1, 1, tf32)
        return found.squeeze(2).contiguous()  # type: ignore[no-any-return]

    outputs = layer.output_gradients(grads, needs[3:7], products, sums)
    grad_x = grad_weight = None
    if needs[0]:
        grad_x = x.new_empty(x.shape)
        convolution.conv(
            grad_z, layer.weight, None, None, None, layer.dilation, 1, "none", grad_x, None, adjoint=True,
            plus=grads[0], plus_scale=layer.residual_scale, allow_tf32=tf32,
        )  # fmt: skip
    if needs[1]:
        grad_weight = convolution.weight_gradient(grad_z, x, layer.weight, None, None, layer.dilation, 1, tf32)
        grad_weight = grad_weight.contiguous()
    grad_bias = sums(grad_z) if needs[2] else None
    return grad_x, grad_weight, grad_bias, *outputs, layer.frame_sums(grad_z) if needs[7] else None
