"""y[b, o, t] = act(b[o] + sum over c and k of W[o, c, k] x[b, c, t - (K - 1 - k) dilation]).

In PyTorch: ``act(F.conv1d(F.pad(x, (reach, 0)), weight, bias, dilation=dilation, groups=groups))`` with
``reach = (K - 1) * dilation``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastar import _checks, _dispatch
from fastar.ops import (
    _autocast,
    _causal_conv1d_cpu,
    _causal_conv1d_plain,
    _causal_conv1d_triton,
    _library,
    _native,
    _triton,
)
from fastar.ops._causal_layer import Convolution
from fastar.reference import activation as activations


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    dilation: int = 1,
    groups: int = 1,
    activation: str = "none",
    initial_state: Tensor | None = None,
    sequence_index: Tensor | None = None,
) -> Tensor:
    """A convolution along time whose output t sees inputs <= t; ``weight[..., -1]`` multiplies the newest.

    x [B, C, T], weight [out, C / groups, K], bias [out] -> [B, out, T]. No padded copy of x is made.

    `initial_state` [B, C, reach] holds the inputs before the first one, in the place of zeros, where reach is
    ``(K - 1) * dilation``; `final_state` gives what the next chunk of a long input takes. `sequence_index` (int32 or
    int64 [B, T]) packs several sequences into a row: an input reaches only the times that have the same index. Both at
    once are refused.

    Gradients for x, weight, bias and initial_state, of first order.
    """
    _check(x, weight, bias, dilation, groups)
    activation = activations.check(activation)
    _check_past(x, weight, dilation, initial_state, sequence_index)
    x, weight, bias = _autocast.cast(x, weight, bias)
    if initial_state is not None:
        initial_state = initial_state.to(x.dtype)
    if sequence_index is not None:
        sequence_index = sequence_index.to(torch.int32)
    fused = "none" if activation == "concat_elu" else activation
    learning = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, weight, bias, initial_state)
    )
    layer = (weight, bias, initial_state, sequence_index, dilation, groups, fused)
    keep = learning and fused in activations.NEEDS_PREACTIVATION and not Convolution(*layer).depthwise
    y, _ = _forward_op(x, *layer, keep)
    return activations.concat_elu(y, 1) if activation == "concat_elu" else y


def final_state(x: Tensor, reach: int, initial_state: Tensor | None = None) -> Tensor:
    """The last `reach` inputs [B, C, reach] of x [B, C, T]: the initial state of a chunk that follows it."""
    if x.shape[2] >= reach:
        return x[:, :, x.shape[2] - reach :]
    if initial_state is None:
        return torch.nn.functional.pad(x, (reach - x.shape[2], 0))
    return torch.cat([initial_state[:, :, x.shape[2] :].to(x.dtype), x], 2)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, groups: int) -> None:
    _checks.positive("dilation", dilation)
    _checks.positive("groups", groups)
    _checks.dtype("x", _checks.tensor("x", x), _checks.FLOATS)
    _checks.dtype("weight", _checks.tensor("weight", weight), _checks.FLOATS)
    _checks.shape("weight", weight, ["out", "in / groups", "kernel_size"])
    if weight.shape[0] % groups:
        raise ValueError(f"groups: expected a divisor of the {weight.shape[0]} output channels, got {groups}")
    if weight.shape[2] == 0 or weight.shape[1] == 0:
        raise ValueError(f"weight: expected at least one tap and one input, got {list(weight.shape)}")
    _checks.shape("x", x, ["batch", weight.shape[1] * groups, "time"])
    _checks.same_device("weight", weight, "x", x)
    if bias is not None:
        _checks.dtype("bias", _checks.tensor("bias", bias), _checks.FLOATS)
        _checks.shape("bias", bias, [weight.shape[0]])
        _checks.same_device("bias", bias, "x", x)
    if _autocast.target(x.device) is None:
        for name, tensor in (("weight", weight), ("bias", bias)):
            if tensor is not None and tensor.dtype != x.dtype:
                raise TypeError(f"{name}: expected the dtype of x, {x.dtype}, got {tensor.dtype}")


def _check_past(
    x: Tensor, weight: Tensor, dilation: int, initial_state: Tensor | None, sequence_index: Tensor | None
) -> None:
    if initial_state is not None:
        if sequence_index is not None:
            raise ValueError("initial_state: expected either a state or a sequence_index, got both")
        _checks.tensor("initial_state", initial_state)
        _checks.shape("initial_state", initial_state, [x.shape[0], x.shape[1], (weight.shape[2] - 1) * dilation])
        _checks.same_device("initial_state", initial_state, "x", x)
        if _autocast.target(x.device) is None:
            _checks.dtype("initial_state", initial_state, [x.dtype])
    if sequence_index is not None:
        _checks.dtype("sequence_index", _checks.tensor("sequence_index", sequence_index), (torch.int32, torch.int64))
        _checks.shape("sequence_index", sequence_index, [x.shape[0], x.shape[2]])
        _checks.same_device("sequence_index", sequence_index, "x", x)


def _never(device: torch.device, dtype: torch.dtype) -> str | None:
    return None


_dispatch.register(
    "causal_conv1d",
    [
        _dispatch.Implementation(
            "triton", _triton.why_not, _causal_conv1d_triton.forward, _causal_conv1d_triton.backward
        ),
        _dispatch.Implementation("cpu", _native.declines, _causal_conv1d_cpu.forward, _causal_conv1d_cpu.backward),
        _dispatch.Implementation("reference", _never, _causal_conv1d_plain.forward, _causal_conv1d_plain.backward),
    ],
)


def _run(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *layer, keep_preactivation = rest
    chosen = _dispatch.choose("causal_conv1d", x.device, x.dtype)
    y, z = chosen.forward(x, Convolution(*layer), keep_preactivation)
    return y, z


def _fake(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    y = x.new_empty(x.shape[0], weight.shape[0], x.shape[2])
    return y, torch.empty_like(y) if rest[-1] else x.new_empty(0)


def _run_backward(grad: Tensor, x: Tensor, saved: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    *layer, needs = rest
    chosen = _dispatch.choose("causal_conv1d", grad.device, grad.dtype)
    assert chosen.backward is not None
    grads = chosen.backward(grad, x, Convolution(*layer), saved, needs)
    return tuple(grad.new_empty(0) if one is None else one for one in grads)


def _fake_backward(grad: Tensor, x: Tensor, saved: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    *tensors, needs = rest
    layer = Convolution(*tensors)
    state = layer.initial_state
    shapes = (x.shape, layer.weight.shape, layer.weight.shape[:1], (0,) if state is None else state.shape)
    return tuple(grad.new_empty(shape if need else (0,)) for shape, need in zip(shapes, needs, strict=True))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, *tensors, keep_preactivation = inputs
    layer = Convolution(*tensors)
    y, z = output
    ctx.mark_non_differentiable(z)
    ctx.set_materialize_grads(False)
    ctx.rest = (layer.dilation, layer.groups, layer.activation)
    ctx.complete = keep_preactivation or layer.depthwise or layer.activation not in activations.NEEDS_PREACTIVATION
    saved = None if layer.activation == "none" or layer.depthwise else z if keep_preactivation else y
    ctx.save_for_backward(x, saved, layer.weight, layer.bias, layer.initial_state, layer.sequence_index)


def _backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 9
    if not ctx.complete:
        raise RuntimeError(f"fastar::causal_conv1d: keep_preactivation must be set to differentiate {ctx.rest[-1]}")
    needs = list(ctx.needs_input_grad[:4])
    grads = _backward_op(grad, *ctx.saved_tensors, *ctx.rest, needs)
    return (*(one if need else None for one, need in zip(grads, needs, strict=True)), *(None,) * 5)


# How a layer crosses torch.library's border.
_LAYER = (
    "Tensor weight, Tensor? bias, Tensor? initial_state, Tensor? sequence_index, int dilation, int groups,"
    " str activation"
)
_forward_op = _library.define(
    "causal_conv1d",
    f"(Tensor x, {_LAYER}, bool keep_preactivation) -> (Tensor, Tensor)",
    _run,
    _fake,
    setup_context=_setup_context,
    backward=_backward,
)
_backward_op = _library.define(
    "causal_conv1d_backward",
    f"(Tensor grad, Tensor x, Tensor? saved, {_LAYER}, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)
