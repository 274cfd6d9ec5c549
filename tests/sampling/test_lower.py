"""Lowering: modules against their own parallel pass, and refusals that name the module and the reason."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fastar.nn import CausalConv1d, CausalSelfAttention, MaskedLinear, WaveNetBlock
from fastar.sampling import Head, LoweringError, dimensions, register, sequence, trace
from fastar.sampling.cost import cost
from fastar.sampling.instructions import SpanLinear
from fastar.sampling.lower import Signal, Step
from fastar.sampling.program import Program
from fastar.sampling.reference import Reference, Run
from fastar.sampling.request import make


def _run(program: Program, n: int = 4, length: int | None = None) -> tuple[Run, Tensor]:
    run = Reference(program, torch.float64).start(make(program, n, seed=1, length=length), trace=True)
    run.advance()
    assert run.trace is not None
    return run, torch.stack([one.params for one in run.trace], 1)


def _agrees(module: nn.Module, program: Program, first: int, length: int = 6) -> None:
    run, params = _run(program, length=length)
    shifted = torch.cat([torch.full((4, 1), first), run.values[:, :-1, 0].long()], 1)
    with torch.no_grad():
        torch.testing.assert_close(params, module.double().eval()(shifted), rtol=1e-12, atol=1e-12)


class Block(nn.Module):
    """Everything that a module's own forward may do between its layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        wide, narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.net = nn.Sequential(wide, nn.GELU(approximate="tanh"), nn.Dropout(), narrow)
        self.mix = nn.Conv1d(width, 2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.net(self.norm(x))
        a, b = self.mix(x.transpose(1, 2)).chunk(2, dim=1)
        gated = (torch.tanh(a) * torch.sigmoid(b)).permute(0, 2, 1).contiguous()
        return torch.cat([gated * math.sqrt(0.5), nn.functional.silu(x) + 0.25], dim=-1) / 2 - 0.1


def test_a_module_of_ones_own_lowers_without_code() -> None:
    torch.manual_seed(0)
    norm, head = nn.RMSNorm(24, eps=1e-6), nn.Linear(24, 4, bias=False)
    module = nn.Sequential(nn.Embedding(5, 6), Block(6), Block(12), norm, head)
    program = sequence(module, Head("categorical", 4), first=4)
    assert "1.net.0.weight" in program.weights
    _agrees(module, program, first=4)


@pytest.mark.parametrize(
    "layer", [nn.ReLU(), nn.ELU(), nn.GELU(), nn.Tanh(), nn.Sigmoid(), nn.SiLU(), nn.Softplus(), nn.Identity()]
)
def test_activations(layer: nn.Module) -> None:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Embedding(4, 5), layer, nn.Linear(5, 3))
    _agrees(module, sequence(module, Head("categorical", 3), first=3), first=3)


def test_a_masked_linear_layer_along_channels() -> None:
    torch.manual_seed(2)
    degrees = torch.arange(4)
    module = nn.Sequential(
        nn.Embedding(4, 4),
        MaskedLinear(4, 4, in_degrees=degrees, out_degrees=degrees, activation="concat_elu"),
        MaskedLinear(8, 3, mask=torch.rand(3, 8) > 0.5),
    )
    _agrees(module, sequence(module, Head("categorical", 3), first=3), first=3)


def test_floats_enter_scaled() -> None:
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 6))
    program = sequence(module, Head("gaussian", components=2), first=0.5, scale=2.0, shift=0.1)
    run, params = _run(program, length=5)
    before = torch.cat([torch.full((4, 1, 1), 0.5, dtype=torch.float64), 2 * run.values[:, :-1] + 0.1], 1)
    with torch.no_grad():
        torch.testing.assert_close(params, module.double()(before), rtol=1e-12, atol=1e-12)


def test_levels_enter_as_floats_where_the_first_is_one() -> None:
    torch.manual_seed(7)
    module = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
    run, params = _run(sequence(module, Head("bernoulli"), first=-1.0, scale=2.0, shift=-1.0), length=5)
    before = torch.cat([torch.full((4, 1, 1), -1.0, dtype=torch.float64), 2 * run.values[:, :-1] - 1], 1)
    with torch.no_grad():
        torch.testing.assert_close(params, module.double()(before), rtol=1e-12, atol=1e-12)


class Doubled(nn.Module):
    """A layer that a user writes."""

    def forward(self, x: Tensor) -> Tensor:
        return x * len(x.shape) if x.sum() > 1e9 else 2 * x


def test_a_users_layer_registers_its_own_lowering() -> None:
    module = nn.Sequential(nn.Embedding(4, 3), Doubled())
    with pytest.raises(LoweringError, match=r"^1: its forward cannot be traced .*register a lowering for Doubled"):
        sequence(module, Head("categorical", 3), first=3)

    @register(Doubled)
    def double(layer: Doubled, x: object, step: Step) -> Signal:
        return step.elementwise("none", step.signal(x), alpha=2.0)

    try:
        _agrees(module, sequence(module, Head("categorical", 3), first=3), first=3)
    finally:
        del trace._LAYERS["sequence"][Doubled]


class Dilated(nn.Module):
    """Causal convolutions of every kind, with a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 6)
        self.first = CausalConv1d(6, 6, 3, dilation=2, activation="concat_elu")
        self.grouped = CausalConv1d(12, 6, 2, groups=3, bias=False, activation="tanh")
        self.depthwise = CausalConv1d(6, 6, 4, 2, groups=6, activation="silu")
        self.last = CausalConv1d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x).transpose(1, 2)
        y = y + self.grouped(self.first(y))
        return self.last(y + self.depthwise(y)).transpose(1, 2)


def test_causal_convolutions() -> None:
    torch.manual_seed(11)
    module = Dilated()
    program = sequence(module, Head("categorical", 4), first=4)
    _agrees(module, program, first=4, length=9)
    # Three groups one by one, and the six channels of the depthwise one tap by tap.
    assert [one.op for one in program.code].count("tapped_linear") == 1 + 3 + 1


class Blocks(nn.Module):
    """WaveNet's blocks put together by a user, one of them with weight norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        scales = {"residual_scale": 0.5**0.5, "skip_scale": 0.5}
        self.blocks = nn.ModuleList(WaveNetBlock(4, 3, 6, 3, dilation, **scales) for dilation in (1, 2))
        self.head = parametrizations.weight_norm(nn.Conv1d(6, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        y, skip = self.embed(x).transpose(1, 2), None
        for block in self.blocks:
            y, skip = block(y, skip_sum=skip)
        return self.head(torch.relu(skip)).transpose(1, 2)  # type: ignore[no-any-return, arg-type]


def test_wavenet_blocks_of_ones_own() -> None:
    torch.manual_seed(13)
    module = Blocks().double()
    program = sequence(module, Head("categorical", 4), first=4)
    _agrees(module, program, first=4, length=9)
    # A gather into the first ring; the last block's residual is not computed.
    assert [one.op for one in program.code].count("linear") == 2 + 1 + 1
    given = WaveNetBlock(4, 3, 6, global_cond=2)
    with pytest.raises(LoweringError, match="global_cond: expected a tensor, as the block was made"):
        sequence(nn.Sequential(nn.Embedding(4, 4), Transposed(), given), Head("categorical", 4), first=3)


class Transposed(nn.Module):
    """[B, T, C] to [B, C, T]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Attending(nn.Module):
    """Two layers of attention, one of them with a window, with shared heads."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 8), nn.Linear(8, 4)
        self.far, self.near = CausalSelfAttention(8, 2, bias=False), CausalSelfAttention(8, 4, kv_heads=2, window=3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        y = y + self.far(y)
        return self.head(y + self.near(y))


def test_attention_caches_keys_and_values() -> None:
    torch.manual_seed(12)
    module = Attending()
    program = sequence(module, Head("categorical", 4), first=4, limit=9)
    sizes = {one.name: one.shape for one in program.buffers if one.kind == "state"}
    assert sizes == {"far.keys": (9, 8), "far.values": (9, 8), "near.keys": (3, 4), "near.values": (3, 4)}
    _agrees(module, program, first=4, length=9)
    with pytest.raises(LoweringError, match=r"^far: caches every position, and the sequence has no bound"):
        sequence(module, Head("categorical", 4), first=4)


@pytest.mark.parametrize(
    ("local", "slots", "ring"),
    [((1, 1, 4), 6, True), ((2, 9, 3), 9, True), ((0, 2, 5), 3, True), ((0, 0, 1), 1, True), ((4, 1, 5), 14, False)],
)
def test_attention_to_a_neighbourhood_of_pixels_keeps_the_rows_that_it_sees(
    local: tuple[int, int, int], slots: int, ring: bool
) -> None:
    torch.manual_seed(13)
    attention = CausalSelfAttention(8, 4, kv_heads=2, local=local)
    module = nn.Sequential(nn.Embedding(5, 8), attention, nn.Linear(8, 4))
    program = sequence(module, Head("categorical", 4), first=4, limit=14)
    caches = [one for one in program.buffers if one.kind == "state"]
    assert [(one.shape, one.ring) for one in caches] == [((slots, 4), ring)] * 2
    _agrees(module, program, first=4, length=14)


class Recurrent(nn.Module):
    """Two layers of cells, with learned first states where asked."""

    def __init__(self, kind: type[nn.RNNBase], learned: bool, **options: object) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(6, 4)
        self.cells = kind(3, 6, num_layers=2, batch_first=True, **options)  # type: ignore[arg-type]
        self.h0 = nn.Parameter(torch.randn(2, 1, 6)) if learned else None
        self.c0 = nn.Parameter(torch.randn(2, 1, 6)) if learned else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        if self.h0 is None or self.c0 is None:
            return self.head(self.cells(y)[0])
        h, c = (one.expand(-1, x.shape[0], -1).contiguous() for one in (self.h0, self.c0))
        y, _ = self.cells(y, (h, c) if isinstance(self.cells, nn.LSTM) else h)
        return self.head(y)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(
    ("kind", "options"), [(nn.RNN, {}), (nn.RNN, {"nonlinearity": "relu", "bias": False}), (nn.LSTM, {}), (nn.GRU, {})]
)
def test_recurrent_layers(kind: type[nn.RNNBase], options: dict[str, object], learned: bool) -> None:
    torch.manual_seed(8)
    module = Recurrent(kind, learned, **options)
    _agrees(module, sequence(module, Head("categorical", 4), first=4), first=4)


class Positioned(nn.Module):
    """The ways to add something learned at every position."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.embed, self.table, self.head = nn.Embedding(5, 3), nn.Embedding(8, 3), nn.Linear(3, 4)
        self.rows, self.gain = nn.Parameter(torch.randn(1, 8, 3)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        if self.way == "embedding":
            y = y + self.table(torch.arange(x.size(1), device=x.device))
        elif self.way == "rows":
            _, T = x.shape
            y = y + self.rows[:, :T]
        else:
            y = y * self.gain
        return self.head(y)


@pytest.mark.parametrize("way", ["embedding", "rows", "gain"])
def test_what_is_learned_of_positions(way: str) -> None:
    torch.manual_seed(9)
    module = Positioned(way)
    _agrees(module, sequence(module, Head("categorical", 4), first=4, limit=8), first=4)
    if way != "gain":
        with pytest.raises(LoweringError, match=r"has 8 positions, and the sequence may have 9"):
            sequence(module, Head("categorical", 4), first=4, limit=9)


def test_a_first_position_that_is_given() -> None:
    torch.manual_seed(10)
    module = Positioned("embedding")
    program = sequence(module, Head("categorical", 4), limit=9, given_first=True)
    given = torch.full((4, 9, 1), -1)
    given[:, 0] = 2
    run = Reference(program, torch.float64).start(make(program, 4, seed=1, length=9, given=given), trace=True)
    run.advance()
    assert run.trace is not None
    with torch.no_grad():
        expected = module.double()(run.values[:, :-1, 0].long())
    torch.testing.assert_close(torch.stack([one.params for one in run.trace], 1), expected, rtol=1e-12, atol=1e-12)


class Reversed(nn.Module):
    """Sees the future."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(1)


class Scaled(nn.Module):
    """Uses a parameter outside a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(2, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Conv1d(3, 3, 2), r"^1: Conv1d of kernel size 2 is not causal"),
        (nn.Conv1d(3, 3, 1), r"^1: expected \[B, C, T\], got the other order"),
        (nn.LSTM(3, 3), r"^1: a recurrent layer needs batch_first"),
        (nn.MultiheadAttention(3, 1), r"^1: no lowering is registered for .*MultiheadAttention"),
        (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), r"^1\.1: no lowering is registered for .*BatchNorm1d"),
        (nn.Embedding(3, 3), r"^1: an embedding takes the module's symbols"),
        (nn.LayerNorm((2, 3)), r"^1: LayerNorm over \[2, 3\] of 3 channels"),
        (nn.ELU(alpha=2.0), r"^1: ELU\(alpha=2.0\) is none of the activations"),
        (nn.Linear(3, 4), r"the module itself: it gives 4 numbers per position, and the head .* reads 3"),
        (Reversed(), r"^1: its forward calls flip"),
        (Scaled(), r"^1: its forward uses gain, \[2, 3, 3\], outside a layer"),
    ],
)
def test_refusals_name_the_module_and_the_reason(layer: nn.Module, message: str) -> None:
    with pytest.raises(LoweringError, match=message):
        sequence(nn.Sequential(nn.Embedding(4, 3), layer), Head("categorical", 3), first=3)


def _made(D: int, hidden: list[int], P: int, order: Tensor, direct: bool, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    place = order.argsort()
    degrees = [place, *(torch.randint(0, D, (h,)) for h in hidden)]
    layers = [
        MaskedLinear(len(a), len(b), in_degrees=a, out_degrees=b, strict=k == 0, activation="relu")
        for k, (a, b) in enumerate(itertools.pairwise(degrees))
    ]
    out = place.repeat_interleave(P)
    last = MaskedLinear(hidden[-1], D * P, in_degrees=degrees[-1], out_degrees=out)
    if not direct:
        return nn.Sequential(*layers, last)

    class Direct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.last = nn.Sequential(*layers), last
            self.skip = MaskedLinear(D, D * P, in_degrees=place, out_degrees=out, strict=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.body(x)) + self.skip(x)

    return Direct()


def _parameters_of(module: nn.Module, values: Tensor, order: Tensor, P: int) -> Tensor:
    x = torch.empty(len(values), len(order), dtype=torch.float64)
    x[:, order] = values[..., 0]
    with torch.no_grad():
        return module.double()(x).view(len(values), len(order), P)[:, order]


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("natural", [False, True])
def test_made_in_one_pass(direct: bool, natural: bool) -> None:
    D, P = 7, 3
    order = torch.arange(D) if natural else torch.tensor([3, 0, 6, 2, 5, 1, 4])
    module = _made(D, [20, 15], P, order, direct, seed=4)
    program = dimensions(module, Head("categorical", P), D, order=order)
    run, params = _run(program)
    torch.testing.assert_close(params, _parameters_of(module, run.values, order, P), rtol=1e-12, atol=1e-12)
    # Each weight that the masks let through is multiplied at most once in the whole sample.
    kept = sum(m.weight.numel() for m in module.modules() if isinstance(m, MaskedLinear))
    assert cost(program).multiply_adds * D <= kept


def test_a_residual_made_with_an_arbitrary_mask() -> None:
    # Reachability, not degrees: nobody tells the lowering when a unit is complete.
    torch.manual_seed(5)
    D, H = 5, 12
    degrees = torch.randint(0, D, (H,))
    first = MaskedLinear(D, H, mask=(degrees[:, None] > torch.arange(D)) & (torch.rand(H, D) > 0.3))
    inner = MaskedLinear(H, H, mask=(degrees[:, None] >= degrees) & (torch.rand(H, H) > 0.3))
    last = MaskedLinear(H, D, mask=torch.arange(D)[:, None] >= degrees)

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner, self.last = first, inner, last

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            h = h + self.inner(torch.relu(h)) * 0.5
            return self.last(torch.tanh(h))

    module = Residual()
    program = dimensions(module, Head("bernoulli"), D, scale=2.0, shift=-1.0)
    run, params = _run(program)
    expected = _parameters_of(module, 2 * run.values - 1, torch.arange(D), 1)
    torch.testing.assert_close(params, expected, rtol=1e-12, atol=1e-12)
    assert sum(isinstance(one, SpanLinear) for one in program.code) == 3


def test_chunked_outputs() -> None:
    order = torch.arange(4)
    module = _made(4, [9], 2, order, False, seed=6)
    last = list(module.children())[-1]
    assert isinstance(last, MaskedLinear)
    chunked = torch.arange(8).view(4, 2).T.flatten()
    shuffled = MaskedLinear(9, 8, mask=last.dense_mask()[chunked])
    shuffled.load_state_dict({"weight": last.weight[chunked], "bias": last.bias[chunked]})  # type: ignore[index]
    module_chunked = nn.Sequential(*list(module.children())[:-1], shuffled)
    head = Head("normal")
    one = _run(dimensions(module, head, 4))[1]
    other = _run(dimensions(module_chunked, head, 4, feature_major=False))[1]
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_network_that_looks_ahead_is_refused() -> None:
    ahead = MaskedLinear(4, 4, mask=torch.ones(4, 4, dtype=torch.bool).tril())
    with pytest.raises(LoweringError, match=r"output 0, drawn at position 0, depends on position 0"):
        dimensions(nn.Sequential(ahead), Head("bernoulli"), 4)
    with pytest.raises(LoweringError, match=r"no lowering over dimensions for .*LayerNorm"):
        dimensions(nn.Sequential(MaskedLinear(4, 4), nn.LayerNorm(4)), Head("bernoulli"), 4)
    with pytest.raises(ValueError, match="order: expected a permutation"):
        dimensions(nn.Sequential(ahead), Head("bernoulli"), 4, order=torch.tensor([0, 1, 1, 2]))
    with pytest.raises(LoweringError, match=r"gives 4 numbers, and the head .* reads 4 x 2"):
        dimensions(nn.Sequential(ahead), Head("normal"), 4)
