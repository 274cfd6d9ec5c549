"""Ops called in plain eager mode pass the dispatcher by: with the same results, and never where somebody watches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from fastar import _dispatch
from fastar.ops import _library, masked_linear

MASK = torch.rand(6, 5, generator=torch.Generator().manual_seed(0)) < 0.5


class Seen(TorchDispatchMode):
    """The names of the ops that reach the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def leaves() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(s, generator=generator).requires_grad_() for s in ((4, 5), (6, 5), (6,))]


def run(activation: str = "gelu") -> list[Tensor]:
    x, weight, bias = leaves()
    y = masked_linear(x, weight, bias, mask=MASK, activation=activation)
    return [y.detach(), *torch.autograd.grad(y, (x, weight, bias), torch.ones_like(y))]


@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_both_ways_give_the_same_bits(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    direct = run(activation)
    monkeypatch.setattr(_library, "_watched", lambda: True)
    for ours, dispatched in zip(direct, run(activation), strict=True):
        assert torch.equal(ours, dispatched)


def test_a_dispatch_mode_sees_the_op() -> None:
    with Seen() as seen:
        run()
    assert "fastar::masked_linear" in seen.names
    assert "fastar::masked_linear_backward" in seen.names


def test_the_profiler_sees_the_op() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    assert "fastar::masked_linear" in {event.key for event in profile.key_averages()}


def test_a_default_device_does_not_reach_inside() -> None:
    x, weight, bias = leaves()
    with torch.device("meta"):
        assert masked_linear(x, weight, bias, mask=MASK).device.type == "cpu"


def test_function_transforms_are_torch_librarys_to_refuse() -> None:
    x, weight, _ = leaves()
    with pytest.raises(RuntimeError, match="functorch"):
        torch.func.grad(lambda one: masked_linear(one, weight.detach(), mask=MASK).sum())(x.detach())


def test_checkpoint_and_inference_mode() -> None:
    x, weight, bias = leaves()
    y = checkpoint(lambda x: masked_linear(x, weight, bias, mask=MASK, activation="gelu"), x, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], run()[1])
    expected = run()[0]
    with torch.inference_mode():
        assert torch.equal(masked_linear(x, weight, bias, mask=MASK, activation="gelu"), expected)


def test_a_weight_written_before_the_backward_is_refused() -> None:
    x, weight, bias = leaves()
    y = masked_linear(x, weight, bias, mask=MASK)
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_only_gradients_that_are_needed() -> None:
    x, weight, bias = leaves()
    y = masked_linear(x.detach(), weight, bias.detach(), mask=MASK)
    y.sum().backward()
    assert x.grad is None
    assert bias.grad is None
    assert weight.grad is not None
    assert not masked_linear(x.detach(), weight.detach(), mask=MASK).requires_grad


def test_the_choice_is_remembered_and_forced_choices_are_not() -> None:
    device, dtype = torch.device("cpu"), torch.float32
    usual = _dispatch.choose("masked_linear", device, dtype)
    with _dispatch.forced("masked_linear", "reference"):
        assert _dispatch.choose("masked_linear", device, dtype).name == "reference"
    assert _dispatch.choose("masked_linear", device, dtype) is usual
