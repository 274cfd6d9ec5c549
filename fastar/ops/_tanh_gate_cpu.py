"""The gate on the CPU: native code, one pass over memory forward and one backward, which evaluates both again."""

from __future__ import annotations

import torch
from torch import Tensor

from fastar.native import core
from fastar.ops._native import address, name
from fastar.ops.tap_plan import format_of


def _run(z: Tensor, grad: Tensor | None, out: Tensor) -> None:
    """All of one memory format: rows are pixels where the channels lie beside each other, and images otherwise."""
    if z.numel() == 0:
        return
    length = z.shape[1:].numel() // 2 if z.is_contiguous() else z.shape[1] // 2
    core().tanh_gate(
        name(z.dtype), z.numel() // (2 * length), length, z.data_ptr(),
        address(grad), out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip


def forward(z: Tensor, y: Tensor | None = None) -> Tensor:
    """tanh(a) * sigmoid(b), in z's memory format; in `y`, where that is given."""
    layout = format_of(z) if z.dim() == 4 else torch.contiguous_format
    z = z.contiguous(memory_format=layout)
    if y is None:
        y = torch.empty((z.shape[0], z.shape[1] // 2, *z.shape[2:]), dtype=z.dtype, memory_format=layout)
    _run(z, None, y)
    return y


def backward(grad: Tensor, z: Tensor) -> Tensor:
    """The gradient of z."""
    layout = format_of(z) if z.dim() == 4 else torch.contiguous_format
    z, grad = z.contiguous(memory_format=layout), grad.contiguous(memory_format=layout)
    grad_z = torch.empty_like(z, memory_format=layout)
    _run(z, grad, grad_z)
    return grad_z
