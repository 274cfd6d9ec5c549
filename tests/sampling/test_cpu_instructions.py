"""Each instruction of the cpu executor at random sizes, against the reference executor in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from fastar import native
from fastar.sampling.builder import Builder, Handle
from fastar.sampling.cpu import Cpu
from fastar.sampling.index import Index, variable
from fastar.sampling.instructions import (
    ACTIVATIONS,
    CELLS,
    GATES,
    UNARY,
    Accumulate,
    Attention,
    Cell,
    Draw,
    Elementwise,
    Gate,
    Gather,
    Head,
    Instruction,
    Linear,
    Norm,
    Readout,
    SpanLinear,
    Store,
    TappedLinear,
)
from fastar.sampling.program import Program, Value
from fastar.sampling.reference import Reference
from fastar.sampling.request import make
from tests.budget import assert_within_budget

pytestmark = pytest.mark.skipif(native.why_missing() is not None, reason=str(native.why_missing()))

LEVELS = native.core().levels_usable() if native.why_missing() is None else []
WIDTHS = (1, 7, 16, 33, 63, 64, 65, 100, 144, 200)


class Trial:
    """A program of three positions whose only work is one instruction over random states."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.b = Builder("trial", Value("int", 1, 5), 3)
        self.count = 0

    def pick(self, *choices: int) -> int:
        return choices[int(torch.randint(len(choices), (), generator=self.generator))]

    def tensor(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=self.generator) * scale

    def weight(self, *shape: int) -> str:
        self.count += 1
        return self.b.weight(f"w{self.count}", self.tensor(*shape, scale=(2.0 / shape[-1]) ** 0.5))

    def state(self, *shape: int, ring: bool = False, scale: float = 1.5) -> Handle:
        self.count += 1
        init = self.b.weight(f"init{self.count}", self.tensor(*shape, scale=scale))
        return self.b.state(f"s{self.count}", *shape, ring=ring, init=init)

    def program(self, build: Callable[[Index], list[Instruction]]) -> Program:
        """The steps that `build` gives for a position, then a draw."""
        logit = self.b.weight("logits", torch.zeros(5))
        law = self.b.state("law", 5, init=logit).at()
        with self.b.loop("t", 3) as t:
            self.b.add(*build(t), Draw(Head("categorical", 5), t, law))
        return self.b.build()


def _check(program: Program, precision: str = "float32", n: int = 4) -> None:
    request = make(program, n, seed=5)
    runs = [Reference(program, torch.float64).start(request), Reference(program, torch.float32).start(request)]
    for run in runs:
        run.advance()
    exact, same = (run.state_dict()["buffers"] for run in runs)
    for threads, sharing in ((1, "rows"), (3, "steps")):
        fast = Cpu(program, precision, threads=threads, rows=n, sharing=sharing).start(request)
        fast.advance()
        assert torch.equal(fast.values, runs[0].values)
        buffers = fast.state_dict()["buffers"]
        for one in program.buffers:
            if one.kind == "state":
                # Sums of products: their terms may be larger than what they come to.
                scale = exact[one.name].abs().max().clamp(min=4.0)
                assert_within_budget(buffers[one.name], same[one.name], exact[one.name], scale=scale, what=one.name)


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test at each vector level that this machine has."""
    before = native.core().level()
    native.core().select_level(request.param)
    yield request.param
    native.core().select_level(before)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("seed", range(12))
def test_linear(seed: int) -> None:
    trial = Trial(seed)
    M, N, banks = trial.pick(*WIDTHS), trial.pick(*WIDTHS), 3
    x, y = trial.state(N).at(), trial.state(M).at()
    add = trial.state(M).at() if seed % 3 == 0 else y if seed % 3 == 1 else None
    bias, activation = trial.pick(0, 1), ACTIVATIONS[seed % len(ACTIVATIONS)]
    if seed % 2:
        w, b = trial.weight(banks, M, N), trial.weight(banks, M)
        _check(trial.program(lambda t: [Linear(y, x, w, b if bias else None, add, activation, bank=2 - t)]))
    else:
        w, b = trial.weight(M, N), trial.weight(M)
        _check(trial.program(lambda t: [Linear(y, x, w, b if bias else None, add, activation)]))


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("seed", range(10))
def test_tapped_linear(seed: int) -> None:
    trial = Trial(seed)
    M, N = trial.pick(*WIDTHS), trial.pick(5, 16, 32, 48, 64)
    y = trial.state(M).at()
    if seed % 2:
        ring = trial.state(4, N, ring=True)
        taps: tuple[tuple[int, ...], ...] = ((-3,), (-1,), (0,))
        source, fresh = ring.at, trial.state(N).at()
        w, b = trial.weight(M, 3, N), trial.weight(M)
        _check(
            trial.program(
                lambda t: [
                    Elementwise(source(t), "tanh", fresh),
                    TappedLinear(y, source(t), taps, w, b, activation="tanh"),
                ]
            )
        )
    else:
        cache = trial.state(3, 4, N)
        taps = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 0))
        w, b = trial.weight(M, 5, N), trial.weight(M)
        _check(trial.program(lambda t: [TappedLinear(y, cache.at(t, t), taps, w, b)]))


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("seed", range(6))
def test_span_linear_readout_and_accumulate(seed: int) -> None:
    trial = Trial(seed)
    M, N = trial.pick(7, 20, 64, 130), trial.pick(*WIDTHS)
    x, y, h = trial.state(N).at(), trial.state(M).at(), trial.state(N).at()
    out = trial.state(trial.pick(1, 6, 80)).at()
    cuts = sorted([0, M, *torch.randint(M + 1, (2,), generator=trial.generator).tolist()])
    spans, reach = trial.b.table("spans", cuts), trial.b.table("reach", [0, N // 2, N])
    w, b, table = trial.weight(M, N), trial.weight(M), trial.weight(3, N)
    v, c = trial.weight(3, out.width, N), trial.weight(3, out.width)
    _check(
        trial.program(
            lambda t: [
                SpanLinear(y, x, w, spans, t, b, reach, activation="elu"),
                Elementwise(y, "add", y, y, alpha=0.5, spans=spans, index=t),
                Accumulate(h, table, row=t - 1, position=t - 1, scale=0.5, shift=-0.2),
                Readout(out, h, v, row=t, bias=c, activation=ACTIVATIONS[seed]),
            ]
        )
    )


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("function", [*UNARY, "add", "mul"])
def test_elementwise(function: str) -> None:
    trial = Trial(len(function))
    steps: list[Instruction] = []
    for width in (1, 16, 37, 150):
        a, b = trial.state(width, scale=4.0).at(), trial.state(width).at()
        y = trial.state(width * (2 if function == "concat_elu" else 1)).at()
        binary = function in ("add", "mul")
        alpha, beta = (-1.0, 1.5) if function == "clamp" else (0.75, 0.25)
        source = a
        if function == "log":
            source = trial.state(width).at()
            steps.append(Elementwise(source, "exp", a))
        steps.append(Elementwise(y, function, source, b if binary else None, alpha, 0.0 if binary else beta))
    _check(trial.program(lambda t: steps))


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("width", [1, 20, 64, 90])
def test_gates_norms_and_cells(width: int) -> None:
    trial = Trial(width)
    a, b = trial.state(width, scale=3.0).at(), trial.state(width, scale=3.0).at()
    steps: list[Instruction] = [Gate(trial.state(width).at(), function, a, b) for function in GATES]
    for kind in ("layer", "rms"):
        scale, shift = (trial.weight(width), trial.weight(width)) if kind == "layer" else (None, None)
        steps.append(Norm(trial.state(width).at(), a, kind, scale, shift, eps=1e-3))
    for kind in CELLS:
        gates = {"tanh": 1, "gru": 3, "lstm": 4}[kind] * width
        g, k = trial.state(gates).at(), trial.state(gates).at()
        h, c = trial.state(width).at(), trial.state(width).at()
        lstm = kind == "lstm"
        steps.append(
            Cell(kind, h, g, k, h if kind == "gru" else None, c if lstm else None, cell_out=c if lstm else None)
        )
    _check(trial.program(lambda t: steps))


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("seen", [(None, None), (2, None), (None, (1, 0, 2))], ids=str)
def test_attention_gather_and_store(seen: tuple[int | None, tuple[int, int, int] | None]) -> None:
    trial = Trial(3)
    attentions: list[Attention] = []
    newest = variable("t")
    for heads, kv_heads, d, e in ((1, 1, 5, 3), (4, 2, 16, 24), (6, 1, 20, 70)):
        q, y = trial.state(heads * d).at(), trial.state(heads * e).at()
        keys, values = (trial.state(3, kv_heads * size).buffer.name for size in (d, e))
        attentions.append(Attention(y, q, keys, values, newest, heads, kv_heads, d**-0.5, *seen))
    table, embedding, value = trial.weight(8, 40), trial.state(40).at(), trial.state(1).at()

    def build(t: Index) -> list[Instruction]:
        store = Store(value, t - 1, scale=2.0, shift=1.0, first=-3.0)
        return [*attentions, store, Gather(embedding, table, t - 1, first=7, add=embedding)]

    _check(trial.program(build))


def test_numbers_at_the_ends_of_the_range() -> None:
    trial = Trial(0)
    edge = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 88.0, -88.0, 1e4, -1e4, 3e38, -3e38, 0.6249, 0.6251, 87.5, -87.4])
    x = trial.b.state("x", len(edge), init=trial.b.weight("edge", edge)).at()
    names = [one for one in UNARY if one not in ("clamp", "concat_elu", "exp")]
    outs = {name: trial.state(len(edge)).at() for name in names}
    program = trial.program(lambda t: [Elementwise(outs[name], name, x) for name in names])
    request = make(program, 1, seed=0)
    fast, exact = Cpu(program).start(request), Reference(program, torch.float64).start(request)
    fast.advance()
    exact.advance()
    for name in names:
        ours, theirs = (run.state_dict()["buffers"][outs[name].buffer].double() for run in (fast, exact))
        torch.testing.assert_close(
            ours, theirs, rtol=1e-6, atol=1e-34, equal_nan=True, msg=lambda m, name=name: f"{name}: {m}"
        )
