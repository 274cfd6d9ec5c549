"""y = tanh(a) * sigmoid(b), where z holds a and b one after the other along its channels.

In PyTorch: ``torch.tanh(a) * torch.sigmoid(b)`` with ``a, b = z.chunk(2, 1)``, which makes three more tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastar import _checks, _dispatch
from fastar.ops import _library, _native, _tanh_gate_cpu
from fastar.ops.tap_plan import format_of
from fastar.reference import activation as activations
from fastar.reference.tanh_gate import tanh_gate as reference


def tanh_gate(z: Tensor) -> Tensor:
    """tanh(a) * sigmoid(b), with ``a, b = z.chunk(2, 1)``: z [B, 2 C, ...] -> [B, C, ...].

    The result is channels last where z [B, 2 C, H, W] is that and not contiguous as well, and contiguous otherwise.
    Gradient for z, of first order.
    """
    _checks.dtype("z", _checks.tensor("z", z), _checks.FLOATS)
    if z.dim() < 2 or z.shape[1] % 2:
        raise ValueError(f"z: expected shape [batch, 2 * channels, ...], got {list(z.shape)}")
    y: Tensor = _forward_op(z)
    return y


def _never(device: torch.device, dtype: torch.dtype) -> str | None:
    return None


def _plain_forward(z: Tensor) -> Tensor:
    return reference(z).contiguous(memory_format=_layout(z))


def _plain_backward(grad: Tensor, z: Tensor) -> Tensor:
    return activations.tanh_gate_backward(grad, z, 1).contiguous(memory_format=_layout(z))


_dispatch.register(
    "tanh_gate",
    [
        _dispatch.Implementation("cpu", _native.declines, _tanh_gate_cpu.forward, _tanh_gate_cpu.backward),
        _dispatch.Implementation("reference", _never, _plain_forward, _plain_backward),
    ],
)


def _layout(z: Tensor) -> torch.memory_format:
    return format_of(z) if z.dim() == 4 else torch.contiguous_format


def _run(z: Tensor) -> Tensor:
    y: Tensor = _dispatch.choose("tanh_gate", z.device, z.dtype).forward(z)
    return y


def _fake(z: Tensor) -> Tensor:
    shape = (z.shape[0], z.shape[1] // 2, *z.shape[2:])
    return torch.empty(shape, dtype=z.dtype, device=z.device, memory_format=_layout(z))


def _run_backward(grad: Tensor, z: Tensor) -> Tensor:
    chosen = _dispatch.choose("tanh_gate", z.device, z.dtype)
    assert chosen.backward is not None
    grad_z: Tensor = chosen.backward(grad, z)
    return grad_z


def _fake_backward(grad: Tensor, z: Tensor) -> Tensor:
    return torch.empty(z.shape, dtype=z.dtype, device=z.device, memory_format=_layout(z))


def _setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor | None) -> Tensor | None:
    if grad is None:
        return None
    grad_z: Tensor = _backward_op(grad, *ctx.saved_tensors)
    return grad_z


_forward_op = _library.define(
    "tanh_gate", "(Tensor z) -> Tensor", _run, _fake, setup_context=_setup_context, backward=_backward
)
_backward_op = _library.define("tanh_gate_backward", "(Tensor grad, Tensor z) -> Tensor", _run_backward, _fake_backward)
