"""The WaveNet block's Triton kernels in the interpreter, against the reference in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from budget import assert_within_budget
from torch import Tensor

from fastar import _dispatch
from fastar.kernels import wavenet_block as kernels
from fastar.ops import wavenet_block
from fastar.reference.wavenet_block import wavenet_block as reference

# The interpreter gets bfloat16 products wrong.
DTYPES = [torch.float32, torch.float16]
NAMES = ("weight", "bias", "residual_weight", "residual_bias", "skip_weight", "skip_bias")


def check(
    shape: tuple[int, ...], dtype: torch.dtype, *, full: bool = True, layout: str = "contiguous", used: int = 2
) -> None:
    """Forward and all gradients, through the op; `used`: the output that has a gradient, 2 for both."""
    batch, residual, gate, skip, time, taps, dilation, hop = shape
    torch.manual_seed(sum(shape))
    sizes = ((2 * gate, residual, taps), (2 * gate,), (residual, gate), (residual,), (skip, gate), (skip,))
    inputs = {name: torch.randn(size) / math.sqrt(math.prod(size[1:])) for name, size in zip(NAMES, sizes, strict=True)}
    inputs["x"] = torch.randn(batch, residual, time)
    if full:
        inputs["conditioning"] = torch.randn(batch, 2 * gate, math.ceil(time / hop))
        inputs["skip_sum"] = torch.randn(batch, skip, time)
    grads = [torch.randn(batch, channels, time) for channels in (residual, skip)]
    if layout == "channels_last":
        inputs = {name: t if t.dim() == 1 else t.mT.contiguous().mT for name, t in inputs.items()}
        grads = [g.mT.contiguous().mT for g in grads]
    elif layout == "expanded":
        inputs["x"] = torch.randn(1, residual, 1).expand(batch, residual, time)
        grads = [torch.randn(1, 1, time).expand(g.shape) for g in grads]
    inputs = {name: t.to(dtype) for name, t in inputs.items()}
    chosen = slice(None) if used == 2 else slice(used, used + 1)
    options = {"dilation": dilation, "hop": hop, "residual_scale": math.sqrt(0.5), "skip_scale": 0.3}

    def gradients(run: Any, to: torch.dtype) -> list[Tensor]:
        leaves = {name: t.to(to).detach().requires_grad_() for name, t in inputs.items()}
        out = run(**leaves, **options)
        kept = list(leaves.values())
        back = torch.autograd.grad(out[chosen], kept, [g.to(dtype).to(to) for g in grads[chosen]], allow_unused=True,
                                   materialize_grads=True)  # fmt: skip
        return [*(y.detach() for y in out), *back]

    with _dispatch.forced("wavenet_block", "triton"), _dispatch.forced("causal_conv1d", "triton"):
        ours = gradients(wavenet_block, dtype)
    same, exact = gradients(reference, dtype), gradients(reference, torch.float64)
    for what, a, b, c in zip(["residual", "skip", *inputs], ours, same, exact, strict=True):
        # Gradients are sums over all times and rows of terms of about one size.
        spread = math.sqrt(batch * time) if what not in {"residual", "skip"} else 1.0
        assert_within_budget(a, b, c, scale=c.abs() * spread, what=what)


@pytest.mark.parametrize("dtype", DTYPES)
# The interpreter's tiles hold up to 32 channels of h: above, h goes through memory.
@pytest.mark.parametrize(
    "shape", [(2, 9, 12, 20, 40, 3, 4, 7), (2, 33, 32, 17, 50, 2, 1, 50), (1, 6, 40, 5, 37, 2, 3, 1)]
)
def test_shapes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(shape, dtype, full=dtype == torch.float32)


@pytest.mark.parametrize("layout", ["channels_last", "expanded"])
def test_layouts(layout: str) -> None:
    check((2, 5, 7, 6, 40, 2, 2, 9), torch.float32, layout=layout)


@pytest.mark.parametrize("used", [0, 1])
def test_one_output_may_be_unused(used: int) -> None:
    check((2, 5, 7, 6, 40, 2, 2, 9), torch.float32, used=used)


@pytest.mark.parametrize("shape", [(2, 1, 1, 1, 1, 1, 1, 1), (0, 3, 4, 5, 6, 2, 1, 3)])
def test_small(shape: tuple[int, ...]) -> None:
    check(shape, torch.float32)


@pytest.mark.parametrize("tile", kernels._TILES[(2, "ieee")][::2], ids=lambda one: str(one.channels))
def test_tiles_of_the_cards(tile: kernels.Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    smallest = kernels.Tile(64, 64, 32, 64, 8, 3)
    monkeypatch.setattr(kernels, "_INTERPRETED", [tile, smallest])
    check((1, 20, tile.channels - 3, 70, tile.times + 5, 2, 16, 33), torch.float32)
