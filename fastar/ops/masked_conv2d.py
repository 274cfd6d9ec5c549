"""y = act(conv2d(x, W * M) + b), where M removes taps: those of M are never multiplied.

In PyTorch: ``act(F.conv2d(F.pad(x, padding), weight * mask, bias, stride))``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastar import _checks, _dispatch
from fastar.ops import (
    _autocast,
    _library,
    _masked_conv2d_cpu,
    _masked_conv2d_plain,
    _masked_conv2d_triton,
    _native,
    _triton,
    tap_plan,
)
from fastar.ops.tap_plan import Geometry, TapPlan
from fastar.reference import activation as activations

MASK_TYPES = ("A", "B")
COLOUR_LAYOUTS = ("interleaved", "contiguous")


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mask_type: str | None = None,
    colours: int = 1,
    colour_layout: str = "interleaved",
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = "same",
    transposed: bool = False,
    activation: str = "none",
    plan: TapPlan | None = None,
) -> Tensor:
    """act(conv2d(x, W * M) + b), as ``act(F.conv2d(x, weight * mask, bias))``, without the taps that the mask removes.

    x [batch, in, H, W], weight [out, in, h, w], bias [out] -> [batch, out, H', W']. M keeps the taps before the centre
    in raster order. At the centre type "A" keeps nothing and type "B" everything; with `colours` > 1 an output of
    colour o keeps the inputs of colours < o ("A") or <= o ("B"), where channel c has colour ``c mod colours``
    (interleaved) or ``floor(c * colours / channels)`` (contiguous). A `plan` takes the place of these: any taps, as
    those of a gated PixelCNN's stacks; with neither, nothing is masked.

    ``activation="tanh_gate"`` halves the channels: tanh(first half) * sigmoid(second half). The colours are then those
    of the result: each half has them.

    `padding`: "same" (odd kernels, stride 1), one or two integers as in F.conv2d, or four, (left, right, top, bottom),
    as in F.pad. `transposed`: the transpose of that convolution, as F.conv_transpose2d, weight [in, out, h, w]; the
    padding then says what is cropped.

    Gradients for x, weight (zero where masked) and bias, of first order. A masked weight never reaches the output, not
    even an infinite one.
    """
    _checks.shape("weight", _checks.tensor("weight", weight), ["out", "in", "h", "w"])
    activation = activations.check(activation, gated=True)
    gated = activation == activations.GATE
    if plan is None:
        plan = plan_of(weight.shape, mask_type, colours, colour_layout, weight.device, gated=gated)
    elif mask_type is not None:
        raise ValueError("plan: expected either a plan or a mask_type, got both")
    geometry = geometry_of(weight.shape[2:], stride, padding, transposed)
    return tap_conv2d(x, weight, bias, plan, geometry, activation)


def tap_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, plan: TapPlan, geometry: Geometry, activation: str
) -> Tensor:
    """`masked_conv2d` with its arguments in their one form, as layers have them."""
    _check(x, weight, bias, geometry.transposed)
    _check_plan(plan, weight)
    if activation == activations.GATE:
        check_halves("weight", geometry.channels(weight))
        if geometry.transposed and plan.channel_mask is not None:
            raise ValueError("transposed: expected False for a gate with colours, whose halves are those of the output")
    if min(geometry.result_size(x.shape[2:], weight.shape[2:])) < 1:
        raise ValueError(
            f"x: expected a height and width that leave an output of at least 1 x 1 for a kernel of"
            f" {list(weight.shape[2:])} with padding {geometry.padding}, got {list(x.shape)}"
        )
    x, weight, bias = _autocast.cast(x, weight, bias)
    fused = "none" if activation == "concat_elu" else activation
    keep = fused in activations.NEEDS_PREACTIVATION and _autocast.learns(x, weight, bias)
    y, _ = _forward_op(x, weight, bias, *_arguments(plan, geometry), fused, keep)
    return activations.concat_elu(y, 1) if activation == "concat_elu" else y


def plan_of(
    shape: Sequence[int],
    mask_type: str | None,
    colours: int = 1,
    colour_layout: str = "interleaved",
    device: torch.device | str | None = None,
    gated: bool = False,
) -> TapPlan:
    """The taps that survive the mask of a weight of this shape [out, in, height, width]; gated: see masked_conv2d."""
    _checks.positive("colours", colours)
    if colour_layout not in COLOUR_LAYOUTS:
        raise ValueError(f"colour_layout: expected one of {', '.join(COLOUR_LAYOUTS)}, got {colour_layout!r}")
    if mask_type is None:
        if colours != 1:
            raise ValueError(f"colours: expected 1 without a mask_type, got {colours}")
        return tap_plan.full(shape[2:])
    if mask_type not in MASK_TYPES:
        raise ValueError(f"mask_type: expected one of {', '.join(MASK_TYPES)}, got {mask_type!r}")
    if shape[2] % 2 == 0 or shape[3] % 2 == 0:
        raise ValueError(f"kernel_size: expected odd sizes, which have a centre to mask, got {list(shape[2:])}")
    if not gated:
        return tap_plan.raster(shape, mask_type, colours, colour_layout, device)
    half = tap_plan.raster((shape[0] // 2, *shape[1:]), mask_type, colours, colour_layout, device)
    return replace(half, channel_mask=None if half.channel_mask is None else half.channel_mask.repeat(2, 1))


def check_halves(argument: str, outputs: int) -> None:
    """A gate needs an even number of channels."""
    if outputs % 2:
        raise ValueError(f"{argument}: expected an even number of output channels for a gate, got {outputs}")


def geometry_of(
    kernel: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = "same",
    transposed: bool = False,
) -> Geometry:
    """Stride and padding in their one form."""
    steps = (stride, stride) if isinstance(stride, int) else tuple(stride)
    if len(steps) != 2:
        raise ValueError(f"stride: expected one or two positive integers, got {stride!r}")
    down, right = (_checks.positive("stride", step) for step in steps)
    if isinstance(padding, str):
        if padding != "same":
            raise ValueError(f"padding: expected 'same' or integers, got {padding!r}")
        if kernel[0] % 2 == 0 or kernel[1] % 2 == 0 or (down, right) != (1, 1):
            raise ValueError(
                f"padding: 'same' expects odd kernel sizes and stride 1, got kernel {list(kernel)}, stride {stride!r}"
            )
        padding = (kernel[0] // 2, kernel[1] // 2)
    sizes = (padding, padding) if isinstance(padding, int) else tuple(padding)
    if len(sizes) == 2:
        sizes = (sizes[1], sizes[1], sizes[0], sizes[0])
    if len(sizes) != 4 or any(isinstance(one, bool) or not isinstance(one, int) or one < 0 for one in sizes):
        raise ValueError(f"padding: expected 'same', or 1, 2 or 4 integers of at least 0, got {padding!r}")
    left, right_side, top, bottom = sizes
    return Geometry((down, right), (left, right_side, top, bottom), bool(transposed))


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> None:
    outputs, inputs = (1, 0) if transposed else (0, 1)
    if (
        isinstance(x, Tensor)
        and isinstance(weight, Tensor)
        and x.dtype in _checks.FLOATS
        and x.dtype == weight.dtype
        and x.dim() == weight.dim() == 4
        and x.size(1) == weight.size(inputs)
        and x.device == weight.device
        and (bias is None or _checks.fits_vector(bias, weight, weight.size(outputs)))
    ):
        return
    _checks.dtype("x", _checks.tensor("x", x), _checks.FLOATS)
    _checks.dtype("weight", _checks.tensor("weight", weight), _checks.FLOATS)
    _checks.shape("weight", weight, ["in", "out", "h", "w"] if transposed else ["out", "in", "h", "w"])
    _checks.shape("x", x, ["batch", weight.shape[0 if transposed else 1], "height", "width"])
    _checks.same_device("weight", weight, "x", x)
    if bias is not None:
        _checks.dtype("bias", _checks.tensor("bias", bias), _checks.FLOATS)
        _checks.shape("bias", bias, [weight.shape[1 if transposed else 0]])
        _checks.same_device("bias", bias, "x", x)
    if _autocast.target(x.device) is None:
        for name, tensor in (("weight", weight), ("bias", bias)):
            if tensor is not None and tensor.dtype != x.dtype:
                raise TypeError(f"{name}: expected the dtype of x, {x.dtype}, got {tensor.dtype}")


def _check_plan(plan: TapPlan, weight: Tensor) -> None:
    taps = weight.shape[2] * weight.shape[3]
    # A compiler traces through a cache, and warns of it.
    rising = _rising if torch.compiler.is_compiling() else _known_rising
    if not rising(plan.taps, taps):
        raise ValueError(f"plan: expected rising numbers of taps below {taps}, got {plan.taps}")
    if plan.channel_mask is None:
        return
    if plan.masked not in plan.taps:
        raise ValueError(f"plan: expected the masked tap to be one of {plan.taps}, got {plan.masked}")
    _checks.dtype("plan", plan.channel_mask, (torch.bool,))
    _checks.shape("plan", plan.channel_mask, weight.shape[:2])
    if not weight.is_meta:
        _checks.same_device("plan", plan.channel_mask, "weight", weight)


def _rising(taps: tuple[int, ...], count: int) -> bool:
    """Whether these are numbers of a kernel's taps, each once and in order."""
    return all(0 <= tap < count for tap in taps) and list(taps) == sorted(set(taps))


_known_rising = functools.lru_cache(maxsize=1024)(_rising)


# How plan and geometry cross torch.library's border.
_PLAN = "Tensor? channel_mask, int[] taps, int masked, int[2] stride, int[4] padding, bool transposed"


def _arguments(plan: TapPlan, geometry: Geometry) -> tuple[Any, ...]:
    return (plan.channel_mask, plan.taps, plan.masked, geometry.stride, geometry.padding, geometry.transposed)


def _back(
    channel_mask: Tensor | None,
    taps: Sequence[int],
    masked: int,
    stride: Sequence[int],
    padding: Sequence[int],
    transposed: bool,
) -> tuple[TapPlan, Geometry]:
    plan, geometry = _back_of(tuple(taps), masked, tuple(stride), tuple(padding), transposed)
    return plan if channel_mask is None else replace(plan, channel_mask=channel_mask.contiguous()), geometry


@functools.lru_cache(maxsize=1024)
def _back_of(
    taps: tuple[int, ...], masked: int, stride: tuple[int, int], padding: tuple[int, int, int, int], transposed: bool
) -> tuple[TapPlan, Geometry]:
    return TapPlan(taps, masked), Geometry(stride, padding, transposed)


def _never(device: torch.device, dtype: torch.dtype) -> str | None:
    return None


_dispatch.register(
    "masked_conv2d",
    [
        _dispatch.Implementation(
            "triton", _triton.why_not, _masked_conv2d_triton.forward, _masked_conv2d_triton.backward
        ),
        _dispatch.Implementation("cpu", _native.declines, _masked_conv2d_cpu.forward, _masked_conv2d_cpu.backward),
        _dispatch.Implementation("reference", _never, _masked_conv2d_plain.forward, _masked_conv2d_plain.backward),
    ],
)


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    *plan, activation, keep_preactivation = rest
    chosen = _dispatch.choose("masked_conv2d", x.device, x.dtype)
    y, z = chosen.forward(x, weight, bias, *_back(*plan), activation, keep_preactivation)
    return y, z


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    *plan, activation, keep_preactivation = rest
    geometry = _back(*plan)[1]
    y = geometry.empty_result(x, weight, 2 if activation == activations.GATE else 1)
    return y, geometry.empty_result(x, weight) if keep_preactivation else x.new_empty(0)


def _run_backward(grad: Tensor, x: Tensor, weight: Tensor, saved: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    *plan, activation, need_x, need_weight, need_bias = rest
    chosen = _dispatch.choose("masked_conv2d", x.device, x.dtype)
    assert chosen.backward is not None
    grad_x, grad_weight, grad_bias = chosen.backward(
        grad, x, weight, saved, *_back(*plan), activation, (need_x, need_weight, need_bias)
    )
    if grad_weight is not None:
        # As the weight lies: whoever adds one to the other goes through both in one order.
        grad_weight = grad_weight.contiguous(memory_format=tap_plan.format_of(weight))
    return tuple(x.new_empty(0) if one is None else one for one in (grad_x, grad_weight, grad_bias))


def _fake_backward(grad: Tensor, x: Tensor, weight: Tensor, saved: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    *plan, _, need_x, need_weight, need_bias = rest
    grad_x = torch.empty_like(x, memory_format=tap_plan.format_of(x, weight)) if need_x else x.new_empty(0)
    return (
        grad_x,
        torch.empty_like(weight, memory_format=tap_plan.format_of(weight)) if need_weight else x.new_empty(0),
        x.new_empty(_back(*plan)[1].channels(weight)) if need_bias else x.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, channel_mask, *plan, activation, keep_preactivation = inputs
    y, z = output
    ctx.mark_non_differentiable(z)
    ctx.set_materialize_grads(False)
    ctx.plan = plan
    ctx.activation = activation
    ctx.complete = keep_preactivation or activation not in activations.NEEDS_PREACTIVATION
    saved = None if activation == "none" else z if keep_preactivation else y
    ctx.save_for_backward(x, weight, saved, channel_mask)


def _backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    arguments = len(ctx.plan) + 3
    if grad is None:
        return (None,) * (3 + arguments)
    if not ctx.complete:
        raise RuntimeError(f"fastar::masked_conv2d: keep_preactivation must be set to differentiate {ctx.activation}")
    needs = ctx.needs_input_grad[:3]
    x, weight, saved, channel_mask = ctx.saved_tensors
    grads = _backward_op(grad, x, weight, saved, channel_mask, *ctx.plan, ctx.activation, *needs)
    return (*(one if need else None for one, need in zip(grads, needs, strict=True)), *(None,) * arguments)


_forward_op = _library.define(
    "masked_conv2d",
    f"(Tensor x, Tensor weight, Tensor? bias, {_PLAN}, str activation, bool keep_preactivation) -> (Tensor, Tensor)",
    _run,
    _fake,
    setup_context=_setup_context,
    backward=_backward,
)
_backward_op = _library.define(
    "masked_conv2d_backward",
    f"(Tensor grad, Tensor x, Tensor weight, Tensor? saved, {_PLAN}, str activation,"
    " bool need_x, bool need_weight, bool need_bias) -> (Tensor, Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)
