"""Lowering over images: modules against their own full pass, and refusals that name the module and the reason."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastar import native
from fastar.nn import (
    DiagonalBiLSTM,
    DiagonalLSTM,
    GatedPixelCNNBlock,
    MaskedConv2d,
    RowLSTM,
    ShiftedConv2d,
    VerticalStackConv2d,
)
from fastar.sampling import Head, LoweringError, Program, Sampler, SampleResult, image, register, trace
from fastar.sampling.cost import cost
from fastar.sampling.instructions import Loop, TappedLinear
from fastar.sampling.planes import Canvas, Planes
from fastar.sampling.reference import Reference
from fastar.sampling.request import make

LEVELS = 4
SCALE, SHIFT = 2 / (LEVELS - 1), -1.0


def _values(program: Program, n: int = 3, **inputs: Tensor) -> tuple[Tensor, Tensor]:
    # Values [n, C, H, W] as the module takes them, and the parameters [n, H, W, draws, P] that the program computed.
    run = Reference(program, torch.float64).start(make(program, n, seed=1, inputs=inputs), trace=True)
    run.advance()
    assert run.trace is not None
    assert program.shape is not None
    C, H, W = program.shape
    params = torch.stack([one.params for one in run.trace], 1)
    return run.values.view(n, H, W, C).permute(0, 3, 1, 2), params.view(n, H, W, -1, params.shape[2])


def _agrees(module: nn.Module, program: Program, colour_major: bool = True, **inputs: Tensor) -> None:
    values, params = _values(program, **inputs)
    draws = params.shape[3]
    with torch.no_grad():
        maps = [t.double() if t.dim() == 2 else t.double().permute(0, 3, 1, 2) for t in inputs.values()]
        y = module.double().eval()(values * SCALE + SHIFT, *maps)
    expected = y.unflatten(1, (draws, -1) if colour_major else (-1, draws))
    expected = expected.permute(0, 3, 4, 1, 2) if colour_major else expected.permute(0, 3, 4, 2, 1)
    torch.testing.assert_close(params, expected, rtol=1e-12, atol=1e-12)


class Residual(nn.Module):
    """PixelCNN's block: narrow, look, widen."""

    def __init__(self, width: int, **colours: object) -> None:
        super().__init__()
        half = (width + 1) // 2
        self.narrow = MaskedConv2d(width, half, 1, "B", activation="relu", **colours)  # type: ignore[arg-type]
        self.look = MaskedConv2d(half, half, 3, "B", **colours)  # type: ignore[arg-type]
        self.widen = MaskedConv2d(half, width, 1, "B", **colours)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.widen(F.relu(self.look(self.narrow(F.relu(x)))))


def _pixelcnn(C: int, width: int, layout: str) -> nn.Module:
    colours = {"colours": C, "colour_layout": layout}
    first, last = MaskedConv2d(C, width, 5, "A", **colours), MaskedConv2d(width, C * LEVELS, 1, "B", **colours)
    return nn.Sequential(first, Residual(width, **colours), nn.ELU(), Residual(width, **colours), nn.Dropout2d(), last)


@pytest.mark.parametrize(
    ("C", "width", "layout"), [(1, 6, "interleaved"), (3, 7, "interleaved"), (2, 6, "contiguous"), (3, 2, "contiguous")]
)
def test_pixelcnn(C: int, width: int, layout: str) -> None:
    torch.manual_seed(0)
    module = _pixelcnn(C, width, layout)
    major = layout == "contiguous"
    head = Head("categorical", LEVELS)
    program = image(module, head, (C, 4, 3), colour_major=major, scale=SCALE, shift=SHIFT)
    _agrees(module, program, major)
    # Each weight that the masks let through is multiplied at most once per pixel.
    kept = sum(int(m.dense_mask().sum()) for m in module.modules() if isinstance(m, MaskedConv2d))
    assert cost(program).multiply_adds * C <= kept


@pytest.mark.skipif(native.why_missing() is not None, reason=str(native.why_missing()))
def test_the_cpu_executor_draws_what_the_reference_draws() -> None:
    torch.manual_seed(1)
    program = image(_pixelcnn(3, 7, "interleaved"), Head("categorical", LEVELS), (3, 5, 4), colour_major=False)
    results = []
    for backend in ("cpu", "reference"):
        result = Sampler(program, 4, backend=backend).sample(seed=3, return_info=True)
        assert isinstance(result, SampleResult)
        results.append(result)
    assert torch.equal(results[0].values, results[1].values)
    torch.testing.assert_close(results[0].log_prob, results[1].log_prob, rtol=1e-5, atol=1e-4)


class Gated(nn.Module):
    """A gated PixelCNN's layer: a vertical stack that feeds, moved down by a row, a horizontal one."""

    def __init__(self, into: int, width: int, kind: str, cond: int = 0) -> None:
        super().__init__()
        self.vertical = VerticalStackConv2d(into, 2 * width, 3, kind)
        self.horizontal = MaskedConv2d(into, 2 * width, (1, 3), kind)
        self.bridge, self.out = nn.Conv2d(2 * width, 2 * width, 1), nn.Conv2d(width, width, 1)
        self.residual = kind == "B"
        self.cond = nn.Linear(cond, 2 * width) if cond else None

    def gate(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return torch.tanh(a) * torch.sigmoid(b)

    def forward(self, v: Tensor, h: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        above = self.vertical(v)
        # Type A of the vertical stack sees the rows above only; type B its own as well, so that it is moved down.
        feed = F.pad(above, (0, 0, 1, 0))[:, :, :-1] if self.residual else above
        along = self.horizontal(h) + self.bridge(feed)
        if self.cond is not None:
            along = along + self.cond(c)[:, :, None, None]
        g = self.out(self.gate(along))
        return self.gate(above), h + g if self.residual else g


class GatedPixelCNN(nn.Module):
    """Two gated layers, on a vector and a map where it is conditioned."""

    def __init__(self, C: int, width: int, cond: int = 0, around: int = 0) -> None:
        super().__init__()
        self.first, self.second = Gated(C, width, "A", cond), Gated(width, width, "B", cond)
        self.around = nn.Conv2d(around, width, 3, padding=1) if around else None
        self.head = nn.Conv2d(width, LEVELS, 1)

    def forward(self, x: Tensor, label: Tensor | None = None, around: Tensor | None = None) -> Tensor:
        v, h = self.first(x, x, label)
        if self.around is not None:
            h = h + F.elu(self.around(around))
        v, h = self.second(v, h, label)
        return self.head(F.relu(h))


def test_gated_pixelcnn_computes_its_vertical_stack_once_per_row() -> None:
    torch.manual_seed(2)
    module = GatedPixelCNN(1, 4)
    program = image(module, Head("categorical", LEVELS), (1, 4, 5), scale=SCALE, shift=SHIFT)
    _agrees(module, program)
    assert [one.count for one in program.code if isinstance(one, Loop)][:3] == [4, 5, 5]
    assert cost(program).multiply_adds <= sum(p.numel() for p in module.parameters())


def test_conditions_are_a_vector_or_a_map() -> None:
    torch.manual_seed(3)
    module = GatedPixelCNN(1, 4, cond=3, around=2)
    inputs = {"label": (3,), "around": (4, 5, 2)}
    program = image(module, Head("categorical", LEVELS), (1, 4, 5), scale=SCALE, shift=SHIFT, inputs=inputs)
    _agrees(module, program, label=torch.randn(3, 3), around=torch.randn(3, 4, 5, 2))
    # What depends on the vector alone is computed before the first pixel.
    first = next(place for place, one in enumerate(program.code) if isinstance(one, Loop))
    assert {one.op for one in program.code[:first]} == {"linear"}


class Blocks(nn.Module):
    """fastar's own gated layers, on a vector and a map."""

    def __init__(self, C: int, width: int, **options: object) -> None:
        super().__init__()
        given = {"cond_channels": 3, "cond_map_channels": 2, "colours": C, **options}
        self.first = GatedPixelCNNBlock(C, width, 3, "A", **given)  # type: ignore[arg-type]
        self.second = GatedPixelCNNBlock(width, width, (5, 3), "B", **given)  # type: ignore[arg-type]
        self.gate = MaskedConv2d(width, 2 * width, 1, "B", colours=C, activation="tanh_gate")
        self.head = MaskedConv2d(width, C * LEVELS, 1, "B", colours=C)

    def forward(self, x: Tensor, label: Tensor, around: Tensor) -> Tensor:
        v, h = self.first(x, x, label, around)
        v, h = self.second(v, h, label, around)
        return self.head(self.gate(h))


@pytest.mark.parametrize(
    ("C", "options"),
    [(1, {}), (3, {}), (3, {"vertical": "cropped"}), (1, {"vertical": "factored"}), (1, {"shift": False})],
)
def test_gated_blocks(C: int, options: dict[str, object]) -> None:
    torch.manual_seed(7)
    module = Blocks(C, 6, **options)
    inputs = {"label": (3,), "around": (4, 5, 2)}
    head = Head("categorical", LEVELS)
    program = image(module, head, (C, 4, 5), colour_major=False, scale=SCALE, shift=SHIFT, inputs=inputs)
    _agrees(module, program, False, label=torch.randn(3, 3), around=torch.randn(3, 4, 5, 2))
    assert sum(one.op == "gate" for one in program.code) >= 3


class Streams(nn.Module):
    """PixelCNN++'s two streams at one scale: down-shifted, and down-right-shifted with a short cut from the other."""

    def __init__(self, C: int, width: int, outputs: int) -> None:
        super().__init__()
        self.u0 = ShiftedConv2d(C, width, (2, 3), "down")
        self.ul0, self.ul1 = ShiftedConv2d(C, width, (1, 3), "down"), ShiftedConv2d(C, width, (2, 1), "down_right")
        self.u1 = ShiftedConv2d(2 * width, 2 * width, (2, 3), "down")
        self.ul2 = ShiftedConv2d(2 * width, width, (2, 2), "down_right", activation="concat_elu")
        self.short, self.last = nn.Conv2d(2 * width, 2 * width, 1), nn.Conv2d(2 * width, 2 * width, 1)
        self.norm, self.head = nn.BatchNorm2d(width), nn.Conv2d(width, outputs, 1)

    @staticmethod
    def twice(x: Tensor) -> Tensor:
        return F.elu(torch.cat([x, -x], dim=1))

    def forward(self, x: Tensor) -> Tensor:
        u = F.pad(self.u0(x), (0, 0, 1, 0))[:, :, :-1, :]
        down, right = self.ul0(x), self.ul1(x)
        ul = F.pad(down, (0, 0, 1, 0))[:, :, :-1, :] + F.pad(right, (1, 0))[:, :, :, :-1]
        a, b = self.u1(self.twice(u)).chunk(2, dim=1)
        u = u + a * torch.sigmoid(b)
        c, d = (self.last(self.ul2(self.twice(ul))) + self.short(self.twice(u))).chunk(2, dim=1)
        return self.head(self.norm(ul + c * torch.sigmoid(d)))


def test_streams_that_are_moved_and_a_head_over_all_colours() -> None:
    torch.manual_seed(4)
    head = Head("logistic", levels=LEVELS, components=2, channels=3, low=-1.0, high=1.0, min_log_scale=-7.0)
    module = Streams(3, 4, head.params).double()
    assert isinstance(module.norm.running_var, Tensor)
    module.norm.running_var.uniform_(0.5, 2)
    program = image(module, head, (3, 4, 5), scale=SCALE, shift=SHIFT)
    _agrees(module, program)


class Scales(nn.Module):
    """Two streams that shrink twice and grow again, with short cuts and a vector that conditions all."""

    def __init__(self, C: int, width: int, outputs: int) -> None:
        super().__init__()
        self.u0, self.ul0 = ShiftedConv2d(C, width, (2, 3), "down"), ShiftedConv2d(C, width, (2, 2), "down_right")
        sizes = {"down": (2, 3), "down_right": (2, 2)}
        self.shrink, self.grow, self.look, self.cross = (nn.ModuleDict() for _ in range(4))
        for name, kernel in sizes.items():
            for k in (1, 2):
                self.shrink[f"{name}{k}"] = ShiftedConv2d(width, width, kernel, name, stride=2)
                self.look[f"{name}{k}"] = ShiftedConv2d(width, width, kernel, name, activation="tanh")
                raised = ShiftedConv2d(width, width, kernel, name, stride=2, transposed=True, activation="elu")
                self.grow[f"{name}{k}"] = raised
        for k in "012345":
            self.cross[k] = nn.Conv2d(width, width, 1)
        self.given, self.head = nn.Linear(2, width), nn.Conv2d(2 * width, outputs, 1)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        u = F.pad(self.u0(x), (0, 0, 1, 0))[:, :, :-1]
        ul = F.pad(self.ul0(x), (1, 0))[:, :, :, :-1] + self.cross["0"](u)
        us, uls = [u], [ul]
        for k in (1, 2):
            u = self.look[f"down{k}"](self.shrink[f"down{k}"](u)) + self.given(label)[:, :, None, None]
            ul = self.look[f"down_right{k}"](self.shrink[f"down_right{k}"](ul)) + self.cross[str(k)](u)
            us.append(u)
            uls.append(ul)
        for k in (1, 2):
            u = self.grow[f"down{k}"](u) + us[2 - k]
            ul = self.grow[f"down_right{k}"](ul) + self.cross[str(k + 2)](u) + uls[2 - k]
        return self.head(torch.cat([ul, self.cross["5"](u)], dim=1))


def test_streams_that_shrink_and_grow() -> None:
    torch.manual_seed(8)
    head = Head("logistic", levels=LEVELS, components=2, channels=2, low=-1.0, high=1.0)
    module = Scales(2, 3, head.params)
    program = image(module, head, (2, 8, 4), scale=SCALE, shift=SHIFT, inputs={"label": (2,)})
    _agrees(module, program, label=torch.randn(3, 2))
    # A plane of half the size is computed for a quarter of the pixels.
    assert cost(program).multiply_adds <= sum(p.numel() for p in module.parameters())
    with pytest.raises(LoweringError, match="changes the image's size, and so has to draw a pixel's colours at once"):
        image(module, Head("categorical", head.params // 2), (2, 8, 4), inputs={"label": (2,)})


@pytest.mark.skipif(native.why_missing() is not None, reason=str(native.why_missing()))
def test_the_cpu_executor_shrinks_and_grows() -> None:
    torch.manual_seed(8)
    head = Head("logistic", levels=LEVELS, components=2, channels=2, low=-1.0, high=1.0)
    program = image(Scales(2, 3, head.params), head, (2, 8, 4), scale=SCALE, shift=SHIFT, inputs={"label": (2,)})
    cond = torch.randn(4, 2)
    log_probs = []
    for backend in ("cpu", "reference"):
        given = torch.randint(0, LEVELS, (4, 2, 8, 4), generator=torch.Generator().manual_seed(0))
        result = Sampler(program, 4, backend=backend).sample(seed=3, cond=cond, given=given, return_info=True)
        assert isinstance(result, SampleResult)
        log_probs.append(result.log_prob)
    torch.testing.assert_close(*log_probs, rtol=1e-5, atol=1e-4)


class Scanned(nn.Module):
    """PixelRNN's layers with residual sums."""

    def __init__(self, C: int, width: int, kinds: list[str]) -> None:
        super().__init__()
        self.first = MaskedConv2d(C, width, 3, "A", colours=C)
        scans = {"row": RowLSTM, "both": DiagonalBiLSTM, "left": DiagonalLSTM}
        self.scans = nn.ModuleList(scans[kind](width, 5, mask_type="B", colours=C) for kind in kinds)
        self.widen = nn.ModuleList(MaskedConv2d(5, width, 1, "B", colours=C) for _ in kinds)
        self.head = MaskedConv2d(width, C * LEVELS, 1, "B", colours=C, activation="none")

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        for scan, widen in zip(self.scans, self.widen, strict=True):
            y = y + widen(scan(y))
        return self.head(F.relu(y))


@pytest.mark.parametrize("C", [1, 3])
@pytest.mark.parametrize("kinds", [["row", "row"], ["both", "both"], ["left", "row", "both"]])
def test_lstms_over_rows_and_diagonals(C: int, kinds: list[str]) -> None:
    torch.manual_seed(9)
    module = Scanned(C, 7, kinds)
    program = image(module, Head("categorical", LEVELS), (C, 4, 5), colour_major=False, scale=SCALE, shift=SHIFT)
    _agrees(module, program, False)
    if native.why_missing() is None:
        given = torch.randint(0, LEVELS, (3, C, 4, 5), generator=torch.Generator().manual_seed(0))
        found = [
            Sampler(program, 3, backend=backend).sample(seed=1, given=given, return_info=True)
            for backend in ("cpu", "reference")
        ]
        torch.testing.assert_close(found[0].log_prob, found[1].log_prob, rtol=1e-5, atol=1e-4)  # type: ignore[union-attr]


def test_a_convolution_that_is_padded_by_hand() -> None:
    torch.manual_seed(5)

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.above, self.head = nn.Conv2d(1, 5, (2, 3)), nn.Conv2d(5, LEVELS, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.above(F.pad(x, (1, 1, 2, 0))[:, :, :-1])
            return self.head(torch.tanh(y) * 0.5 - y / 3)

    program = image(Padded(), Head("categorical", LEVELS), (1, 3, 4), scale=SCALE, shift=SHIFT)
    assert any(isinstance(one, TappedLinear) and (-2, 1) in one.taps for one in program.code)
    torch.manual_seed(5)
    _agrees(Padded(), program)


class Doubled(nn.Module):
    """A layer that a user writes."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 1e9 else 2 * x


def test_a_users_layer_registers_its_own_lowering() -> None:
    module = nn.Sequential(MaskedConv2d(1, LEVELS, 3, "A"), Doubled())

    @register(Doubled, over="image")
    def double(layer: Doubled, x: object, canvas: Canvas) -> Planes:
        return canvas.elementwise("none", canvas.value(x), alpha=2.0)

    try:
        _agrees(module, image(module, Head("categorical", LEVELS), (1, 3, 3), scale=SCALE, shift=SHIFT))
    finally:
        del trace._LAYERS["image"][Doubled]


def test_the_law_sums_to_one_over_all_images() -> None:
    torch.manual_seed(6)
    module = nn.Sequential(MaskedConv2d(1, 3, 3, "A", activation="tanh"), MaskedConv2d(3, 1, 1, "B"))
    program = image(module, Head("bernoulli"), (1, 2, 3))
    every = torch.tensor(list(itertools.product([0, 1], repeat=6))).view(-1, 1, 2, 3)
    result = Sampler(program, 64, dtype=torch.float64, backend="reference").sample(
        64, seed=0, given=every, return_info=True
    )
    assert isinstance(result, SampleResult)
    torch.testing.assert_close(result.log_prob.exp().sum(), torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.Conv2d(1, LEVELS, 3, padding=1)], r"^0: looks at a row below the pixel's"),
        ([nn.Conv2d(1, LEVELS, (1, 3), padding=(0, 1))], r"^0: the output at a pixel depends on pixels to its right"),
        ([MaskedConv2d(1, LEVELS, 3, "B")], r"^0: output 0, of colour 0, depends on the pixel itself"),
        ([MaskedConv2d(1, LEVELS, 3, "A", padding=0)], r"^0: a kernel of \[3, 3\] over an input padded by \[0, 0\]"),
        ([nn.Conv2d(1, LEVELS, 1, groups=1, dilation=2)], r"^0: Conv2d with groups, dilation"),
        ([nn.Conv2d(2, LEVELS, 1)], r"^0: takes 2 channels, gets 1"),
        ([ShiftedConv2d(1, LEVELS, 2, "down_right", stride=(2, 1))], r"^0: a stride of \[2, 1\] has no lowering"),
        ([ShiftedConv2d(1, LEVELS, 3, "down", stride=3)], r"^0: a stride that makes 3 in all does not divide"),
        ([ShiftedConv2d(1, LEVELS, 2, "down_right", stride=2)], r"the module itself: its output is no single layer's"),
        (
            [ShiftedConv2d(1, 1, 5, "down", stride=3, transposed=True)],
            r"^0: a transposed convolution of stride \[3, 3\]",
        ),
        ([ShiftedConv2d(1, 1, 2, "down_right", stride=2, transposed=True)], r"^0: grows what no layer shrank"),
        ([MaskedConv2d(1, 3, 3, "A")], r"the module itself: it gives 3 channels, and the head .* reads 1 x 4"),
        ([nn.MaxPool2d(2)], r"^0: no lowering is registered for .*MaxPool2d"),
        ([nn.Linear(4, 4)], r"^0: a linear layer over \[B, C, H, W\] acts along the image"),
        ([nn.BatchNorm2d(1, track_running_stats=False)], r"^0: BatchNorm2d without running statistics"),
    ],
)
def test_refusals_name_the_module_and_the_reason(layers: list[nn.Module], message: str) -> None:
    with pytest.raises(LoweringError, match=message):
        image(nn.Sequential(*layers), Head("categorical", LEVELS), (1, 4, 4))


def test_colours_that_look_ahead_are_refused() -> None:
    first = MaskedConv2d(2, 4, 3, "A", colours=2)
    ahead = MaskedConv2d(4, 2 * LEVELS, 1, "B", colours=2)
    message = r"^1: output 1, of colour 0, depends on colour 0"
    with pytest.raises(LoweringError, match=message):
        image(nn.Sequential(first, ahead), Head("categorical", LEVELS), (2, 3, 3), colour_major=True)
    with pytest.raises(ValueError, match="head: expected 1 or 3 channels, got 2"):
        image(first, Head("logistic", channels=2), (3, 3, 3))
    with pytest.raises(ValueError, match=r"inputs: expected label to be \(width,\) or \(3, 3, 'channels'\)"):
        image(first, Head("bernoulli"), (2, 3, 3), inputs={"label": (3, 4)})
    with pytest.raises(ValueError, match="over: expected sequence or image, got 'volume'"):
        register(Doubled, over="volume")
