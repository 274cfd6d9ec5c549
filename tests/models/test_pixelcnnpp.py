"""PixelCNNpp: streams over scales, colours at once, initialisation by data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_properties import (
    assert_autoregressive,
    assert_prefix_is_conditioned,
    assert_refuses_bad_data,
    assert_round_trips,
    assert_sampler_agrees,
    assert_samples_follow,
    randomise,
)
from torch import Tensor

from fastar.models import PixelCNNpp
from fastar.nn import ShiftedConv2d

MODELS: dict[str, Callable[[], PixelCNNpp]] = {
    "grey": lambda: PixelCNNpp((1, 2, 2), 3, components=2, width=4, depth=1, scales=2),
    "colours": lambda: PixelCNNpp((2, 2, 2), 2, components=2, width=3, depth=2, scales=1, weight_norm=False),
}


def _random(make: Callable[[], PixelCNNpp], size: float = 1.0) -> PixelCNNpp:
    model = randomise(make(), size)
    assert isinstance(model, PixelCNNpp)
    return model


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> PixelCNNpp:
    return _random(MODELS[request.param])


def _x(model: PixelCNNpp, n: int = 4) -> Tensor:
    return torch.randint(0, model.distribution.levels or 0, (n, *model.shape))


def _place(shape: tuple[int, int, int]) -> Tensor:
    C, H, W = shape
    return torch.arange(H * W).view(1, H, W).expand(C, H, W)


def test_autoregressive(model: PixelCNNpp) -> None:
    place = _place(model.shape)
    assert_autoregressive(model, _x(model), place, place[0])


def test_samples_follow_log_prob(model: PixelCNNpp) -> None:
    assert_samples_follow(model, model.shape)


def test_a_known_prefix_is_conditioned_on(model: PixelCNNpp) -> None:
    assert_prefix_is_conditioned(model, model.shape, _place(model.shape), 2)


def test_round_trips(model: PixelCNNpp, tmp_path: Path) -> None:
    assert_round_trips(model, _x(model), tmp_path)


def test_bad_data() -> None:
    model = _random(MODELS["grey"])
    assert_refuses_bad_data(model, _x(model))


def test_three_scales_on_classes() -> None:
    shape = (3, 8, 4)
    model = _random(lambda: PixelCNNpp(shape, 8, components=2, width=3, depth=1, cond_dim=2), 0.7)
    place = _place(shape)
    cond = torch.tensor([0, 1, 1])
    assert_autoregressive(model, _x(model, 3), place, place[0], cond=cond, dense=False)
    y = torch.rand(1, *shape, requires_grad=True)
    params = model.network(y, torch.ones(1, 2))
    for h, w in ((0, 0), (3, 2), (7, 3), (4, 0)):
        (grad,) = torch.autograd.grad(params[0, :, h, w].sum(), y, retain_graph=True)
        assert (grad[0][place >= h * 4 + w] == 0).all()
        # Through the smallest scale a pixel sees far: here every earlier one of the two rows above, and its own.
        near = (place < h * 4 + w) & (torch.arange(8)[:, None] >= h - 2)
        assert (grad[0][near.expand(shape)] != 0).all()
    for backend in ("auto", "reference"):
        assert_sampler_agrees(model, 3, 1e-4, seed=1, cond=cond, backend=backend)


def _outputs(model: PixelCNNpp, x: Tensor) -> dict[str, Tensor]:
    # What every convolution of the streams gives.
    seen: dict[str, Tensor] = {}
    layers = {layer: name for name, layer in model.named_modules() if isinstance(layer, ShiftedConv2d)}
    for layer in layers:
        layer.register_forward_hook(lambda layer, inputs, out: seen.update({layers[layer]: out}))
    model(x)
    return seen


def test_initialisation_by_data() -> None:
    torch.manual_seed(0)
    for weight_norm in (True, False):
        model = PixelCNNpp((3, 8, 8), 256, width=8, depth=1, scales=2, weight_norm=weight_norm)
        x = torch.randint(0, 256, (16, 3, 8, 8))
        model.initialise(x)
        seen = _outputs(model, x)
        # The first three; two of a block's in each stream, on the way down and up; and those between the scales.
        assert len(seen) == 3 + 8 + 12 + 4
        for name, out in seen.items():
            std, mean = torch.std_mean(out, dim=(0, 2, 3), correction=0)
            expected = 0.1 if name.endswith("second") else 1.0
            torch.testing.assert_close(std, torch.full_like(std, expected), rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=1e-3, atol=1e-3)


def test_parameters_by_formula() -> None:
    F, K, C = 6, 2, 3
    model = PixelCNNpp((C, 4, 4), components=K, width=F, depth=1, scales=2, weight_norm=False)

    def block(taps: int, other: int) -> int:
        return 2 * F * F * taps + F + (2 * other * F + F if other else 0) + 2 * F * 2 * F * taps + 2 * F

    first = (C + 1) * F * (6 + 3 + 2) + 3 * F
    down = 2 * (block(6, 0) + block(4, F))
    up = 3 * (block(6, F) + block(4, 2 * F))
    between = 2 * (F * F * 6 + F + F * F * 4 + F)
    params = K * (1 + 2 * C + C * (C - 1) // 2)
    assert model.num_parameters() == first + down + up + between + F * params + params
    assert PixelCNNpp.preset("cifar10", device="meta").distribution.params == 100


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PixelCNNpp((3, 6, 8)), r"shape: expected height and width divisible by 4, got \[6, 8\]"),
        (lambda: PixelCNNpp((3, 8)), r"shape: expected \(channels, height, width\)"),
        (lambda: PixelCNNpp((3, 8, 8), depth=0), r"depth: expected a positive integer"),
        (lambda: PixelCNNpp((3, 8, 8), 1), r"steps: expected at least 2"),
        (lambda: PixelCNNpp.preset("cifar"), r"preset: PixelCNNpp has cifar10"),
    ],
)
def test_bad_arguments(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
