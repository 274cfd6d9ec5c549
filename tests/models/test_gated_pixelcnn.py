"""GatedPixelCNN: no blind spot, colours, conditions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_properties import (
    assert_autoregressive,
    assert_class_and_map,
    assert_image_model,
    assert_refuses_bad_data,
    images,
    randomise,
    raster,
)

from fastar.models import GatedPixelCNN

GREY, RGB = (1, 2, 3), (3, 2, 1)
MODELS: dict[str, Callable[[], GatedPixelCNN]] = {
    "grey": lambda: GatedPixelCNN(GREY, 2, width=4, depth=2, kernel_size=5, block_kernel_size=3),
    "cropped": lambda: GatedPixelCNN(GREY, 3, width=3, depth=2, vertical="cropped"),
    "colours": lambda: GatedPixelCNN(RGB, 2, width=7, depth=2, head_width=5),
    "factored": lambda: GatedPixelCNN(RGB, 2, width=6, depth=2, vertical="factored", colour_layout="contiguous"),
}


def _random(make: Callable[[], GatedPixelCNN]) -> GatedPixelCNN:
    model = randomise(make(), 1.5)
    assert isinstance(model, GatedPixelCNN)
    return model


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> GatedPixelCNN:
    return _random(MODELS[request.param])


def test_autoregressive(model: GatedPixelCNN) -> None:
    # Of so few coloured channels relu can silence all that carry a colour to the next.
    assert_autoregressive(model, images(model), raster(model.shape), dense=model.shape == GREY)


def test_no_blind_spot() -> None:
    # A pixel sees every earlier one within reach: also those above and to its right, which masked squares miss.
    shape = (1, 5, 6)
    model = _random(lambda: GatedPixelCNN(shape, 4, width=12, depth=4, kernel_size=3, block_kernel_size=3))
    y = torch.rand(1, *shape, requires_grad=True)
    logits, rows, columns = model.network(y), torch.arange(5)[:, None], torch.arange(6)
    for h, w in ((0, 0), (2, 1), (3, 2), (4, 4)):
        (grad,) = torch.autograd.grad(logits[0, :, h, w].sum(), y, retain_graph=True)
        before = (rows < h) | ((rows == h) & (columns < w))
        # Four blocks of 3 x 3 reach a row up and a column aside each.
        within = before & (h - rows <= 4) & ((columns - w).abs() <= 4)
        assert (grad[0, 0][~before] == 0).all()
        assert (grad[0, 0][within] != 0).all()


def test_gradients_reach_no_later_colour() -> None:
    shape = (3, 3, 4)
    model = _random(lambda: GatedPixelCNN(shape, 4, width=9, depth=3))
    y = torch.rand(1, *shape, requires_grad=True)
    place = raster(shape)
    logits = model.network(y).unflatten(1, (4, 3)).transpose(1, 2)
    for c, h, w in ((0, 0, 0), (1, 1, 1), (2, 2, 2), (0, 2, 3)):
        (grad,) = torch.autograd.grad(logits[0, c, :, h, w].sum(), y, retain_graph=True)
        assert (grad[0][place >= place[c, h, w]] == 0).all()


def test_all_properties(model: GatedPixelCNN, tmp_path: Path) -> None:
    assert_image_model(model, tmp_path)


def test_bad_data() -> None:
    model = _random(MODELS["cropped"])
    assert_refuses_bad_data(model, images(model))


def test_conditions_are_classes_and_maps() -> None:
    by_class = _random(lambda: GatedPixelCNN((2, 2, 2), 2, width=6, depth=2, cond_dim=3))
    by_both = _random(lambda: GatedPixelCNN((2, 2, 2), 2, width=4, depth=2, cond_dim=3, cond_map=2))
    assert_class_and_map(by_class, by_both)


def test_parameters_by_formula() -> None:
    F, L = 6, 5
    model = GatedPixelCNN((1, 4, 4), L, width=F, depth=2, kernel_size=3, block_kernel_size=3)
    # Vertical 3 x 2 taps, horizontal 1 (type A) or 2 (type B), the bridge and the way out; every product has a bias.
    bridge, out, twice = 4 * F * F + 2 * F, F * F + F, 2 * F
    first = 6 * twice + twice + bridge + 1 * twice + twice + out
    second = 6 * F * twice + twice + bridge + 2 * F * twice + twice + out
    assert model.num_parameters() == first + second + F * F + F + F * L + L


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GatedPixelCNN((1, 2)), r"shape: expected \(channels, height, width\)"),
        (lambda: GatedPixelCNN(GREY, depth=0), r"depth: expected a positive integer"),
        (lambda: GatedPixelCNN(GREY, vertical="whole"), r"vertical: expected one of masked, cropped, factored"),
        (lambda: GatedPixelCNN.preset("cifar"), r"preset: GatedPixelCNN has imagenet32"),
    ],
)
def test_bad_arguments(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
