"""The gate on the CPU: native code, one pass over memory forward and one backward, which evaluates both again."""

from __future__ import annotations

import torch
from torch import Tensor

from fastar.native import core
from fastar.ops._native import address, name
from fastar.ops.tap_plan import format_of


def layout_of(z: Tensor) -> torch.memory_format:
    """The memory format of what is made of z."""
    return format_of(z) if z.dim() == 4 else torch.contiguous_format


def _run(
    z: Tensor, grad: Tensor | None, out: Tensor, above: Tensor | None = None, grad_above: Tensor | None = None
) -> None:
    """All of one memory format: rows are pixels where the channels lie beside each other, and images otherwise."""
    if z.numel() == 0:
        return
    images = z.is_contiguous()
    length = z.shape[1:].numel() // 2 if images else z.shape[1] // 2
    sizes = (0, 0) if above is None else (z.shape[3], z.shape[2] * z.shape[3])
    core().tanh_gate(
        name(z.dtype), z.numel() // (2 * length), length, z.data_ptr(), address(grad), out.data_ptr(),
        torch.get_num_threads(), address(above), address(grad_above), not images, *sizes,
    )  # fmt: skip


def forward(z: Tensor, above: Tensor | None = None, y: Tensor | None = None) -> Tensor:
    """tanh(a) * sigmoid(b), in z's memory format; in `y`, where that is given."""
    layout = layout_of(z)
    z = z.contiguous(memory_format=layout)
    if above is not None:
        above = above.contiguous(memory_format=layout)
    if y is None:
        y = torch.empty((z.shape[0], z.shape[1] // 2, *z.shape[2:]), dtype=z.dtype, memory_format=layout)
    _run(z, None, y, above)
    return y


def backward(grad: Tensor, z: Tensor, above: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """The gradients of z and of what is above."""
    layout = layout_of(z)
    z, grad = z.contiguous(memory_format=layout), grad.contiguous(memory_format=layout)
    grad_z = torch.empty_like(z, memory_format=layout)
    grad_above = None
    if above is not None:
        above = above.contiguous(memory_format=layout)
        grad_above = torch.empty_like(z, memory_format=layout)
    _run(z, grad, grad_z, above, grad_above)
    return grad_z, grad_above
