"""RowLSTM, DiagonalLSTM and DiagonalBiLSTM: what they compute and see, row by row and pixel by pixel, and errors."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastar.nn import DiagonalBiLSTM, DiagonalLSTM, RowLSTM
from fastar.reference.lstm_scan import lstm_scan as reference

Layer = Callable[..., nn.Module]
LAYERS: list[tuple[Layer, dict[str, Any]]] = [
    (RowLSTM, {}),
    (RowLSTM, {"kernel_size": 5, "bias": False}),
    (DiagonalLSTM, {}),
    (DiagonalLSTM, {"direction": "right_to_left"}),
    (DiagonalBiLSTM, {}),
]
NAMES = [f"{layer.__name__}-{options}" for layer, options in LAYERS]


def plain(layer: Any, x: Tensor) -> Tensor:
    """The layer by the reference, over a dense masked convolution."""
    if isinstance(layer, DiagonalBiLSTM):
        right = plain(layer.right, x)
        return plain(layer.left, x) + torch.cat([torch.zeros_like(right[:, :, :1]), right[:, :, :-1]], 2)
    conv = layer.input_to_state
    gates = F.conv2d(x, conv.weight * conv.dense_mask(), conv.bias, padding=(0, conv.kernel_size[1] // 2))
    along = {"left_to_right": "diagonals", "right_to_left": "antidiagonals"}.get(
        getattr(layer, "direction", ""), "rows"
    )
    return reference(gates, layer.state_to_state, along=along)[0]


@pytest.mark.parametrize(("layer", "options"), LAYERS, ids=NAMES)
def test_is_the_reference_behind_a_masked_convolution(layer: Layer, options: dict[str, Any]) -> None:
    for colours in (1, 3):
        built = layer(6, 9, mask_type="B", colours=colours, **options)
        x = torch.randn(2, 6, 5, 7)
        torch.testing.assert_close(built(x), plain(built, x))
        built(x).sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in built.parameters())


def seen_from(layer: nn.Module, channels: int, row: int, column: int, unit: slice = slice(None)) -> Tensor:
    """Which channels and pixels [channels, 6, 7] these hidden units of a pixel depend on, exactly."""
    x = torch.randn(1, channels, 6, 7, dtype=torch.float64, requires_grad=True)
    y = layer(x)[0, unit, row, column].sum()
    (grad,) = torch.autograd.grad(y, x, allow_unused=True)
    return torch.zeros(channels, 6, 7, dtype=torch.bool) if grad is None else grad[0] != 0


@pytest.mark.parametrize("mask_type", ["A", "B"])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_a_row_lstm_sees_a_triangle(k: int, mask_type: str) -> None:
    layer, half = RowLSTM(2, 4, k, mask_type=mask_type, dtype=torch.float64), k // 2
    for row, column in ((0, 3), (3, 3), (5, 0), (5, 6)):
        seen = seen_from(layer, 2, row, column).any(0)
        for r in range(6):
            for c in range(7):
                # States of `reach` columns to either side have come down; each saw `half` pixels before its own.
                reach = (row - r) * half
                states = [p for p in range(7) if r <= row and abs(p - column) <= reach]
                last = [p if mask_type == "B" else p - 1 for p in states]
                assert seen[r, c] == any(p - half <= c <= q for p, q in zip(states, last, strict=True))


def test_diagonals_see_all_earlier_pixels() -> None:
    left, right = (DiagonalLSTM(2, 4, mask_type="B", direction=d, dtype=torch.float64)
                   for d in ("left_to_right", "right_to_left"))  # fmt: skip
    both = DiagonalBiLSTM(2, 4, mask_type="B", dtype=torch.float64)
    for row, column in ((0, 0), (0, 4), (3, 3), (5, 0), (5, 6)):
        above = torch.arange(6)[:, None] <= row
        assert torch.equal(seen_from(left, 2, row, column).any(0), above & (torch.arange(7) <= column))
        assert torch.equal(seen_from(right, 2, row, column).any(0), above & (torch.arange(7) >= column))
        earlier = torch.arange(42).view(6, 7) <= row * 7 + column
        assert torch.equal(seen_from(both, 2, row, column).any(0), earlier)


@pytest.mark.parametrize("layout", ["interleaved", "contiguous"])
@pytest.mark.parametrize("layer", [RowLSTM, DiagonalLSTM, DiagonalBiLSTM])
def test_colours_of_a_pixel_see_earlier_ones(layer: Layer, layout: str) -> None:
    for mask_type in ("A", "B"):
        built = layer(3, 6, mask_type=mask_type, colours=3, colour_layout=layout, dtype=torch.float64)
        for unit in range(6):
            colour = unit % 3 if layout == "interleaved" else unit // 2
            own = seen_from(built, 3, 2, 4, slice(unit, unit + 1))[:, 2, 4]
            assert own.tolist() == [c < colour + (mask_type == "B") for c in range(3)]


@pytest.mark.parametrize("k", [3, 5])
def test_rows_one_by_one_are_the_parallel_form(k: int) -> None:
    layer, x = RowLSTM(3, 6, k, mask_type="B"), torch.randn(2, 3, 5, 7)
    state, rows = layer.init_state(2, 7), []
    for row in x.unbind(2):
        h, state = layer.step(row, state)
        rows.append(h)
    torch.testing.assert_close(torch.stack(rows, 2), layer(x))


@pytest.mark.parametrize("layer", [
    DiagonalBiLSTM(3, 6, mask_type="B"), DiagonalLSTM(3, 6, mask_type="B"),
    DiagonalLSTM(3, 6, mask_type="B", direction="right_to_left"),
])  # fmt: skip
def test_pixels_one_by_one_are_the_parallel_form(layer: Any) -> None:
    x = torch.randn(2, 3, 5, 4)
    mirrored = getattr(layer, "direction", "") == "right_to_left"
    state, pixels = layer.init_state(2, 4), []
    for pixel in (x.flip(3) if mirrored else x).flatten(2).unbind(2):
        h, state = layer.step(pixel, state)
        pixels.append(h)
    image = torch.stack(pixels, 2).unflatten(2, (5, 4))
    whole = layer(x)
    torch.testing.assert_close(image.flip(3) if mirrored else image, whole)
    ours, theirs = (torch.autograd.grad(y.square().sum(), layer.parameters()) for y in (image, whole))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_an_old_state_can_be_continued() -> None:
    layer, x = DiagonalBiLSTM(3, 6, mask_type="B"), torch.randn(2, 3, 3, 2)
    states = [layer.init_state(2, 2)]
    for pixel in x.flatten(2).unbind(2):
        states.append(layer.step(pixel, states[-1])[1])
    y, _ = layer.step(x[:, :, 1, 1], states[3])
    torch.testing.assert_close(y, layer(x)[:, :, 1, 1])


@pytest.mark.parametrize(("layer", "options"), LAYERS, ids=NAMES)
def test_copies_dtypes_and_devices(layer: Layer, options: dict[str, Any]) -> None:
    built, x = layer(4, 6, mask_type="B", colours=2, **options), torch.randn(2, 4, 3, 5)
    other = layer(4, 6, mask_type="B", colours=2, **options)
    other.load_state_dict(built.state_dict())
    for twin in (other, copy.deepcopy(built), pickle.loads(pickle.dumps(built))):
        assert torch.equal(twin(x), built(x))
    half = copy.deepcopy(built).bfloat16()
    assert half(x.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert built(x).dtype == torch.bfloat16
    assert built(x[:0]).shape == (0, 6, 3, 5)
    compiled = torch.compile(built, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), built(x))


def test_descriptions() -> None:
    assert repr(RowLSTM(2, 3, mask_type="A")).startswith("RowLSTM(\n  2, 3, mask_type='A', kernel_size=3")
    text = repr(DiagonalLSTM(2, 4, mask_type="B", colours=2))
    assert "mask_type='B', colours=2, colour_layout='interleaved', direction='left_to_right'" in text


@pytest.mark.parametrize(
    ("error", "message", "layer", "options"),
    [
        (ValueError, "in_channels: expected a positive integer", RowLSTM, {"in_channels": 0}),
        (TypeError, "hidden: expected a positive integer", DiagonalLSTM, {"hidden": 1.5}),
        (ValueError, "kernel_size: expected an odd size", RowLSTM, {"kernel_size": 4}),
        (ValueError, "mask_type: expected one of A, B, got 'C'", RowLSTM, {"mask_type": "C"}),
        (ValueError, "mask_type: expected one of A, B, got None", DiagonalLSTM, {"mask_type": None}),
        (ValueError, "mask_type: expected 'B' for one colour", DiagonalLSTM, {"mask_type": "A"}),
        (ValueError, "mask_type: expected 'B' for one colour", DiagonalBiLSTM, {"mask_type": "A"}),
        (ValueError, "direction: expected one of", DiagonalLSTM, {"direction": "down"}),
        (ValueError, "colours: expected a positive integer", DiagonalBiLSTM, {"colours": 0}),
        (ValueError, "colour_layout: expected one of", RowLSTM, {"colours": 3, "colour_layout": "mixed"}),
    ],
)
def test_bad_options_are_named(error: type[Exception], message: str, layer: Layer, options: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        layer(**{"in_channels": 3, "hidden": 6, "mask_type": "B", **options})


def test_bad_input_is_named() -> None:
    row, diagonal, both = (one(3, 6, mask_type="B") for one in (RowLSTM, DiagonalLSTM, DiagonalBiLSTM))
    for layer in (row, diagonal, both):
        with pytest.raises(ValueError, match=r"x: expected shape \[B, 3, rows, columns\]"):
            layer(torch.randn(2, 4, 5, 5))
        with pytest.raises(ValueError, match="batch: expected an integer"):
            layer.init_state(-1, 5)
        with pytest.raises(ValueError, match="columns: expected a positive integer"):
            layer.init_state(2, 0)
    with pytest.raises(ValueError, match=r"x_t: expected shape \[B, 3, columns\]"):
        row.step(torch.randn(2, 3), row.init_state(2, 5))
    with pytest.raises(ValueError, match=r"state h: expected shape \[2, 6, 5\]"):
        row.step(torch.randn(2, 3, 5), row.init_state(2, 4))
    pixel = torch.randn(2, 3)
    for layer in (diagonal, both):
        with pytest.raises(ValueError, match=r"x_t: expected shape \[B, 3\]"):
            layer.step(torch.randn(2, 3, 1), layer.init_state(2, 5))
        with pytest.raises(ValueError, match=r"state.above: expected shape \[2, 6, columns\]"):
            layer.step(pixel, layer.init_state(3, 5))
    state = diagonal.init_state(2, 5)
    with pytest.raises(ValueError, match=r"state.c: expected shape \[2, 6\]"):
        diagonal.step(pixel, state._replace(c=state.c[:, :4]))
    with pytest.raises(ValueError, match=r"state\.column: expected one of 5 columns, got 5"):
        diagonal.step(pixel, state._replace(column=5))
    whole = both.init_state(2, 5)
    with pytest.raises(ValueError, match=r"state.row: expected shape \[2, 3, 5\]"):
        both.step(pixel, whole._replace(row=whole.row[..., :4]))
    with pytest.raises(ValueError, match=r"state.right_above: expected shape \[2, 6, 5\]"):
        both.step(pixel, whole._replace(right_above=whole.right_above[:1]))
