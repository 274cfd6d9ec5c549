"""y = tanh(a) * sigmoid(b), where z holds a and b one after the other along its channels.

In PyTorch: ``torch.tanh(a) * torch.sigmoid(b)`` with ``a, b = z.chunk(2, 1)``, which makes three more tensors; and
before that, where something is above, ``z = z + F.pad(above[:, :, :-1], (0, 0, 1, 0))``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastar import _checks, _dispatch
from fastar.ops import _library, _native, _tanh_gate_cpu
from fastar.ops._tanh_gate_cpu import layout_of
from fastar.reference import activation as activations
from fastar.reference.tanh_gate import lowered, raised
from fastar.reference.tanh_gate import tanh_gate as reference


def tanh_gate(z: Tensor, above: Tensor | None = None) -> Tensor:
    """tanh(a) * sigmoid(b), with ``a, b = z.chunk(2, 1)``: z [B, 2 C, ...] -> [B, C, ...].

    Where `above` [B, 2 C, H, W] is given, z is of that shape, and each pixel adds what the one over it has there:
    between the stacks of a gated PixelCNN, whose vertical one may be seen from the row below only.

    The result is channels last where z [B, 2 C, H, W] is that and not contiguous as well, and contiguous otherwise.
    Gradients for both, of first order.
    """
    _checks.dtype("z", _checks.tensor("z", z), _checks.FLOATS)
    if z.dim() < 2 or z.shape[1] % 2:
        raise ValueError(f"z: expected shape [batch, 2 * channels, ...], got {list(z.shape)}")
    if above is not None:
        _checks.shape("z", z, ["batch", "2 * channels", "height", "width"])
        _checks.dtype("above", _checks.tensor("above", above), [z.dtype])
        _checks.shape("above", above, z.shape)
        _checks.same_device("above", above, "z", z)
    y: Tensor = _forward_op(z, above)
    return y


def _never(device: torch.device, dtype: torch.dtype) -> str | None:
    return None


def _plain_forward(z: Tensor, above: Tensor | None) -> Tensor:
    return reference(z, above).contiguous(memory_format=layout_of(z))


def _plain_backward(grad: Tensor, z: Tensor, above: Tensor | None) -> tuple[Tensor, Tensor | None]:
    layout = layout_of(z)
    if above is None:
        return activations.tanh_gate_backward(grad, z, 1).contiguous(memory_format=layout), None
    grad_z = activations.tanh_gate_backward(grad, z + lowered(above), 1).contiguous(memory_format=layout)
    return grad_z, raised(grad_z).contiguous(memory_format=layout)


_dispatch.register(
    "tanh_gate",
    [
        _dispatch.Implementation("cpu", _native.declines, _tanh_gate_cpu.forward, _tanh_gate_cpu.backward),
        _dispatch.Implementation("reference", _never, _plain_forward, _plain_backward),
    ],
)


def _run(z: Tensor, above: Tensor | None) -> Tensor:
    y: Tensor = _dispatch.choose("tanh_gate", z.device, z.dtype).forward(z, above)
    return y


def _fake(z: Tensor, above: Tensor | None) -> Tensor:
    shape = (z.shape[0], z.shape[1] // 2, *z.shape[2:])
    return torch.empty(shape, dtype=z.dtype, device=z.device, memory_format=layout_of(z))


def _run_backward(grad: Tensor, z: Tensor, above: Tensor | None) -> tuple[Tensor, Tensor]:
    chosen = _dispatch.choose("tanh_gate", z.device, z.dtype)
    assert chosen.backward is not None
    grad_z, grad_above = chosen.backward(grad, z, above)
    return grad_z, z.new_empty(0) if grad_above is None else grad_above


def _fake_backward(grad: Tensor, z: Tensor, above: Tensor | None) -> tuple[Tensor, Tensor]:
    like = torch.empty(z.shape, dtype=z.dtype, device=z.device, memory_format=layout_of(z))
    return like, z.new_empty(0) if above is None else torch.empty_like(like)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor | None], output: Tensor) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    if grad is None:
        return None, None
    z, above = ctx.saved_tensors
    grad_z, grad_above = _backward_op(grad, z, above)
    return grad_z, None if above is None else grad_above


_forward_op = _library.define(
    "tanh_gate", "(Tensor z, Tensor? above) -> Tensor", _run, _fake, setup_context=_setup_context, backward=_backward
)
_backward_op = _library.define(
    "tanh_gate_backward",
    "(Tensor grad, Tensor z, Tensor? above) -> (Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)
