"""Masked convolution's Triton kernels in the interpreter, against the reference in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from budget import assert_within_budget
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastar import _dispatch
from fastar.kernels import _tiles
from fastar.kernels._launch import Config
from fastar.ops import masked_conv2d
from fastar.ops.masked_conv2d import geometry_of
from fastar.ops.tap_plan import TapPlan
from fastar.reference import activation as activations
from fastar.reference.masked_conv2d import masked_conv2d as reference
from fastar.reference.masked_conv2d import raster_mask

# The interpreter gets bfloat16 products wrong.
DTYPES = [torch.float32, torch.float16]
FUSED = [*activations.APPLY, activations.GATE]


def check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    call: dict[str, Any],
    mask: Tensor | None,
    activation: str,
    generator: torch.Generator,
) -> None:
    """Forward and all gradients, through the op, against the reference."""
    masking = ("mask_type", "colours", "colour_layout", "plan")
    geometry = geometry_of(weight.shape[2:], **{key: call[key] for key in call if key not in masking})
    inputs = [x, weight] if bias is None else [x, weight, bias]

    def fast(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return masked_conv2d(x, weight, bias, activation=activation, **call)

    def plain(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = activation) -> Tensor:
        return reference(x, weight, bias, mask, geometry.stride, geometry.padding, activation, geometry.transposed)

    def gradients(run: Any, inputs: Sequence[Tensor], grad: Tensor | None) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in inputs]
        y = run(*leaves)
        used = torch.randn(y.shape, generator=generator).to(y.dtype) if grad is None else grad
        return [used, y.detach(), *torch.autograd.grad(y, leaves, used)]

    with _dispatch.forced("masked_conv2d", "triton"):
        grad, *ours = gradients(fast, inputs, None)
    same = gradients(plain, inputs, grad)[1:]
    exact = gradients(plain, [t.double() for t in inputs], grad.double())[1:]
    sized = torch.cat([grad, grad], 1) if activation == activations.GATE else grad
    _, *terms = gradients(
        lambda *t: plain(*t, activation="none"), [t.double().abs() for t in inputs], sized.double().abs()
    )
    terms[0] = terms[0][:, : exact[0].shape[1]]
    for what, a, b, c, size in zip(["y", "dx", "dweight", "dbias"], ours, same, exact, terms, strict=False):
        assert_within_budget(a, b, c, scale=torch.maximum(c.abs(), size), what=what)
    if mask is not None:
        assert (ours[2][~mask] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask_type", ["A", "B"])
@pytest.mark.parametrize("layout", ["interleaved", "contiguous"])
# 32 channels are one step of the reduction: a step has one tap; with 7 it has several.
@pytest.mark.parametrize("channels", [(32, 40), (7, 33)])
def test_masks(channels: tuple[int, int], layout: str, mask_type: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(channels[0])
    inputs, outputs = channels
    x = torch.randn(2, inputs, 6, 5, generator=generator).to(dtype)
    weight = (torch.randn(outputs, inputs, 3, 5, generator=generator) / 8).to(dtype)
    bias = torch.randn(outputs, generator=generator).to(dtype)
    call = {"mask_type": mask_type, "colours": 3, "colour_layout": layout}
    check(x, weight, bias, call, raster_mask(weight.shape, mask_type, 3, layout), "none", generator)


@pytest.mark.parametrize("activation", FUSED)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_activations(activation: str, memory_format: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 5, 4, 5, generator=generator).to(memory_format=memory_format)
    weight, bias = torch.randn(6, 5, 3, 3, generator=generator) / 4, torch.randn(6, generator=generator)
    check(x, weight, bias, {"mask_type": "B"}, raster_mask(weight.shape, "B"), activation, generator)


@pytest.mark.parametrize(
    ("config", "channels"),
    [(Config(256, 128, 64, 8, 4), 64), (Config(64, 32, 16, 4, 3), 16), (Config(64, 32, 16, 4, 3), 9)],
)
def test_tiles_of_the_cards(config: Config, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tiles, "configs", lambda *_: [config])
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, channels, 12, 13, generator=generator)
    weight = torch.randn(140, channels, 3, 3, generator=generator) / channels**0.5
    check(x, weight, None, {"mask_type": "A"}, raster_mask(weight.shape, "A"), "elu", generator)


def test_many_positions_are_summed_in_chunks() -> None:
    generator = torch.Generator().manual_seed(4)
    x, weight = torch.randn(3, 4, 20, 21, generator=generator), torch.randn(5, 4, 3, 3, generator=generator)
    check(x, weight, None, {"mask_type": "B"}, raster_mask(weight.shape, "B"), "none", generator)


@given(
    batch=st.integers(0, 2),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    padding=st.tuples(*[st.integers(0, 2)] * 4),
    transposed=st.booleans(),
    chosen=st.sets(st.integers(0, 11)),
    expanded=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=15, deadline=None)
def test_any_taps_stride_and_padding(
    batch: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    transposed: bool,
    chosen: set[int],
    expanded: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    taps = tuple(sorted(tap for tap in chosen if tap < kernel[0] * kernel[1]))
    weight = torch.randn(5, 6, *kernel, generator=generator).to(dtype)
    channel_mask = torch.rand(5, 6, generator=generator) < 0.5
    plan = TapPlan(taps, taps[-1], channel_mask) if taps else TapPlan(())
    if min(geometry_of(kernel, stride, padding, transposed).result_size((4, 5), kernel)) < 1:
        return
    mask = torch.zeros(weight.shape, dtype=torch.bool)
    mask.flatten(2)[:, :, list(taps)] = True
    if taps:
        mask.flatten(2)[:, :, taps[-1]] = channel_mask
    channels = 5 if transposed else 6
    x = torch.randn(batch, channels, *((1, 1) if expanded else (4, 5)), generator=generator).to(dtype)
    bias = torch.randn(11 - channels, generator=generator).to(dtype)
    call = {"plan": plan, "stride": stride, "padding": padding, "transposed": transposed}
    check(x.expand(batch, channels, 4, 5), weight, bias, call, mask, "none", generator)
