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
from fastar.ops import _causal_conv1d_cpu as convolution
from fastar.ops._causal_conv1d_cpu import along_time
from fastar.ops._causal_layer import Convolution
from fastar.ops._native import address, name
from fastar.ops._wavenet_layer import Layer

__all__ = ["backward", "forward"]


def _gates(x: Tensor, layer: Layer) -> object:
    """What both passes share; the caller keeps the tensors, of which x is along time and the layer `_ready`."""
    return core().WavenetGates(
        name(x.dtype),
        (x.shape[0], x.shape[1], layer.gate, layer.skip),
        core().Source(x.data_ptr(), x.stride()[:2], x.shape[2]),
        layer.weight.shape[2],
        layer.dilation,
        layer.weight.data_ptr(),
        layer.weight.stride(),
        address(layer.bias),
        layer.residual_weight.data_ptr(),
        layer.residual_weight.stride(),
        layer.skip_weight.data_ptr(),
        layer.skip_weight.stride(),
        address(layer.conditioning),
        layer.frames,
        layer.hop,
        layer.residual_scale,
        layer.skip_scale,
    )


def _ready(layer: Layer) -> Layer:
    """As the native code takes it: biases float and contiguous, so that it adds them to its float sums."""

    def vector(bias: Tensor | None) -> Tensor | None:
        return None if bias is None else bias.detach().float().contiguous()

    return layer._replace(
        bias=vector(layer.bias),
        residual_bias=vector(layer.residual_bias),
        skip_bias=vector(layer.skip_bias),
        conditioning=None if layer.conditioning is None else layer.conditioning.contiguous(),
    )


def _address(t: Tensor | None) -> tuple[int, tuple[int, ...]]:
    """Where a tensor along time lies, and its strides over rows and channels."""
    return (address(t), (0, 0) if t is None else t.stride()[:2])


def forward(x: Tensor, layer: Layer, skip_sum: Tensor | None) -> tuple[Tensor, Tensor]:
    """(residual, skip)."""
    residual = x.new_empty(x.shape)
    skip = x.new_empty(x.shape[0], layer.skip, x.shape[2])
    x, layer = along_time(x), _ready(layer)
    given = None if skip_sum is None else along_time(skip_sum)
    core().wavenet_forward(
        _gates(x, layer), address(layer.residual_bias), address(layer.skip_bias), *_address(given),
        residual.data_ptr(), skip.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return residual, skip


def backward(
    grads: Sequence[Tensor | None], x: Tensor, layer: Layer, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight, bias, residual_weight and its bias, skip_weight and its bias, and the conditioning."""
    x, layer = along_time(x), _ready(layer)
    delayed = Convolution(layer.weight, dilation=layer.dilation)
    grads = [None if grad is None else along_time(grad) for grad in grads]
    h = x.new_empty(x.shape[0], layer.gate, x.shape[2])
    grad_z = x.new_empty(x.shape[0], 2 * layer.gate, x.shape[2])
    given = (*_address(grads[0]), *_address(grads[1]))
    core().wavenet_backward(_gates(x, layer), *given, h.data_ptr(), grad_z.data_ptr(), torch.get_num_threads())
    outputs = layer.output_gradients(
        grads,
        needs[3:7],
        lambda grad, matrix: convolution.products(grad, h, Convolution(matrix.unsqueeze(2))).squeeze(2),
        _sums,
    )
    grad_x = None
    if needs[0]:
        grad_x = x.new_empty(x.shape)
        convolution.back(grad_z, delayed, grad_x, 0)
        if grads[0] is not None:
            grad_x.add_(grads[0], alpha=layer.residual_scale)
    return (
        grad_x,
        convolution.products(grad_z, x, delayed) if needs[1] else None,
        _sums(grad_z) if needs[2] else None,
        *outputs,
        layer.frame_sums(grad_z) if needs[7] else None,
    )


def _sums(grad: Tensor) -> Tensor:
    return grad.sum(2).sum(0)
