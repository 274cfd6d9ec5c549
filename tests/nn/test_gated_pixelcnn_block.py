"""The layer of a gated PixelCNN: against plain convolutions, and that it sees every earlier pixel and no later one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastar.nn import GatedPixelCNNBlock
from fastar.reference.masked_conv2d import colours_see

FORMS = ("masked", "cropped", "factored")


def rows_seen(weight: Tensor, rows: int) -> Tensor:
    mask = torch.zeros_like(weight)
    mask[:, :, :rows] = 1
    return weight * mask


def gate(z: Tensor) -> Tensor:
    half = z.shape[1] // 2
    return z[:, :half].tanh() * z[:, half:].sigmoid()


def plain(block: GatedPixelCNNBlock, v: Tensor, h: Tensor, cond: Tensor, cond_map: Tensor, form: str) -> Any:
    """The published formula in torch's convolutions, of a block of 5 x 3, with type A or B and one colour."""
    w = dict(block.named_parameters())
    rows = 3 if block.shift or block.mask_type == "B" else 2
    padded = F.pad(v, (1, 1, 2, 0))
    if form == "factored":
        across = F.conv2d(padded, w["vertical.0.weight"], w["vertical.0.bias"])
        # The second convolution pads what the first computed, not what it was given.
        across = F.pad(across[:, :, 2:], (0, 0, 2, 0))
        z = F.conv2d(across, rows_seen(w["vertical.1.weight"], rows)[:, :, :3], w["vertical.1.bias"])
    else:
        z = F.conv2d(padded, rows_seen(w["vertical.weight"], rows)[:, :, :3], w["vertical.bias"])
    above = torch.cat([torch.zeros_like(z[:, :, :1]), z[:, :, :-1]], 2) if block.shift else z
    weight = w["horizontal.weight"][:, :, :, :2].clone()
    if block.mask_type == "A":
        weight[:, :, :, 1] = 0
    across = F.conv2d(F.pad(h, (1, 0, 0, 0)), weight, w["horizontal.bias"])
    across = across + F.conv2d(above, w["vertical_to_horizontal.weight"], w["vertical_to_horizontal.bias"])

    def conditioned(z: Tensor, stack: str) -> Tensor:
        bias = cond @ w[f"cond.{stack}.weight"].t()
        return z + bias[:, :, None, None] + F.conv2d(cond_map, w[f"cond_map.{stack}.weight"])

    h_out = F.conv2d(gate(conditioned(across, "horizontal")), w["horizontal_out.weight"], w["horizontal_out.bias"])
    return gate(conditioned(z, "vertical")), h_out + h if block.residual else h_out


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("mask_type", ["A", "B"])
@pytest.mark.parametrize("form", FORMS)
def test_is_the_published_formula(form: str, mask_type: str, shift: bool) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"cond_channels": 4, "cond_map_channels": 2, "dtype": torch.float64}
    block = GatedPixelCNNBlock(6, 6, (5, 3), mask_type, vertical=form, shift=shift, **options)
    v, h = (torch.randn(2, 6, 7, 5, dtype=torch.float64) for _ in range(2))
    cond, cond_map = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 2, 7, 5, dtype=torch.float64)
    assert block.residual == (mask_type == "B")
    outputs, expected = block(v, h, cond, cond_map), plain(block, v, h, cond, cond_map, form)
    grads = [torch.randn_like(one) for one in outputs]
    parameters = list(block.parameters())
    for ours, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad(outputs, parameters, grads), torch.autograd.grad(expected, parameters, grads), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def stack_of(first: dict[str, Any], rest: int, **options: Any) -> Callable[[Tensor], Tensor]:
    """Blocks of type A and then B, as a model has them, from the image to the last block's h."""
    torch.manual_seed(1)
    options = {"dtype": torch.float64, **options}
    blocks = [GatedPixelCNNBlock(**first, mask_type="A", **options)]
    width = first["channels"]
    blocks += [GatedPixelCNNBlock(width, width, first["kernel_size"], "B", **options) for _ in range(rest)]

    def run(x: Tensor) -> Tensor:
        v = h = x
        for block in blocks:
            v, h = block(v, h)
        return h

    return run


def seen_by(run: Callable[[Tensor], Tensor], x: Tensor, at: tuple[int, int]) -> Tensor:
    """Whether some channel of the result at this pixel depends on some channel of the image at each other."""
    x = x.detach().requires_grad_()
    h = run(x)
    total = torch.zeros(x.shape[2:])
    for channel in range(h.shape[1]):
        total += torch.autograd.grad(h[0, channel, at[0], at[1]], x, retain_graph=True)[0].abs().sum((0, 1))
    return total != 0


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_no_blind_spot(form: str, shift: bool) -> None:
    """Deep enough to reach the whole image, the stack sees each earlier pixel, and none from its own on."""
    height, width = 6, 5
    run = stack_of({"in_channels": 1, "channels": 3, "kernel_size": 3}, 5, vertical=form, shift=shift)
    x = torch.randn(1, 1, height, width, dtype=torch.float64)
    order = torch.arange(height * width).view(height, width)
    for at in ((0, 0), (0, 4), (1, 0), (2, 2), (3, 0), (5, 0), (5, 4)):
        assert torch.equal(seen_by(run, x, at), order < order[at]), at


@pytest.mark.parametrize("shift", [True, False])
def test_reach_of_one_block(shift: bool) -> None:
    run = stack_of({"in_channels": 2, "channels": 2, "kernel_size": (5, 3)}, 0, shift=shift)
    seen = seen_by(run, torch.randn(1, 2, 7, 7, dtype=torch.float64), (5, 3))
    expected = torch.zeros(7, 7, dtype=torch.bool)
    # Shifted, z holds three rows that end with the one above; else the two above of the kernel's five.
    expected[2 if shift else 3 : 5, 2:5] = True
    expected[5, 2] = True
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("layout", ["interleaved", "contiguous"])
@pytest.mark.parametrize("form", FORMS)
def test_colours_keep_their_order(form: str, layout: str) -> None:
    """Where 3 does not divide the channels; a last 1 x 1 of type B would give each colour's parameters."""
    run = stack_of(
        {"in_channels": 3, "channels": 7, "kernel_size": 3}, 2, vertical=form, colours=3, colour_layout=layout
    )
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    h = run(x)
    # A channel of the last block sees at its own pixel the colours before its own.
    sees = colours_see(7, 3, "A", 3, layout)
    order = torch.arange(16).view(4, 4)
    for channel in range(7):
        for at in ((0, 0), (1, 3), (3, 2)):
            (seen,) = torch.autograd.grad(h[0, channel, at[0], at[1]], x, retain_graph=True)
            for colour in range(3):
                expected = order < order[at]
                expected[at] = bool(sees[channel, colour])
                assert torch.equal(seen[0, colour] != 0, expected), (channel, colour, at)


def test_conditions_reach_both_stacks_everywhere() -> None:
    block = GatedPixelCNNBlock(4, 4, 3, "B", cond_channels=3, cond_map_channels=2)
    v, h = torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5)
    cond, cond_map = torch.randn(2, 3, requires_grad=True), torch.randn(2, 2, 5, 5, requires_grad=True)
    for out in block(v, h, cond, cond_map):
        by_vector, by_map = torch.autograd.grad(out[0, :, 2, 3].sum(), (cond, cond_map), retain_graph=True)
        assert (by_vector != 0).any(1).tolist() == [True, False]
        # The map is added where it lies.
        assert (by_map != 0).any(1).nonzero().tolist() == [[0, 2, 3]]


def test_a_state_dict_and_its_names() -> None:
    block = GatedPixelCNNBlock(4, 6, 3, "A", cond_channels=3, cond_map_channels=2)
    sizes = {name: tuple(value.shape) for name, value in block.state_dict().items()}
    assert sizes == {
        "vertical.weight": (12, 4, 3, 3),
        "vertical.bias": (12,),
        "vertical_to_horizontal.weight": (12, 12, 1, 1),
        "vertical_to_horizontal.bias": (12,),
        "horizontal.weight": (12, 4, 1, 3),
        "horizontal.bias": (12,),
        "horizontal_out.weight": (6, 6, 1, 1),
        "horizontal_out.bias": (6,),
        "cond.vertical.weight": (12, 3),
        "cond.horizontal.weight": (12, 3),
        "cond_map.vertical.weight": (12, 2, 1, 1),
        "cond_map.horizontal.weight": (12, 2, 1, 1),
    }
    other = GatedPixelCNNBlock(4, 6, 3, "A", cond_channels=3, cond_map_channels=2)
    other.load_state_dict(block.state_dict(), strict=True)
    inputs = (torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5), torch.randn(2, 3), torch.randn(2, 2, 5, 5))
    assert all(torch.equal(a, b) for a, b in zip(block(*inputs), other(*inputs), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(block(*inputs), copy.deepcopy(block)(*inputs), strict=True))


def test_a_cropped_kernel_is_a_masked_one_without_the_masked_taps() -> None:
    cropped, masked = (GatedPixelCNNBlock(4, 4, 5, "B", vertical=v) for v in ("cropped", "masked"))
    with torch.no_grad():
        state = masked.state_dict()
        state["vertical.weight"] = state["vertical.weight"][:, :, :3]
        state["horizontal.weight"] = state["horizontal.weight"][:, :, :, :3]
    cropped.load_state_dict(state, strict=True)
    v, h = torch.randn(2, 4, 6, 5), torch.randn(2, 4, 6, 5)
    for a, b in zip(cropped(v, h), masked(v, h), strict=True):
        torch.testing.assert_close(a, b)


def test_built_on_the_meta_device() -> None:
    block = GatedPixelCNNBlock(3, 3, 3, "A", colours=3, device="meta")
    assert block(*[torch.empty(2, 3, 4, 4, device="meta")] * 2)[1].shape == (2, 3, 4, 4)
    source = GatedPixelCNNBlock(3, 3, 3, "A", colours=3)
    block.to_empty(device="cpu").load_state_dict(source.state_dict())
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(block(x, x), source(x, x))


def test_compile_fullgraph_and_dtypes() -> None:
    block, x = GatedPixelCNNBlock(4, 4, 3, "B", cond_channels=2), torch.randn(2, 4, 5, 5)
    cond = torch.randn(2, 2)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, x, cond), block(x, x, cond))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert block(x, x, cond)[0].dtype == torch.bfloat16
    low = block.to(torch.bfloat16)
    assert low(x.bfloat16(), x.bfloat16(), cond.bfloat16())[1].dtype == torch.bfloat16


def test_an_empty_batch() -> None:
    x = torch.randn(0, 4, 5, 5)
    assert [one.shape for one in GatedPixelCNNBlock(4, 6, 3, "A")(x, x)] == [(0, 6, 5, 5)] * 2


def test_training_learns_what_the_order_allows() -> None:
    """Each pixel repeats the one above right: nothing a blind spot would show."""
    torch.manual_seed(2)
    x = torch.randint(0, 2, (64, 1, 6, 6)).float()
    for row in range(1, 6):
        x[:, :, row, :-1] = x[:, :, row - 1, 1:]
    first, second = GatedPixelCNNBlock(1, 12, 3, "A"), GatedPixelCNNBlock(12, 12, 3, "B")
    head = nn.Conv2d(12, 1, 1)
    parameters = [p for layer in (first, second, head) for p in layer.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=1e-2)
    for _ in range(80):
        optimiser.zero_grad()
        logits = head(second(*first(x, x))[1])
        F.binary_cross_entropy_with_logits(logits[:, :, 1:, :-1], x[:, :, 1:, :-1]).backward()
        optimiser.step()
    accuracy = ((logits > 0) == (x > 0.5))[:, :, 1:, :-1].float().mean()
    assert accuracy > 0.99


V = torch.randn(2, 4, 5, 5)
BAD: list[tuple[str, Callable[[], Any]]] = [
    ("in_channels: expected a positive", lambda: GatedPixelCNNBlock(0, 4, 3, "A")),
    ("channels: expected a positive", lambda: GatedPixelCNNBlock(4, -1, 3, "A")),
    ("kernel_size: expected odd", lambda: GatedPixelCNNBlock(4, 4, 4, "A")),
    ("kernel_size: expected odd", lambda: GatedPixelCNNBlock(4, 4, (3, 2), "A")),
    ("mask_type: expected one of A, B, got 'C'", lambda: GatedPixelCNNBlock(4, 4, 3, "C")),
    ("colours: expected a positive", lambda: GatedPixelCNNBlock(4, 4, 3, "A", colours=0)),
    ("colour_layout: expected one of", lambda: GatedPixelCNNBlock(4, 4, 3, "A", colours=3, colour_layout="rgb")),
    ("vertical: expected one of masked, cropped", lambda: GatedPixelCNNBlock(4, 4, 3, "A", vertical="sliced")),
    ("residual: expected False for type A", lambda: GatedPixelCNNBlock(4, 4, 3, "A", residual=True)),
    ("residual: expected False", lambda: GatedPixelCNNBlock(4, 6, 3, "B", residual=True)),
    ("cond_channels: expected a positive", lambda: GatedPixelCNNBlock(4, 4, 3, "B", cond_channels=-1)),
    ("cond_map_channels: expected a positive", lambda: GatedPixelCNNBlock(4, 4, 3, "B", cond_map_channels=2.5)),  # type: ignore[arg-type]
    (r"vertical: expected shape \[batch, 4", lambda: GatedPixelCNNBlock(4, 4, 3, "B")(V[:, :3], V)),
    ("horizontal: expected a tensor", lambda: GatedPixelCNNBlock(4, 4, 3, "B")(V, None)),  # type: ignore[arg-type]
    ("horizontal: expected the shape of vertical", lambda: GatedPixelCNNBlock(4, 4, 3, "B")(V, V[:, :, :4])),
    ("cond: expected None from a block without", lambda: GatedPixelCNNBlock(4, 4, 3, "B")(V, V, torch.randn(2, 3))),
    (r"cond: expected shape \[2, 3\], got None", lambda: GatedPixelCNNBlock(4, 4, 3, "B", cond_channels=3)(V, V)),
    (r"cond: expected shape \[2, 3\]", lambda: GatedPixelCNNBlock(4, 4, 3, "B", cond_channels=3)(
        V, V, torch.randn(3, 3))),
    (r"cond_map: expected shape \[2, 3, 5, 5\]", lambda: GatedPixelCNNBlock(4, 4, 3, "B", cond_map_channels=3)(
        V, V, None, torch.randn(2, 3, 4, 5))),
]  # fmt: skip


@pytest.mark.parametrize(("message", "call"), BAD)
def test_bad_input_is_named(message: str, call: Callable[[], Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()
