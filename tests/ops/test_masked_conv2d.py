"""The masked convolution against its reference in float64: forward and every gradient, on each CPU implementation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from budget import assert_within_budget
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastar import _dispatch
from fastar.native import core
from fastar.ops import masked_conv2d
from fastar.ops.masked_conv2d import geometry_of, plan_of
from fastar.ops.tap_plan import TapPlan
from fastar.reference import activation as activations
from fastar.reference.masked_conv2d import colours_of, raster_mask
from fastar.reference.masked_conv2d import masked_conv2d as reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FUSED = [*activations.APPLY, activations.GATE]
Sizes = Sequence[int]

# Names of masks, and the op's arguments that mean them.
MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "A": {"mask_type": "A"},
    "B": {"mask_type": "B"},
    "A interleaved": {"mask_type": "A", "colours": 3},
    "B interleaved": {"mask_type": "B", "colours": 3},
    "A contiguous": {"mask_type": "A", "colours": 3, "colour_layout": "contiguous"},
    "B contiguous": {"mask_type": "B", "colours": 3, "colour_layout": "contiguous"},
}


def mask_of(name: str, shape: Sizes, activation: str = "none") -> Tensor | None:
    call = MASKS[name]
    if not call:
        return None
    parts = 2 if activation == activations.GATE else 1
    half = (shape[0] // parts, *shape[1:])
    mask = raster_mask(half, call["mask_type"], call.get("colours", 1), call.get("colour_layout", "interleaved"))
    return mask.repeat(parts, 1, 1, 1)


def gradients(run: Callable[..., Tensor], grad: Tensor, *inputs: Tensor) -> list[Tensor]:
    """Output and gradients of `run`, of leaves made from the inputs."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = run(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype).expand_as(y))]


def check_against_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grad: Tensor,
    call: dict[str, Any],
    mask: Tensor | None,
    activation: str = "none",
) -> None:
    masking = ("mask_type", "colours", "colour_layout", "plan")
    geometry = geometry_of(weight.shape[2:], **{key: call[key] for key in call if key not in masking})

    def fast(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return masked_conv2d(x, weight, bias, activation=activation, **call)

    def plain(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = activation) -> Tensor:
        return reference(x, weight, bias, mask, geometry.stride, geometry.padding, activation, geometry.transposed)

    inputs = [x, weight] if bias is None else [x, weight, bias]
    ours = gradients(fast, grad, *inputs)
    same = gradients(plain, grad, *inputs)
    exact = gradients(plain, grad.double(), *(t.double() for t in inputs))
    # Sums of terms of both signs: their size is that of the absolute terms.
    sized = torch.cat([grad, grad], 1) if activation == activations.GATE else grad
    terms = gradients(
        lambda *t: plain(*t, activation="none"), sized.double().abs(), *(t.double().abs() for t in inputs)
    )
    terms[0] = terms[0][:, : exact[0].shape[1]]
    for what, a, b, c, size in zip(["y", "dx", "dweight", "dbias"], ours, same, exact, terms, strict=False):
        assert_within_budget(a, b, c, scale=torch.maximum(c.abs(), size), what=what)
    if mask is not None:
        assert (ours[2][~mask] == 0).all()


def grad_for(x: Tensor, weight: Tensor, call: dict[str, Any], generator: torch.Generator) -> Tensor:
    """A gradient of the shape of the output, in x's dtype."""
    with torch.no_grad():
        shape = masked_conv2d(x, weight, **call).shape
    return torch.randn(shape, generator=generator).to(x.dtype)


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_masks(implementation: str, name: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(len(name))
    # 3 colours divide neither channel count, and 70 outputs are more than one panel of 64.
    x = torch.randn(2, 19, 9, 7, generator=generator).to(dtype)
    weight = torch.randn(70, 19, 5, 3, generator=generator).to(dtype)
    bias = torch.randn(70, generator=generator).to(dtype)
    call = MASKS[name]
    with _dispatch.forced("masked_conv2d", implementation):
        grad = grad_for(x, weight, call, generator)
        check_against_reference(x, weight, bias, grad, call, mask_of(name, weight.shape))


@pytest.mark.parametrize("level", core().levels_usable())
def test_every_vector_level(level: str) -> None:
    generator = torch.Generator().manual_seed(4)
    x, weight = torch.randn(2, 9, 8, 11, generator=generator), torch.randn(90, 9, 3, 3, generator=generator)
    best = core().level()
    try:
        core().select_level(level)
        grad = grad_for(x, weight, {}, generator)
        check_against_reference(x, weight, None, grad, {"mask_type": "B"}, mask_of("B", weight.shape))
    finally:
        core().select_level(best)


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
@pytest.mark.parametrize("activation", FUSED)
def test_activations(implementation: str, activation: str) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(14, 6, 3, 3, generator=generator) / 6
    x, bias = torch.randn(3, 6, 5, 5, generator=generator), torch.randn(14, generator=generator)
    grad = torch.randn(3, 7 if activation == activations.GATE else 14, 5, 5, generator=generator)
    # 3 colours divide neither 7 nor 14: a gate's halves have the colours of its result.
    mask = mask_of("B interleaved", weight.shape, activation)
    with _dispatch.forced("masked_conv2d", implementation):
        check_against_reference(x, weight, bias, grad, MASKS["B interleaved"], mask, activation)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "expanded"])
def test_tanh_gate_halves_the_channels(layout: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(6)
    x, weight = (laid_out(layout, shape, dtype, generator) for shape in ((2, 5, 4, 6), (2, 5, 3, 3)))
    bias = torch.randn(2, generator=generator).to(dtype)
    grad = laid_out(layout, (2, 1, 4, 6), dtype, generator)
    check_against_reference(x, weight, bias, grad, {"mask_type": "A"}, mask_of("A", weight.shape), "tanh_gate")
    y = masked_conv2d(x, weight, bias, activation="tanh_gate")
    z = F.conv2d(x, weight, bias, padding=1)
    torch.testing.assert_close(y, torch.tanh(z[:, :1]) * torch.sigmoid(z[:, 1:]))


def test_a_transposed_gate() -> None:
    generator = torch.Generator().manual_seed(7)
    x, weight = torch.randn(2, 5, 4, 3, generator=generator), torch.randn(5, 6, 2, 3, generator=generator)
    call = {"stride": 2, "padding": (1, 0, 0, 0), "transposed": True}
    grad = torch.randn(2, 3, 8, 6, generator=generator)
    check_against_reference(x, weight, torch.randn(6, generator=generator), grad, call, None, "tanh_gate")


def test_concat_elu_doubles_the_channels() -> None:
    x, weight = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3)
    y = masked_conv2d(x, weight, activation="concat_elu")
    z = F.conv2d(x, weight, padding=1)
    torch.testing.assert_close(y, F.elu(torch.cat([z, -z], 1)))


def laid_out(kind: str, shape: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    if kind == "channels_last":
        return torch.randn(shape, generator=generator).to(dtype).to(memory_format=torch.channels_last)
    if kind == "transposed":
        return torch.randn(tuple(shape)[::-1], generator=generator).to(dtype).permute(3, 2, 1, 0)
    if kind == "strided":
        wide = torch.randn(*shape[:2], 2 * shape[2], 3 * shape[3], generator=generator).to(dtype)
        return wide[:, :, ::2, ::3]
    if kind == "expanded":
        return torch.randn(1, shape[1], 1, 1, generator=generator).to(dtype).expand(tuple(shape))
    return torch.randn(shape, generator=generator).to(dtype)


@given(
    batch=st.integers(0, 3),
    channels=st.tuples(st.integers(1, 20), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 7])),
    name=st.sampled_from(list(MASKS)),
    has_bias=st.booleans(),
    layout=st.sampled_from(["contiguous", "channels_last", "transposed", "strided", "expanded"]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=50, deadline=None)
def test_any_shape_and_stride(
    batch: int,
    channels: tuple[int, int],
    size: tuple[int, int],
    kernel: tuple[int, int],
    name: str,
    has_bias: bool,
    layout: str,
    dtype: torch.dtype,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = laid_out(layout, (batch, channels[0], *size), dtype, generator)
    weight = laid_out(layout, (channels[1], channels[0], *kernel), dtype, generator)
    bias = torch.randn(channels[1], generator=generator).to(dtype) if has_bias else None
    grad = laid_out(layout, (batch, channels[1], *size), dtype, generator)
    check_against_reference(x, weight, bias, grad, MASKS[name], mask_of(name, weight.shape))


@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(*[st.integers(0, 2)] * 4),
    size=st.tuples(st.integers(4, 8), st.integers(4, 8)),
    transposed=st.booleans(),
    chosen=st.sets(st.integers(0, 15)),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=50, deadline=None)
def test_any_taps_stride_and_padding(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    size: tuple[int, int],
    transposed: bool,
    chosen: set[int],
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    if transposed:
        padding = tuple(min(one, 1) for one in padding)  # type: ignore[assignment]
    taps = tuple(sorted(tap for tap in chosen if tap < kernel[0] * kernel[1]))
    weight = torch.randn(5, 6, *kernel, generator=generator)
    channel_mask = torch.rand(5, 6, generator=generator) < 0.5
    plan = TapPlan(taps, taps[-1], channel_mask) if taps else TapPlan(())
    x = torch.randn(2, 5 if transposed else 6, *size, generator=generator)
    bias = torch.randn(6 if transposed else 5, generator=generator)
    call = {"plan": plan, "stride": stride, "padding": padding, "transposed": transposed}
    if min(geometry_of(kernel, stride, padding, transposed).result_size(size, kernel)) < 1:
        with pytest.raises(ValueError, match="x: expected a height and width"):
            masked_conv2d(x, weight, bias, **call)
        return
    mask = torch.zeros(weight.shape, dtype=torch.bool)
    mask.flatten(2)[:, :, list(taps)] = True
    if taps:
        mask.flatten(2)[:, :, taps[-1]] = channel_mask
    check_against_reference(x, weight, bias, grad_for(x, weight, call, generator), call, mask)


@pytest.mark.parametrize("name", [name for name in MASKS if name != "none"])
def test_nothing_later_is_seen(name: str) -> None:
    """By gradient: an output pixel sees earlier pixels, and at its own place what colours and type allow."""
    call = MASKS[name]
    colours, layout = call.get("colours", 1), call.get("colour_layout", "interleaved")
    inputs, outputs, height, width = 7, 8, 5, 6
    weight = torch.rand(outputs, inputs, 3, 5) + 0.1
    x = torch.randn(1, inputs, height, width, requires_grad=True)
    y = masked_conv2d(x, weight, **call)
    in_colour, out_colour = (colours_of(n, colours, layout) for n in (inputs, outputs))
    position = torch.arange(height * width).view(height, width)
    for o in range(outputs):
        for at in ((0, 0), (2, 3), (4, 5), (3, 0)):
            (seen,) = torch.autograd.grad(y[0, o, at[0], at[1]], x, retain_graph=True)
            for c in range(inputs):
                own = in_colour[c] < out_colour[o] or (call["mask_type"] == "B" and in_colour[c] == out_colour[o])
                near = (position // width >= at[0] - 1) & ((position % width - at[1]).abs() <= 2)
                expected = near & (position < position[at])
                expected[at] = bool(own)
                assert torch.equal(seen[0, c] != 0, expected), (o, c, at)


def test_interleaved_colours_need_not_divide() -> None:
    assert colours_of(7, 3, "interleaved").tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert colours_of(7, 3, "contiguous").tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert colours_of(2, 3, "contiguous").tolist() == [0, 1]


def test_plans_are_the_masks() -> None:
    for name, call in MASKS.items():
        for shape in ((4, 6, 3, 5), (7, 2, 1, 1), (3, 3, 7, 7)):
            plan = plan_of(
                shape, call.get("mask_type"), call.get("colours", 1), call.get("colour_layout", "interleaved")
            )
            dense, mask = plan.dense(shape, torch.device("cpu")), mask_of(name, shape)
            assert torch.equal(
                torch.ones(shape) > 0 if dense is None else dense, torch.ones(shape) > 0 if mask is None else mask
            )


def test_sum_backward_sends_an_expanded_gradient() -> None:
    x, weight = torch.randn(2, 4, 5, 5, requires_grad=True), torch.randn(6, 4, 3, 3, requires_grad=True)
    masked_conv2d(x, weight, mask_type="B").sum().backward()
    plain = x.detach().clone().requires_grad_()
    F.conv2d(plain, weight.detach() * raster_mask(weight.shape, "B"), padding=1).sum().backward()
    torch.testing.assert_close(x.grad, plain.grad)


def test_a_masked_weight_never_reaches_the_output() -> None:
    mask = raster_mask((8, 6, 3, 3), "A", 3)
    clean = torch.randn(8, 6, 3, 3)
    dirty = torch.where(mask, clean, torch.full_like(clean, math.nan)).requires_grad_()
    x = torch.randn(2, 6, 5, 5, requires_grad=True)
    y = masked_conv2d(x, dirty, mask_type="A", colours=3)
    y.sum().backward()
    torch.testing.assert_close(y, F.conv2d(x, clean * mask, padding=1))
    assert x.grad is not None
    assert dirty.grad is not None
    assert x.grad.isfinite().all()
    assert (dirty.grad[~mask] == 0).all()


def test_memory_format_follows_torch() -> None:
    x, weight = torch.randn(2, 4, 5, 5), torch.randn(6, 4, 3, 3)
    for a, b in (
        (x, weight),
        (x.to(memory_format=torch.channels_last), weight),
        (x, weight.to(memory_format=torch.channels_last)),
    ):
        assert masked_conv2d(a, b, mask_type="B").stride() == F.conv2d(a, b, padding=1).stride()


def test_one_weight_under_two_masks() -> None:
    weight, x = torch.randn(9, 6, 3, 3), torch.randn(2, 6, 5, 5)
    for _ in range(2):
        for name in ("A", "B", "B interleaved", "B contiguous"):
            expected = F.conv2d(x, weight * mask_of(name, weight.shape), padding=1)
            torch.testing.assert_close(masked_conv2d(x, weight, **MASKS[name]), expected, rtol=1e-5, atol=1e-5)


def test_packed_copies_go_with_their_weight() -> None:
    from fastar.ops import _masked_conv2d_cpu

    before = len(_masked_conv2d_cpu._PACKED)
    weight = torch.randn(9, 6, 3, 3)
    masked_conv2d(torch.randn(2, 6, 5, 5), weight, mask_type="B")
    assert len(_masked_conv2d_cpu._PACKED) == before + 1
    del weight
    assert len(_masked_conv2d_cpu._PACKED) == before


def test_the_bits_do_not_depend_on_threads() -> None:
    x, weight = torch.randn(3, 40, 17, 9), torch.randn(130, 40, 3, 3)
    grad = torch.randn(3, 130, 17, 9)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(gradients(lambda x, w: masked_conv2d(x, w, mask_type="B"), grad, x, weight))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for one in results[1:] for a, b in zip(one, results[0], strict=True))


@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "tanh_gate"])
@pytest.mark.parametrize("name", ["B", "A contiguous"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck(name: str, activation: str, layout: str) -> None:
    generator = torch.Generator().manual_seed(0)
    call = MASKS[name]
    gated = activation == activations.GATE
    weight, bias = torch.randn(8, 6, 3, 3, generator=generator), torch.randn(8, generator=generator)
    x, grad = (laid_out(layout, (2, c, 4, 5), torch.float32, generator) for c in (6, 4 if gated else 8))
    plan = plan_of(weight.shape, call["mask_type"], call.get("colours", 1), call.get("colour_layout", "interleaved"))
    rest = (plan.channel_mask, plan.taps, plan.masked, (1, 1), (1, 1, 1, 1), False, activation)
    keep = activation in activations.NEEDS_PREACTIVATION
    for learn in (False, True):
        arguments = [t.clone().requires_grad_(learn) for t in (x, weight, bias)]
        torch.library.opcheck(torch.ops.fastar.masked_conv2d.default, (*arguments, *rest, keep))
    saved = None if activation == "none" else torch.randn(2, 8, 4, 5)
    torch.library.opcheck(
        torch.ops.fastar.masked_conv2d_backward.default, (grad, x, weight, saved, *rest, True, True, False)
    )


def test_gradcheck_of_the_reference() -> None:
    mask = raster_mask((6, 4, 3, 3), "B", 2)
    inputs = [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((2, 4, 3, 4), (6, 4, 3, 3), (6,))]
    for activation in FUSED:
        assert torch.autograd.gradcheck(
            lambda x, w, b, a=activation: reference(x, w, b, mask, padding=(1, 1, 1, 1), activation=a), inputs
        )
        assert torch.autograd.gradcheck(
            lambda x, w, b, a=activation: masked_conv2d(x, w, b, mask_type="B", colours=2, activation=a), inputs
        )


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh_gate"])
def test_compile_fullgraph(activation: str) -> None:
    def model(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = masked_conv2d(x.sin(), weight, bias, mask_type="B", colours=3, activation=activation)
        return y.cos()

    inputs = [torch.randn(2, 4, 6, 5), torch.randn(8, 4, 3, 3), torch.randn(8)]
    grad = torch.randn(2, 4 if activation == "tanh_gate" else 8, 6, 5)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for ours, plain in zip(gradients(compiled, grad, *inputs), gradients(model, grad, *inputs), strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_torchs(dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(2, 4, 5, 5), torch.randn(6, 4, 3, 3, requires_grad=True), torch.randn(6)
    with torch.autocast("cpu", dtype=dtype):
        ours, plain = masked_conv2d(x, weight, bias), F.conv2d(x, weight, bias, padding=1)
    assert ours.dtype == plain.dtype == dtype
    torch.testing.assert_close(ours, plain)
    (gradient,) = torch.autograd.grad(ours.float().sum(), weight)
    assert gradient.dtype == torch.float32


def test_second_order_and_vmap_are_refused() -> None:
    x, weight = torch.randn(2, 4, 5, 5, requires_grad=True), torch.randn(6, 4, 3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(masked_conv2d(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second-order gradients are not available"):
        gradient.sum().backward()
    with pytest.raises(RuntimeError, match="vmap is not available"):
        torch.vmap(lambda one: masked_conv2d(one, weight))(torch.randn(2, 3, 4, 5, 5))


def test_float64_runs_on_the_reference() -> None:
    x, weight = torch.randn(2, 4, 5, 5, dtype=torch.float64), torch.randn(6, 4, 3, 3, dtype=torch.float64)
    expected = F.conv2d(x, weight * raster_mask(weight.shape, "A"), padding=1)
    torch.testing.assert_close(masked_conv2d(x, weight, mask_type="A"), expected, rtol=1e-14, atol=1e-14)


X, WEIGHT = torch.randn(2, 4, 5, 5), torch.randn(6, 4, 3, 3)
EVEN = torch.randn(6, 4, 2, 3)
BAD: list[tuple[str, type[Exception], str, Callable[[], Any]]] = [
    ("integer x", TypeError, "x: expected dtype", lambda: masked_conv2d(X.long(), WEIGHT)),
    ("x no tensor", TypeError, "x: expected a tensor, got list", lambda: masked_conv2d([1.0], WEIGHT)),  # type: ignore[arg-type]
    ("x 3-D", ValueError, "x: expected shape", lambda: masked_conv2d(X[0], WEIGHT)),
    ("channels of x", ValueError, r"x: expected shape \[batch, 4,", lambda: masked_conv2d(X[:, :3], WEIGHT)),
    ("channels of x, transposed", ValueError, r"x: expected shape \[batch, 6,", lambda: masked_conv2d(
        X, WEIGHT, transposed=True)),
    ("weight 2-D", ValueError, "weight: expected shape", lambda: masked_conv2d(X, WEIGHT[0, 0])),
    ("weight dtype", TypeError, "weight: expected the dtype of x", lambda: masked_conv2d(X, WEIGHT.half())),
    ("weight device", ValueError, "weight: expected the device of x", lambda: masked_conv2d(X, WEIGHT.to("meta"))),
    ("bias shape", ValueError, r"bias: expected shape \[6\]", lambda: masked_conv2d(X, WEIGHT, torch.randn(4))),
    ("mask type", ValueError, "mask_type: expected one of A, B, got 'C'", lambda: masked_conv2d(
        X, WEIGHT, mask_type="C")),
    ("even kernel", ValueError, "kernel_size: expected odd sizes", lambda: masked_conv2d(
        X, EVEN, mask_type="A", padding=1)),
    ("even kernel, same", ValueError, "padding: 'same' expects odd", lambda: masked_conv2d(X, EVEN)),
    ("stride, same", ValueError, "padding: 'same' expects odd", lambda: masked_conv2d(X, WEIGHT, stride=2)),
    ("stride zero", ValueError, "stride: expected a positive", lambda: masked_conv2d(X, WEIGHT, stride=0, padding=1)),
    ("three strides", ValueError, "stride: expected one or two", lambda: masked_conv2d(
        X, WEIGHT, stride=(1, 1, 1), padding=1)),
    ("negative padding", ValueError, "padding: expected 'same', or", lambda: masked_conv2d(X, WEIGHT, padding=-1)),
    ("three paddings", ValueError, "padding: expected 'same', or", lambda: masked_conv2d(X, WEIGHT, padding=(1, 1, 1))),
    ("padding name", ValueError, "padding: expected 'same' or", lambda: masked_conv2d(X, WEIGHT, padding="valid")),
    ("image too small", ValueError, "x: expected a height and width", lambda: masked_conv2d(
        X[:, :, :2], WEIGHT, padding=0)),
    ("colours", ValueError, "colours: expected a positive integer, got 0", lambda: masked_conv2d(
        X, WEIGHT, mask_type="A", colours=0)),
    ("colours without a type", ValueError, "colours: expected 1 without a mask_type", lambda: masked_conv2d(
        X, WEIGHT, colours=3)),
    ("colour layout", ValueError, "colour_layout: expected one of interleaved, contiguous", lambda: masked_conv2d(
        X, WEIGHT, mask_type="A", colours=3, colour_layout="thirds")),
    ("plan and mask type", ValueError, "plan: expected either", lambda: masked_conv2d(
        X, WEIGHT, mask_type="A", plan=TapPlan((0,)))),
    ("tap out of range", ValueError, "plan: expected rising numbers of taps below 9", lambda: masked_conv2d(
        X, WEIGHT, plan=TapPlan((9,)))),
    ("taps out of order", ValueError, "plan: expected rising numbers", lambda: masked_conv2d(
        X, WEIGHT, plan=TapPlan((2, 1)))),
    ("channel mask of another layer", ValueError, r"plan: expected shape \[6, 4\]", lambda: masked_conv2d(
        X, WEIGHT, plan=TapPlan((0,), 0, torch.ones(4, 6) > 0))),
    ("masked tap that is none", ValueError, "plan: expected the masked tap", lambda: masked_conv2d(
        X, WEIGHT, plan=TapPlan((0,), 1, torch.ones(6, 4) > 0))),
    ("activation", ValueError, "activation: expected one of none, relu.*tanh_gate", lambda: masked_conv2d(
        X, WEIGHT, activation="swish")),
    ("gate of odd channels", ValueError, "weight: expected an even number of output channels", lambda: masked_conv2d(
        X, WEIGHT[:5], activation="tanh_gate")),
    ("gate with colours, transposed", ValueError, "transposed: expected False for a gate", lambda: masked_conv2d(
        WEIGHT.new_ones(1, 6, 3, 3), WEIGHT, mask_type="B", colours=2, transposed=True, activation="tanh_gate")),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "call"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_named(error: type[Exception], message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(error, match=message):
        call()


def test_training_follows_the_reference() -> None:
    """200 steps of Adam on fixed images: the fast op's loss curve is the reference's."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 3, 6, 6, generator=generator)
    first = torch.randn(24, 3, 5, 5, generator=generator) / 6
    second = torch.randn(3, 24, 3, 3, generator=generator) / 10
    masks = raster_mask(first.shape, "A", 3), raster_mask(second.shape, "B", 3)

    def curve(dtype: torch.dtype, layer: Callable[[Tensor, Tensor, int], Tensor]) -> Tensor:
        weights = [w.to(dtype).clone().requires_grad_() for w in (first, second)]
        optimiser = torch.optim.Adam(weights, lr=3e-3)
        losses = []
        for _ in range(200):
            optimiser.zero_grad()
            loss = (layer(torch.tanh(layer(x.to(dtype), weights[0], 0)), weights[1], 1) - x.to(dtype)).square().mean()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    def plain(x: Tensor, w: Tensor, i: int) -> Tensor:
        return reference(x, w, None, masks[i], padding=(2, 2, 2, 2) if i == 0 else (1, 1, 1, 1))

    ours = curve(torch.float32, lambda x, w, i: masked_conv2d(x, w, mask_type="AB"[i], colours=3))
    exact = curve(torch.float64, plain)
    assert exact[-1] < 0.7 * exact[0]
    assert_within_budget(ours, curve(torch.float32, plain), exact, what="loss curve")


@pytest.mark.slow
def test_largest_shape_against_float64() -> None:
    generator = torch.Generator().manual_seed(2)
    x, weight = torch.randn(4, 256, 32, 32, generator=generator), torch.randn(256, 256, 5, 5, generator=generator)
    grad = torch.randn(4, 256, 32, 32, generator=generator)
    bias = torch.randn(256, generator=generator)
    check_against_reference(x, weight, bias, grad, MASKS["B"], mask_of("B", weight.shape))
