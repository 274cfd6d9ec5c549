"""y = act(x (W * M)^T + b), where M removes connections: those of M are never multiplied.

In PyTorch: ``act(F.linear(x, weight * mask, bias))``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastar import _checks, _dispatch
from fastar.ops import _autocast, _library, _masked_linear_cpu, _masked_linear_dense, _native, _triton, mask_plan
from fastar.ops.mask_plan import MaskPlan
from fastar.reference import activation as activations

_PLAN = ", ".join(f"Tensor? {name}" for name in MaskPlan._fields)


def masked_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    in_degrees: Tensor | None = None,
    out_degrees: Tensor | None = None,
    strict: bool = False,
    activation: str = "none",
    plan: MaskPlan | None = None,
) -> Tensor:
    """act(x (W * M)^T + b), as ``act(F.linear(x, weight * mask, bias))``, without the products that the mask removes.

    x [..., in], weight [out, in], bias [out] -> [..., out]. M is `mask` (bool [out, in]), or
    ``out_degrees[:, None] >= in_degrees`` (``>`` when `strict`), which is never formed; with neither, a plain linear
    layer. Sorting the degrees (or examining the mask) is done anew in each call; pass a `plan` from `plan_of` to do it
    once, as `fastar.nn.MaskedLinear` does.

    Gradients for x, weight (zero where masked) and bias, of first order. A masked weight never reaches the output, not
    even an infinite one.
    """
    if not _fits(x, weight, bias):
        _check(x, weight, bias)
    activation = activations.check(activation)
    if plan is None:
        plan = plan_of(weight.shape, mask=mask, in_degrees=in_degrees, out_degrees=out_degrees, strict=strict)
    elif mask is not None or in_degrees is not None or out_degrees is not None:
        raise ValueError("plan: expected either a plan, or a mask, or degrees, got more than one of them")
    _check_plan(plan, weight)
    x, weight, bias = _autocast.cast(x, weight, bias)
    fused = "none" if activation == "concat_elu" else activation
    keep = fused in activations.NEEDS_PREACTIVATION and _autocast.learns(x, weight, bias)
    flat = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    y, _ = _forward_op(flat, weight, bias, *plan, fused, keep)
    if x.dim() != 2:
        y = y.view(*x.shape[:-1], weight.shape[0])
    return activations.concat_elu(y, -1) if activation == "concat_elu" else y


def plan_of(
    shape: Sequence[int],
    *,
    mask: Tensor | None = None,
    in_degrees: Tensor | None = None,
    out_degrees: Tensor | None = None,
    strict: bool = False,
) -> MaskPlan:
    """The plan of a mask or of a pair of degree vectors for a weight of this shape [out, in], on their device."""
    rows, columns = shape
    if mask is not None:
        if in_degrees is not None or out_degrees is not None:
            raise ValueError("mask: expected either a mask or degrees, got both")
        _checks.dtype("mask", _checks.tensor("mask", mask), (torch.bool,))
        _checks.shape("mask", mask, [rows, columns])
        return mask_plan.from_mask(mask)
    if in_degrees is None and out_degrees is None:
        return MaskPlan()
    if in_degrees is None or out_degrees is None:
        missing = "in_degrees" if in_degrees is None else "out_degrees"
        raise ValueError(f"{missing}: expected degrees for both sides or for neither, got None")
    for name, degrees, size in (("in_degrees", in_degrees, columns), ("out_degrees", out_degrees, rows)):
        _checks.dtype(name, _checks.tensor(name, degrees), _checks.INTEGERS)
        _checks.shape(name, degrees, [size])
    _checks.same_device("out_degrees", out_degrees, "in_degrees", in_degrees)
    return mask_plan.from_degrees(in_degrees.long(), out_degrees.long(), strict)


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether `_check` would pass, by the least there is to ask; where this does not know, that does."""
    return (
        isinstance(x, Tensor)
        and isinstance(weight, Tensor)
        and x.dtype in _checks.FLOATS
        and x.dtype == weight.dtype
        and weight.dim() == 2
        and x.dim() > 0
        and x.size(-1) == weight.size(1)
        and x.device == weight.device
        and (bias is None or _checks.fits_vector(bias, weight, weight.size(0)))
    )


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    _checks.dtype("x", _checks.tensor("x", x), _checks.FLOATS)
    _checks.dtype("weight", _checks.tensor("weight", weight), _checks.FLOATS)
    _checks.shape("weight", weight, ["out", "in"])
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x: expected shape [..., {weight.shape[1]}] to fit weight {list(weight.shape)}, got {list(x.shape)}"
        )
    _checks.same_device("weight", weight, "x", x)
    if bias is not None:
        _checks.dtype("bias", _checks.tensor("bias", bias), _checks.FLOATS)
        _checks.shape("bias", bias, [weight.shape[0]])
        _checks.same_device("bias", bias, "x", x)
    if _autocast.target(x.device) is None:
        for name, tensor in (("weight", weight), ("bias", bias)):
            if tensor is not None and tensor.dtype != x.dtype:
                raise TypeError(f"{name}: expected the dtype of x, {x.dtype}, got {tensor.dtype}")


def _check_plan(plan: MaskPlan, weight: Tensor) -> None:
    rows, columns = weight.shape
    device = weight.device
    expected = (rows, columns, rows, columns, rows, rows * columns, None)
    for tensor, size in zip(plan, expected, strict=True):
        if tensor is None:
            continue
        if size is not None and tensor.numel() != size:
            raise ValueError(f"plan: expected one made for weight {[rows, columns]}, got one of {list(tensor.shape)}")
        if tensor.device != device and not weight.is_meta:
            _checks.same_device("plan", tensor, "weight", weight)


def _triton_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, plan: MaskPlan, activation: str, keep_preactivation: bool
) -> tuple[Tensor, Tensor]:
    from fastar.kernels import masked_linear as kernels

    y, z = kernels.forward(x, weight, bias, *plan, activation, keep_preactivation, _triton.allow_tf32())
    return y, z


def _triton_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    saved: Tensor | None,
    plan: MaskPlan,
    activation: str,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    from fastar.kernels import masked_linear as kernels

    grad_x, grad_weight, grad_bias = kernels.backward(
        grad, x, weight, saved, *plan, activation, needs, _triton.allow_tf32()
    )
    return grad_x, grad_weight, grad_bias


def _never(device: torch.device, dtype: torch.dtype) -> str | None:
    return None


_dispatch.register(
    "masked_linear",
    [
        _dispatch.Implementation("triton", _triton.why_not, _triton_forward, _triton_backward),
        _dispatch.Implementation("cpu", _native.declines, _masked_linear_cpu.forward, _masked_linear_cpu.backward),
        _dispatch.Implementation("reference", _never, _masked_linear_dense.forward, _masked_linear_dense.backward),
    ],
)


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    *plan, activation, keep_preactivation = rest
    chosen = _dispatch.choose("masked_linear", x.device, x.dtype)
    y, z = chosen.forward(x, weight, bias, MaskPlan(*plan), activation, keep_preactivation)
    return y, z


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    y = x.new_empty(x.shape[0], weight.shape[0])
    return y, torch.empty_like(y) if rest[-1] else x.new_empty(0)


def _run_backward(grad: Tensor, x: Tensor, weight: Tensor, saved: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    *plan, activation, need_x, need_weight, need_bias = rest
    chosen = _dispatch.choose("masked_linear", x.device, x.dtype)
    assert chosen.backward is not None
    grads = chosen.backward(grad, x, weight, saved, MaskPlan(*plan), activation, (need_x, need_weight, need_bias))
    return tuple(x.new_empty(0) if one is None else one for one in grads)


def _fake_backward(grad: Tensor, x: Tensor, weight: Tensor, saved: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    need_x, need_weight, need_bias = rest[-3:]
    return (
        x.new_empty(x.shape) if need_x else x.new_empty(0),
        weight.new_empty(weight.shape) if need_weight else x.new_empty(0),
        x.new_empty(weight.shape[0]) if need_bias else x.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, *plan, activation, keep_preactivation = inputs
    y, z = output
    ctx.mark_non_differentiable(z)
    ctx.set_materialize_grads(False)
    ctx.activation = activation
    ctx.complete = keep_preactivation or activation not in activations.NEEDS_PREACTIVATION
    saved = None if activation == "none" else z if keep_preactivation else y
    ctx.save_for_backward(x, weight, saved, *plan)


def _backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    arguments = len(MaskPlan._fields) + 2
    if grad is None:
        return (None,) * (3 + arguments)
    if not ctx.complete:
        raise RuntimeError(f"fastar::masked_linear: keep_preactivation must be set to differentiate {ctx.activation}")
    needs = ctx.needs_input_grad[:3]
    x, weight, saved, *plan = ctx.saved_tensors
    grads = _backward_op(grad, x, weight, saved, *plan, ctx.activation, *needs)
    return (*(one if need else None for one, need in zip(grads, needs, strict=True)), *(None,) * arguments)


_forward_op = _library.define(
    "masked_linear",
    f"(Tensor x, Tensor weight, Tensor? bias, {_PLAN}, str activation, bool keep_preactivation) -> (Tensor, Tensor)",
    _run,
    _fake,
    setup_context=_setup_context,
    backward=_backward,
)
_backward_op = _library.define(
    "masked_linear_backward",
    f"(Tensor grad, Tensor x, Tensor weight, Tensor? saved, {_PLAN}, str activation,"
    " bool need_x, bool need_weight, bool need_bias) -> (Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)
