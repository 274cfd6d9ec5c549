"""PixelCNN: grey and coloured, residual and plain, on conditions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_properties import (
    assert_autoregressive,
    assert_image_model,
    assert_refuses_bad_data,
    assert_sampler_agrees,
    assert_samples_follow,
    images,
    randomise,
    raster,
)

from fastar.models import PixelCNN

GREY, RGB = (1, 2, 3), (3, 2, 1)
MODELS: dict[str, Callable[[], PixelCNN]] = {
    "grey": lambda: PixelCNN(GREY, 2, width=4, depth=1, kernel_size=5),
    "grey plain": lambda: PixelCNN(GREY, 3, width=3, depth=2, block="plain"),
    "colours": lambda: PixelCNN(RGB, 2, width=13, depth=1, head_width=11),
    "colours plain": lambda: PixelCNN(RGB, 3, width=6, depth=1, block="plain", colour_layout="contiguous"),
    "batch norm": lambda: PixelCNN(RGB, 2, width=6, depth=1, batch_norm=True),
}


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> PixelCNN:
    model = randomise(MODELS[request.param](), 1.5)
    assert isinstance(model, PixelCNN)
    return model


def test_autoregressive(model: PixelCNN) -> None:
    # Of so few coloured channels relu can silence all that carry a colour to the next.
    assert_autoregressive(model, images(model), raster(model.shape), dense=model.shape == GREY)


def test_gradients_reach_no_later_pixel() -> None:
    shape = (3, 5, 4)
    model = randomise(PixelCNN(shape, 4, width=9, depth=2))
    assert isinstance(model, PixelCNN)
    y = torch.rand(1, *shape, requires_grad=True)
    place = raster(shape)
    logits = model.network(y).unflatten(1, (4, 3)).transpose(1, 2)
    for c, h, w in ((0, 0, 0), (1, 2, 1), (2, 3, 3), (0, 4, 3)):
        (grad,) = torch.autograd.grad(logits[0, c, :, h, w].sum(), y, retain_graph=True)
        assert (grad[0][place >= place[c, h, w]] == 0).all()
        assert (c, h, w) == (0, 0, 0) or (grad[0][place < place[c, h, w]] != 0).any()


def test_all_properties(model: PixelCNN, tmp_path: Path) -> None:
    assert_image_model(model, tmp_path)


def test_bad_data(model: PixelCNN) -> None:
    if model.distribution.levels != 2:
        assert_refuses_bad_data(model, images(model))
    with pytest.raises(ValueError, match=r"x: expected shape"):
        model(images(model)[:, :, :1])


def test_conditions_are_classes_vectors_and_maps() -> None:
    shape = (2, 2, 2)
    classes = randomise(PixelCNN(shape, 2, width=6, depth=1, cond_dim=3), 1.5)
    assert_samples_follow(classes, shape, cond=torch.tensor([2]))
    assert_autoregressive(
        classes, torch.randint(0, 2, (4, *shape)), raster(shape), cond=torch.tensor([0, 1, 2, 0]), dense=False
    )
    maps = randomise(PixelCNN(shape, 2, width=6, depth=1, cond_map=2, block="plain"), 1.5)
    assert_samples_follow(maps, shape, cond=torch.randn(1, 2, 2, 2))
    both = randomise(PixelCNN(shape, 3, width=6, depth=1, cond_map=1, cond_dim=2), 1.5)
    pair = (torch.randn(8, 2), torch.randn(8, 1, 2, 2))
    assert_sampler_agrees(both, 8, seed=1, cond=pair)
    with pytest.raises(ValueError, match="cond: this PixelCNN needs a pair, the vector and the map, got Tensor"):
        both.sample(8, cond=pair[0])
    with pytest.raises(ValueError, match=r"cond: this PixelCNN needs it, floats \[B, 3\] or class labels"):
        classes.log_prob(torch.zeros(1, *shape, dtype=torch.long))
    with pytest.raises(ValueError, match=r"cond: expected shape \[1, 2, 2, 2\], got \[1, 2, 2, 1\]"):
        maps.log_prob(torch.zeros(1, *shape, dtype=torch.long), torch.zeros(1, 2, 2, 1))
    with pytest.raises(ValueError, match="cond: this PixelCNN takes none"):
        PixelCNN(GREY, 2, width=4).log_prob(torch.zeros(1, *GREY, dtype=torch.long), torch.zeros(1, 3))


def test_bytes_are_taken_as_they_are() -> None:
    model = randomise(PixelCNN((3, 4, 4), width=6, depth=1))
    x = torch.randint(0, 256, (3, 3, 4, 4), dtype=torch.uint8)
    torch.testing.assert_close(model.log_prob(x), model.log_prob(x.long()))
    assert model(x).shape == (3, 3, 256, 4, 4)
    assert_sampler_agrees(model, 3, seed=4)


def test_parameters_by_formula() -> None:
    F, L = 6, 5
    grey = PixelCNN((1, 4, 4), L, width=F, depth=2, kernel_size=7, head_width=8)
    block = F * 3 + 3 + 5 * 9 + 3 + 3 * F + F
    assert grey.num_parameters() == 24 * F + F + 2 * block + F * 8 + 8 + 64 + 8 + 8 * L + L
    plain = PixelCNN.preset("plain-32x32")
    # Of the channels' nine pairs of colours a centre of type A keeps three and one of type B six; 128 = 43 + 43 + 42.
    groups = (43, 43, 42)
    own = sum(groups[o] * groups[i] for o in range(3) for i in range(o + 1))
    first = 24 * 3 * 128 + sum(groups[o] * o for o in range(3)) + 128
    last = sum(256 * groups[i] for o in range(3) for i in range(o + 1)) + 768
    assert plain.num_parameters() == first + 8 * (4 * 128 * 128 + own + 128) + last


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PixelCNN((3, 4)), r"shape: expected \(channels, height, width\), got \(3, 4\)"),
        (lambda: PixelCNN((0, 4, 4)), r"shape: expected a positive integer"),
        (lambda: PixelCNN(GREY, block="dense"), r"block: expected one of residual, plain, got 'dense'"),
        (lambda: PixelCNN(GREY, kernel_size=4), r"padding: 'same' expects odd kernel sizes"),
        (lambda: PixelCNN(RGB, colour_layout="planes"), r"colour_layout"),
        (lambda: PixelCNN(GREY, cond_dim=-1), r"cond_dim: expected a positive integer"),
    ],
)
def test_bad_arguments(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
