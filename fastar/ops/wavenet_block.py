"""z = dilated causal conv(x) + conditioning, h = tanh(z_f) sigmoid(z_g); residual and skip are linear in h.

    residual = (W_r h + b_r + x) residual_scale        skip = (W_s h + b_s) skip_scale + skip_sum

In PyTorch: ``z = F.conv1d(F.pad(x, (reach, 0)), weight, bias, dilation=dilation) + conditioning.repeat_interleave(hop,
2)``, then ``h = z_f.tanh() * z_g.sigmoid()`` of its halves along channels, and two convolutions of kernel size 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastar import _checks, _dispatch
from fastar.ops import (
    _autocast,
    _library,
    _native,
    _triton,
    _wavenet_block_cpu,
    _wavenet_block_plain,
    _wavenet_block_triton,
)
from fastar.ops._wavenet_layer import Layer


def wavenet_block(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual_weight: Tensor,
    residual_bias: Tensor | None,
    skip_weight: Tensor,
    skip_bias: Tensor | None,
    *,
    dilation: int = 1,
    conditioning: Tensor | None = None,
    hop: int = 1,
    skip_sum: Tensor | None = None,
    residual_scale: float = 1.0,
    skip_scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """One layer of a WaveNet, (residual [B, R, T], skip [B, S, T]); what lies between is never written to memory.

    x [B, R, T], weight [2 G, R, K] (the rows of the filter z_f, then those of the gate z_g), bias [2 G],
    residual_weight [R, G], skip_weight [S, G]. Output t sees inputs <= t; ``weight[..., -1]`` multiplies the newest.

    `conditioning` [B, 2 G, frames] is added to z at its own rate: frame ``t // hop`` at time t, in all as many frames
    as cover T. It is what local and global features give after their products; a global vector alone is one frame of
    ``hop=T``. `skip_sum` [B, S, T] is what earlier layers left: the result is a new tensor, their sum; nothing is
    changed in place.

    Gradients for every tensor, of first order. The backward saves the inputs alone and computes z again.
    """
    _checks.positive("dilation", dilation)
    _checks.positive("hop", hop)
    _check(x, weight, residual_weight, skip_weight, conditioning, hop, skip_sum)
    _check_rest(x, weight, bias, residual_weight, residual_bias, skip_weight, skip_bias, conditioning, skip_sum)
    to = _autocast.target(x.device)
    tensors = [x, weight, bias, residual_weight, residual_bias, skip_weight, skip_bias, conditioning, skip_sum]
    if to is not None and x.dtype != torch.float64 and weight.dtype != torch.float64:
        tensors = [None if t is None else t.to(to) for t in tensors]
    *tensors, skip_sum = tensors
    residual, skip = _forward_op(*tensors, dilation, hop, float(residual_scale), float(skip_scale), skip_sum)
    return residual, skip


def _check(
    x: Tensor,
    weight: Tensor,
    residual_weight: Tensor,
    skip_weight: Tensor,
    conditioning: Tensor | None,
    hop: int,
    skip_sum: Tensor | None,
) -> None:
    _checks.shape("weight", _checks.tensor("weight", weight), ["2 gate", "residual", "kernel_size"])
    if weight.shape[0] % 2 or 0 in weight.shape:
        raise ValueError(f"weight: expected an even number of rows and no empty dimension, got {list(weight.shape)}")
    gate, channels = weight.shape[0] // 2, weight.shape[1]
    _checks.shape("x", _checks.tensor("x", x), ["batch", channels, "time"])
    _checks.shape("residual_weight", _checks.tensor("residual_weight", residual_weight), [channels, gate])
    _checks.shape("skip_weight", _checks.tensor("skip_weight", skip_weight), ["skip", gate])
    if conditioning is not None:
        _checks.shape("conditioning", _checks.tensor("conditioning", conditioning), [x.shape[0], 2 * gate, "frames"])
        frames = -(-x.shape[2] // hop)
        if conditioning.shape[2] != frames and x.shape[2]:
            raise ValueError(
                f"conditioning: expected {frames} frames of {hop} times to cover {x.shape[2]},"
                f" got {conditioning.shape[2]}"
            )
    if skip_sum is not None:
        _checks.shape("skip_sum", _checks.tensor("skip_sum", skip_sum), [x.shape[0], skip_weight.shape[0], x.shape[2]])


def _check_rest(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual_weight: Tensor,
    residual_bias: Tensor | None,
    skip_weight: Tensor,
    skip_bias: Tensor | None,
    conditioning: Tensor | None,
    skip_sum: Tensor | None,
) -> None:
    """Biases' shapes, and every tensor's dtype and device."""
    for name, vector, rows in (
        ("bias", bias, weight),
        ("residual_bias", residual_bias, residual_weight),
        ("skip_bias", skip_bias, skip_weight),
    ):
        if vector is not None:
            _checks.shape(name, _checks.tensor(name, vector), [rows.shape[0]])
    _checks.dtype("x", x, _checks.FLOATS)
    others = {
        "weight": weight,
        "bias": bias,
        "residual_weight": residual_weight,
        "residual_bias": residual_bias,
        "skip_weight": skip_weight,
        "skip_bias": skip_bias,
        "conditioning": conditioning,
        "skip_sum": skip_sum,
    }
    mixes = _autocast.target(x.device) is not None
    for name, tensor in others.items():
        if tensor is not None:
            _checks.dtype(name, tensor, _checks.FLOATS if mixes else [x.dtype])
            _checks.same_device(name, tensor, "x", x)


def _never(device: torch.device, dtype: torch.dtype) -> str | None:
    return None


_dispatch.register(
    "wavenet_block",
    [
        _dispatch.Implementation(
            "triton", _triton.why_not, _wavenet_block_triton.forward, _wavenet_block_triton.backward
        ),
        _dispatch.Implementation("cpu", _native.declines, _wavenet_block_cpu.forward, _wavenet_block_cpu.backward),
        _dispatch.Implementation("reference", _never, _wavenet_block_plain.forward, _wavenet_block_plain.backward),
    ],
)


# The end of a layer as it crosses torch.library's border; its tensors come before, two biases less in the backward.
_NUMBERS = "int dilation, int hop, float residual_scale, float skip_scale"


def _layer_backward(
    weight: Tensor,
    bias: Tensor | None,
    residual_weight: Tensor,
    skip_weight: Tensor,
    conditioning: Tensor | None,
    *numbers: Any,
) -> Layer:
    return Layer(weight, bias, residual_weight, None, skip_weight, None, conditioning, *numbers)


def _run(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *layer, skip_sum = rest
    residual, skip = _dispatch.choose("wavenet_block", x.device, x.dtype).forward(x, Layer(*layer), skip_sum)
    return residual, skip


def _fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    layer = Layer(*rest[:-1])
    return x.new_empty(x.shape), x.new_empty(x.shape[0], layer.skip, x.shape[2])


def _run_backward(grad_residual: Tensor | None, grad_skip: Tensor | None, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *layer, needs = rest
    chosen = _dispatch.choose("wavenet_block", x.device, x.dtype)
    assert chosen.backward is not None
    grads = chosen.backward((grad_residual, grad_skip), x, _layer_backward(*layer), needs)
    return tuple(x.new_empty(0) if one is None else one for one in grads)


def _fake_backward(grad_residual: Tensor | None, grad_skip: Tensor | None, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *tensors, needs = rest
    layer = _layer_backward(*tensors)
    shapes = [
        x.shape,
        layer.weight.shape,
        layer.weight.shape[:1],
        layer.residual_weight.shape,
        layer.residual_weight.shape[:1],
        layer.skip_weight.shape,
        layer.skip_weight.shape[:1],
        (0,) if layer.conditioning is None else layer.conditioning.shape,
    ]
    return tuple(x.new_empty(shape if need else (0,)) for shape, need in zip(shapes, needs, strict=True))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, residual_weight, _, skip_weight, _, conditioning, *numbers, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.numbers = numbers
    ctx.save_for_backward(x, weight, bias, residual_weight, skip_weight, conditioning)


def _backward(ctx: Any, grad_residual: Tensor | None, grad_skip: Tensor | None) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:8])
    grads: list[Tensor | None] = [None] * 8
    if any(needs) and not (grad_residual is None and grad_skip is None):
        found = _backward_op(grad_residual, grad_skip, *ctx.saved_tensors, *ctx.numbers, needs)
        grads = [one if need else None for one, need in zip(found, needs, strict=True)]
    return (*grads, *(None,) * 4, grad_skip if ctx.needs_input_grad[12] else None)


_forward_op = _library.define(
    "wavenet_block",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor residual_weight, Tensor? residual_bias, Tensor skip_weight,"
    f" Tensor? skip_bias, Tensor? conditioning, {_NUMBERS}, Tensor? skip_sum) -> (Tensor, Tensor)",
    _run,
    _fake,
    setup_context=_setup_context,
    backward=_backward,
)
_backward_op = _library.define(
    "wavenet_block_backward",
    "(Tensor? grad_residual, Tensor? grad_skip, Tensor x, Tensor weight, Tensor? bias, Tensor residual_weight,"
    f" Tensor skip_weight, Tensor? conditioning, {_NUMBERS}, bool[] needs)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)
