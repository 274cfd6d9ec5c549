"""PixelRNN: over rows and diagonals, grey and coloured, on conditions."""

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

from fastar.models import PixelRNN

GREY, RGB = (1, 2, 3), (3, 2, 1)
MODELS: dict[str, Callable[[], PixelRNN]] = {
    "row": lambda: PixelRNN(GREY, 2, hidden=3, depth=2, head_width=5),
    "diagonal": lambda: PixelRNN(GREY, 3, hidden=3, depth=1, scan="diagonal", kernel_size=3),
    "coloured rows": lambda: PixelRNN(RGB, 2, hidden=4, depth=2, colour_layout="contiguous"),
    "coloured diagonals": lambda: PixelRNN(RGB, 2, hidden=5, depth=2, scan="diagonal"),
}


def _random(make: Callable[[], PixelRNN], size: float = 1.5) -> PixelRNN:
    model = randomise(make(), size)
    assert isinstance(model, PixelRNN)
    return model


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> PixelRNN:
    return _random(MODELS[request.param])


def test_autoregressive(model: PixelRNN) -> None:
    # Of so few coloured channels relu can silence all that carry a colour to the next.
    assert_autoregressive(model, images(model), raster(model.shape), dense=False)


def test_diagonals_see_every_earlier_pixel_and_rows_a_triangle() -> None:
    shape = (1, 5, 7)
    rows, columns = torch.arange(5)[:, None], torch.arange(7)
    for scan in ("diagonal", "row"):
        # Small weights: where a gate saturates, the gradient of a distant pixel is 0 in float32.
        model = _random(lambda scan=scan: PixelRNN(shape, 4, hidden=8, depth=1, scan=scan, kernel_size=3), 0.5)
        y = torch.rand(1, *shape, requires_grad=True)
        logits = model.network(y)
        for h, w in ((0, 0), (2, 1), (3, 3), (4, 6)):
            (grad,) = torch.autograd.grad(logits[0, :, h, w].sum(), y, retain_graph=True)
            before = (rows < h) | ((rows == h) & (columns < w))
            assert (grad[0, 0][~before] == 0).all()
            if scan == "diagonal":
                # The last pixel of the row above is in no feature of that row, since the first convolution is of type
                # "A", and so it is seen only where a feature of the own row reaches it.
                seen = before & ~((rows == h - 1) & (columns == 6) & (w < 5))
            else:
                # Features hold what is a row higher and a pixel aside; the LSTM adds a pixel with each row.
                seen = before & (rows < h) & ((columns - w).abs() <= h - rows)
            assert (grad[0, 0][seen] != 0).all()


def test_all_properties(model: PixelRNN, tmp_path: Path) -> None:
    assert_image_model(model, tmp_path)


def test_bad_data() -> None:
    model = _random(MODELS["diagonal"])
    assert_refuses_bad_data(model, images(model))


def test_conditions_are_classes_and_maps() -> None:
    by_class = _random(lambda: PixelRNN((2, 2, 2), 2, hidden=3, depth=1, cond_dim=3))
    by_both = _random(lambda: PixelRNN((2, 2, 2), 2, hidden=4, depth=2, scan="diagonal", cond_dim=3, cond_map=2))
    assert_class_and_map(by_class, by_both)


def test_parameters_by_formula() -> None:
    H, L = 4, 5
    W = 2 * H
    first, head = 24 * W + W, 2 * (W * W + W) + W * L + L
    row = 4 * H * W * 2 + 4 * H + 4 * H * H * 3 + H * W + W
    assert PixelRNN((1, 4, 4), L, hidden=H, depth=2).num_parameters() == first + 2 * row + head
    diagonal = 2 * (4 * H * W + 4 * H + 4 * H * H * 2) + H * W + W
    assert PixelRNN((1, 4, 4), L, hidden=H, depth=2, scan="diagonal").num_parameters() == first + 2 * diagonal + head


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PixelRNN((1, 2)), r"shape: expected \(channels, height, width\)"),
        (lambda: PixelRNN(GREY, hidden=0), r"hidden: expected a positive integer"),
        (lambda: PixelRNN(GREY, scan="spiral"), r"scan: expected one of row, diagonal, got 'spiral'"),
        (lambda: PixelRNN(GREY, row_kernel_size=2), r"kernel_size: expected an odd size"),
        (lambda: PixelRNN.preset("cifar"), r"preset: PixelRNN has cifar10-row"),
    ],
)
def test_bad_arguments(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
