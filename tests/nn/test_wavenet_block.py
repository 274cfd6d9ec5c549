"""WaveNetBlock: the equation by torch's own layers, its state, its options, and errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fastar.nn import CausalConv1d, WaveNetBlock


def by_layers(block: WaveNetBlock, x: Tensor, local: Tensor | None, whole: Tensor | None) -> tuple[Tensor, Tensor]:
    z = torch.cat([block.filter_conv(x), block.gate_conv(x)], 1) if block.separate else block.conv(x)
    if local is not None and block.local_conv is not None:
        z = z + block.local_conv(local).repeat_interleave(x.shape[2] // local.shape[2], 2)
    if whole is not None and block.global_linear is not None:
        z = z + block.global_linear(whole)[:, :, None]
    first, second = z.chunk(2, 1)
    h = first.tanh() * second.sigmoid()
    return (block.residual_conv(h) + x) * block.residual_scale, block.skip_conv(h) * block.skip_scale


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize(("local_cond", "global_cond"), [(0, 0), (3, 0), (0, 2), (3, 2)])
def test_is_its_layers(separate: bool, local_cond: int, global_cond: int) -> None:
    block = WaveNetBlock(
        4, 6, 5, 3, 2, local_cond=local_cond, global_cond=global_cond, separate=separate,
        residual_scale=math.sqrt(0.5), skip_scale=0.2, bias=not separate,
    )  # fmt: skip
    x, skips = torch.randn(2, 4, 30), torch.randn(2, 5, 30)
    local = torch.randn(2, 3, 6) if local_cond else None
    whole = torch.randn(2, 2) if global_cond else None
    residual, skip = block(x, local_cond=local, global_cond=whole, skip_sum=skips)
    expected = by_layers(block, x, local, whole)
    torch.testing.assert_close(residual, expected[0])
    torch.testing.assert_close(skip, expected[1] + skips)
    (residual.sum() + skip.sum()).backward()
    assert all(p.grad is not None for p in block.parameters())
    state, steps = block.init_state(2), []
    for t in range(30):
        (residual_t, skip_t), state = block.step(
            x[:, :, t],
            state,
            local_cond=None if local is None else local[:, :, t // 5],
            global_cond=whole,
            skip_sum=skips[:, :, t],
        )
        steps.append((residual_t, skip_t))
    torch.testing.assert_close(torch.stack([one for one, _ in steps], 2), residual)
    torch.testing.assert_close(torch.stack([two for _, two in steps], 2), skip)
    assert torch.equal(state, x[:, :, -4:])


def test_a_last_frame_may_be_cut() -> None:
    block, local = WaveNetBlock(4, 6, 5, local_cond=3), torch.randn(2, 3, 4)
    x = torch.randn(2, 4, 30)
    whole, _ = block(torch.cat([x, torch.zeros(2, 4, 2)], 2), local_cond=local)
    torch.testing.assert_close(block(x, local_cond=local, hop=8)[0], whole[:, :, :30])


def test_parts_are_torchs_layers() -> None:
    block = WaveNetBlock(4, 6, 5, 3, 2, local_cond=3, global_cond=2)
    assert isinstance(block.conv, CausalConv1d)
    shapes = {name: list(t.shape) for name, t in block.state_dict().items()}
    assert shapes == {
        "conv.weight": [12, 4, 3],
        "conv.bias": [12],
        "residual_conv.weight": [4, 6, 1],
        "residual_conv.bias": [4],
        "skip_conv.weight": [5, 6, 1],
        "skip_conv.bias": [5],
        "local_conv.weight": [12, 3, 1],
        "global_linear.weight": [12, 2],
    }
    separate = WaveNetBlock(4, 6, 5, separate=True)
    assert {"filter_conv.weight", "gate_conv.weight"} < set(separate.state_dict())


def test_weight_norm_and_compile() -> None:
    block = WaveNetBlock(4, 6, 5)
    nn.utils.parametrizations.weight_norm(block.conv)
    nn.utils.parametrizations.weight_norm(block.residual_conv)
    x = torch.randn(2, 4, 9)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), block(x))
    sum(y.sum() for y in compiled(x)).backward()
    assert block.conv.parametrizations.weight.original1.grad is not None


def test_repr_names_what_differs() -> None:
    text = repr(WaveNetBlock(4, 6, 5, 3, 2, residual_scale=0.5))
    assert text.startswith("WaveNetBlock(\n  4, 6, 5, kernel_size=3, dilation=2, residual_scale=0.5\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"residual": 0}, "residual: expected a positive"),
        ({"gate": -1}, "gate: expected a positive"),
        ({"kernel_size": 0}, "kernel_size: expected a positive"),
        ({"dilation": -1}, "dilation: expected a positive"),
        ({"local_cond": -1}, "local_cond: expected a positive"),
    ],
)
def test_bad_sizes(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WaveNetBlock(**{"residual": 4, "gate": 6, "skip": 5, **arguments})


def test_bad_calls() -> None:
    block, x = WaveNetBlock(4, 6, 5, local_cond=3), torch.randn(2, 4, 30)
    with pytest.raises(ValueError, match="local_cond: expected a tensor, as the block was made"):
        block(x)
    with pytest.raises(ValueError, match="global_cond: expected none"):
        block(x, local_cond=torch.randn(2, 3, 6), global_cond=torch.randn(2, 2))
    with pytest.raises(ValueError, match=r"local_cond: expected shape \[batch, 3, frames\]"):
        block(x, local_cond=torch.randn(2, 4, 6))
    with pytest.raises(ValueError, match="local_cond: expected a number of frames that divides the 30 times"):
        block(x, local_cond=torch.randn(2, 3, 7))
    with pytest.raises(ValueError, match="hop: expected None without local features"):
        WaveNetBlock(4, 6, 5)(x, hop=3)
    with pytest.raises(ValueError, match=r"state: expected shape \[2, 4, 1\]"):
        block.step(x[:, :, 0], torch.zeros(2, 4, 3), local_cond=torch.randn(2, 3))
    with pytest.raises(ValueError, match=r"x_t: expected shape \[batch, 4\]"):
        block.step(torch.randn(2, 5), block.init_state(2))
