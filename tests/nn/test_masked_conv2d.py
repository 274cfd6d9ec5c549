"""The convolutions over surviving taps as layers: torch.nn twins, masks by definition, moving, copying, errors."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastar.nn import MaskedConv2d, ShiftedConv2d, VerticalStackConv2d
from fastar.reference.masked_conv2d import colours_of, raster_mask

LAYERS: dict[str, Callable[..., nn.Module]] = {
    "masked": lambda **k: MaskedConv2d(4, 6, 3, "B", colours=3, **k),
    "vertical": lambda **k: VerticalStackConv2d(4, 6, (3, 5), "A", **k),
    "down": lambda **k: ShiftedConv2d(4, 6, (2, 3), "down", **k),
    "down_right": lambda **k: ShiftedConv2d(4, 6, (2, 2), "down_right", **k),
    "transposed": lambda **k: ShiftedConv2d(4, 6, (2, 3), "down", stride=2, transposed=True, **k),
}


def twin_of(layer: nn.Module) -> nn.Module:
    kind = nn.ConvTranspose2d if layer.geometry.transposed else nn.Conv2d
    return kind(4, 6, layer.kernel_size)


@pytest.mark.parametrize("name", LAYERS)
def test_loads_and_is_loaded_by_its_twin(name: str) -> None:
    layer = LAYERS[name]()
    twin = twin_of(layer)
    layer.load_state_dict(twin.state_dict(), strict=True)
    assert torch.equal(layer.weight, twin.weight)
    twin.load_state_dict(layer.state_dict(), strict=True)


@pytest.mark.parametrize("name", LAYERS)
def test_initialised_as_its_twin(name: str) -> None:
    torch.manual_seed(5)
    layer = LAYERS[name]()
    torch.manual_seed(5)
    twin = twin_of(layer)
    assert torch.equal(layer.weight, twin.weight)
    assert torch.equal(layer.bias, twin.bias)


@pytest.mark.parametrize("mask_type", ["A", "B"])
@pytest.mark.parametrize("layout", ["interleaved", "contiguous"])
def test_masked_conv2d_is_a_convolution_with_a_masked_weight(mask_type: str, layout: str) -> None:
    layer = MaskedConv2d(7, 8, (3, 5), mask_type, colours=3, colour_layout=layout, activation="relu")
    x = torch.randn(2, 7, 6, 5)
    mask = raster_mask(layer.weight.shape, mask_type, 3, layout)
    expected = F.conv2d(x, layer.weight * mask, layer.bias, padding=(1, 2)).relu()
    torch.testing.assert_close(layer(x), expected)
    assert torch.equal(layer.dense_mask(), mask)


def test_padding_in_integers() -> None:
    x = torch.randn(2, 4, 6, 5)
    for padding in (0, (2, 1)):
        layer = MaskedConv2d(4, 6, 3, "A", padding=padding)
        expected = F.conv2d(x, layer.weight * raster_mask(layer.weight.shape, "A"), layer.bias, padding=padding)
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("mask_type", ["A", "B"])
def test_vertical_stack_sees_rows_above(mask_type: str) -> None:
    layer, x = VerticalStackConv2d(4, 6, (3, 5), mask_type), torch.randn(2, 4, 6, 5, requires_grad=True)
    mask = torch.zeros(6, 4, 3, 5)
    mask[:, :, : 1 if mask_type == "A" else 2] = 1
    y = layer(x)
    torch.testing.assert_close(y, F.conv2d(x, layer.weight * mask, layer.bias, padding=(1, 2)))
    (seen,) = torch.autograd.grad(y[:, :, 3].sum(), x)
    assert (seen != 0).any((0, 1, 3)).tolist() == [False, False, True, mask_type == "B", False, False]


@pytest.mark.parametrize("stride", [1, 2, (2, 1)])
@pytest.mark.parametrize(("direction", "kernel"), [("down", (2, 3)), ("down", (3, 5)), ("down_right", (2, 2))])
def test_shifted_conv2d_pads_on_one_side(direction: str, kernel: tuple[int, int], stride: Any) -> None:
    layer, x = ShiftedConv2d(4, 6, kernel, direction, stride=stride), torch.randn(2, 4, 6, 8)
    sides = (kernel[1] // 2, kernel[1] // 2) if direction == "down" else (kernel[1] - 1, 0)
    expected = F.conv2d(F.pad(x, (*sides, kernel[0] - 1, 0)), layer.weight, layer.bias, stride)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(("direction", "kernel"), [("down", (2, 3)), ("down_right", (2, 2)), ("down_right", (3, 3))])
def test_transposed_shifted_conv2d_grows_by_the_stride(direction: str, kernel: tuple[int, int]) -> None:
    layer = ShiftedConv2d(4, 6, kernel, direction, stride=2, transposed=True)
    x = torch.randn(2, 4, 5, 3, requires_grad=True)
    y = layer(x)
    assert y.shape == (2, 6, 10, 6)
    left = kernel[1] // 2 if direction == "down" else 0
    whole = F.conv_transpose2d(x, layer.weight, layer.bias, 2)
    torch.testing.assert_close(y, whole[:, :, :10, left : left + 6])
    for row in range(10):
        (seen,) = torch.autograd.grad(y[:, :, row].sum(), x, retain_graph=True)
        assert not (seen[:, :, row // 2 + 1 :] != 0).any()
    for column in range(6 if direction == "down_right" else 0):
        (seen,) = torch.autograd.grad(y[:, :, :, column].sum(), x, retain_graph=True)
        assert not (seen[:, :, :, column // 2 + 1 :] != 0).any()


def test_two_layers_of_a_pixelcnn_see_only_earlier_colours() -> None:
    """A then B, colours interleaved where 3 does not divide the hidden channels: the model's order holds end to end."""
    net = nn.Sequential(
        MaskedConv2d(3, 10, 5, "A", colours=3, activation="elu"),
        MaskedConv2d(10, 10, 3, "B", colours=3, activation="elu"),
        MaskedConv2d(10, 6, 1, "B", colours=3),
    )
    x = torch.randn(1, 3, 4, 4, requires_grad=True)
    y = net(x).view(1, 2, 3, 4, 4)
    for t in range(48):
        row, column, colour = t // 12, t // 3 % 4, t % 3
        (seen,) = torch.autograd.grad(y[0, :, colour, row, column].sum(), x, retain_graph=True)
        assert not (seen[0].permute(1, 2, 0).reshape(-1)[t:] != 0).any()


@pytest.mark.parametrize("layout", ["interleaved", "contiguous"])
def test_a_gate_has_the_colours_of_its_result(layout: str) -> None:
    """Where neither 3 divides 7: a result of colour o sees colours <= o through both halves."""
    layer = MaskedConv2d(6, 14, 1, "B", colours=3, colour_layout=layout, activation="tanh_gate")
    x = torch.randn(1, 6, 1, 1, requires_grad=True)
    y = layer(x)
    assert y.shape == (1, 7, 1, 1)
    theirs, own = (colours_of(n, 3, layout) for n in (6, 7))
    for o in range(7):
        (seen,) = torch.autograd.grad(y[0, o, 0, 0], x, retain_graph=True)
        assert torch.equal(seen.flatten() != 0, theirs <= own[o])


@pytest.mark.parametrize("name", LAYERS)
def test_copies_and_pickles(name: str) -> None:
    layer, x = LAYERS[name](), torch.randn(2, 4, 5, 5)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("name", LAYERS)
def test_built_on_the_meta_device(name: str) -> None:
    source, x = LAYERS[name](), torch.randn(2, 4, 5, 5)
    layer = LAYERS[name](device="meta")
    assert layer(torch.empty(2, 4, 5, 5, device="meta")).shape == source(x).shape
    layer.to_empty(device="cpu")
    layer.load_state_dict(source.state_dict())
    torch.testing.assert_close(layer(x), source(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    layer = LAYERS["masked"]().to(dtype)
    assert layer(torch.randn(2, 4, 5, 5, dtype=dtype)).dtype == dtype
    assert LAYERS["masked"](dtype=dtype).weight.dtype == dtype


def test_the_mask_applies_to_a_reparametrised_weight() -> None:
    layer = nn.utils.parametrizations.weight_norm(LAYERS["masked"]())
    x = torch.randn(2, 4, 5, 5)
    mask = raster_mask(layer.weight.shape, "B", 3)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight * mask, layer.bias, padding=1))
    layer(x).sum().backward()
    gradient = layer.parametrizations.weight.original1.grad
    assert gradient is not None
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", LAYERS)
def test_compiles_whole_and_exports(name: str) -> None:
    model = nn.Sequential(LAYERS[name](activation="relu"), nn.Conv2d(6, 2, 1))
    x = torch.randn(2, 4, 5, 5)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    compiled(x).sum().backward()
    assert model[0].weight.grad is not None
    exported = torch.export.export(model, (x,))
    torch.testing.assert_close(exported.module()(x), model(x))


def test_repr_names_the_mask() -> None:
    assert "mask_type='B', colours=3, colour_layout='interleaved'" in repr(LAYERS["masked"]())
    assert "activation=relu" in repr(MaskedConv2d(2, 2, 3, "A", activation="relu"))
    assert "direction='down', stride=(2, 2), transposed=True" in repr(LAYERS["transposed"]())


BAD: list[tuple[str, Callable[[], Any]]] = [
    ("in_channels: expected a positive", lambda: MaskedConv2d(0, 4, 3, "A")),
    ("out_channels: expected a positive", lambda: MaskedConv2d(4, 2.5, 3, "A")),  # type: ignore[arg-type]
    ("kernel_size: expected odd", lambda: MaskedConv2d(4, 4, 2, "A", padding=1)),
    ("padding: 'same' expects odd", lambda: MaskedConv2d(4, 4, 2, "A")),
    ("kernel_size: expected one or two", lambda: MaskedConv2d(4, 4, (3, 3, 3), "A")),
    ("mask_type: expected one of A, B, got 'C'", lambda: MaskedConv2d(4, 4, 3, "C")),
    ("mask_type: expected one of A, B, got None", lambda: MaskedConv2d(4, 4, 3, None)),  # type: ignore[arg-type]
    ("activation: expected one of", lambda: MaskedConv2d(4, 4, 3, "A", activation="swish")),
    ("out_channels: expected an even number", lambda: MaskedConv2d(4, 5, 3, "A", activation="tanh_gate")),
    ("mask_type: expected one of A, B", lambda: VerticalStackConv2d(4, 4, 3, "a")),
    ("kernel_size: expected odd", lambda: VerticalStackConv2d(4, 4, (2, 3), "A")),
    ("direction: expected one of down", lambda: ShiftedConv2d(4, 4, (2, 3), "right")),
    ("kernel_size: expected an odd width", lambda: ShiftedConv2d(4, 4, (2, 2), "down")),
    ("stride: expected a positive", lambda: ShiftedConv2d(4, 4, (2, 3), "down", stride=-1)),
    ("reaches over the stride", lambda: ShiftedConv2d(4, 4, (1, 3), "down", stride=2, transposed=True)),
]


@pytest.mark.parametrize(("message", "build"), BAD)
def test_bad_options(message: str, build: Callable[[], Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        build()


def test_no_memory_of_earlier_weights() -> None:
    """A packed copy of the weight is kept: writes that raise no version counter must be seen as well."""
    layer, x = LAYERS["masked"](), torch.randn(2, 4, 5, 5)
    mask: Tensor = raster_mask(layer.weight.shape, "B", 3)
    with torch.no_grad():
        layer(x)
        layer.weight.data[3, 2, 0, 1] += 1
        torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight * mask, layer.bias, padding=1))
