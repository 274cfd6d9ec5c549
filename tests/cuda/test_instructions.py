"""Each command of the kernels at random sizes on the host twin, against the reference executor in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastar.sampling.cuda import Cuda
from fastar.sampling.index import variable
from fastar.sampling.instructions import (
    ACTIVATIONS,
    CELLS,
    GATES,
    UNARY,
    Accumulate,
    Attention,
    Cell,
    Elementwise,
    Gate,
    Gather,
    Instruction,
    Linear,
    Norm,
    Readout,
    SpanLinear,
    Store,
    TappedLinear,
)
from fastar.sampling.program import Program
from fastar.sampling.reference import Reference
from fastar.sampling.request import make
from tests.budget import assert_within_budget
from tests.sampling.test_cpu_instructions import Trial

# Tiles of 8 and 16 outputs and steps of 16 inputs, whole and broken; and inputs that are summed in parts.
WIDTHS = (1, 7, 15, 16, 33, 64, 100, 130)
PLANS: dict[str, dict[str, Any]] = {
    "row": {"schedule": "row", "rows": 16},
    "rows of four": {"schedule": "row", "rows": 64},
    "cluster": {"schedule": "cluster", "blocks": 2, "rows": 16},
    "grid": {"schedule": "grid", "blocks": 3, "rows": 5},
}
PLAN = pytest.mark.parametrize("plan", PLANS)


def _check(twin: Any, program: Program, plan: str, n: int = 5) -> None:
    request = make(program, n, seed=5)
    runs = [Reference(program, torch.float64).start(request), Reference(program, torch.float32).start(request)]
    for run in runs:
        run.advance()
    exact, same = (run.state_dict()["buffers"] for run in runs)
    twin.configure(n)
    fast = Cuda(program, library=twin, **PLANS[plan]).start(request)
    fast.advance()
    assert torch.equal(fast.values, runs[0].values)
    buffers = fast.state_dict()["buffers"]
    for one in program.buffers:
        if one.kind == "state":
            # Sums of products: their terms may be larger than what they come to.
            scale = exact[one.name].abs().max().clamp(min=4.0)
            assert_within_budget(buffers[one.name], same[one.name], exact[one.name], scale=scale, what=one.name)


@PLAN
@pytest.mark.parametrize("seed", range(4))
def test_linear(twin: Any, seed: int, plan: str) -> None:
    trial = Trial(seed + 10)
    M, N = trial.pick(*WIDTHS), trial.pick(*WIDTHS, 300)
    x, y = trial.state(N).at(), trial.state(M).at()
    add = trial.state(M).at() if seed % 3 == 0 else y if seed % 3 == 1 else None
    activation = ACTIVATIONS[seed % len(ACTIVATIONS)]
    w, b = (trial.weight(3, M, N), trial.weight(3, M)) if seed % 2 else (trial.weight(M, N), trial.weight(M))
    bank = {"bank": lambda t: 2 - t} if seed % 2 else {}
    program = trial.program(
        lambda t: [Linear(y, x, w, b, add, activation, **{name: at(t) for name, at in bank.items()})]
    )
    _check(twin, program, plan)


@PLAN
def test_tapped_linear(twin: Any, plan: str) -> None:
    trial = Trial(1)
    ring, cache = trial.state(4, 20, ring=True), trial.state(3, 4, 48)
    fresh, y, z = trial.state(20).at(), trial.state(33).at(), trial.state(40).at()
    taps = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 0))
    names = trial.weight(33, 3, 20), trial.weight(33), trial.weight(40, 5, 48), trial.weight(40)
    program = trial.program(
        lambda t: [
            Elementwise(ring.at(t), "tanh", fresh),
            TappedLinear(y, ring.at(t), ((-3,), (-1,), (0,)), names[0], names[1], activation="tanh"),
            TappedLinear(z, cache.at(t, t), taps, names[2], names[3]),
        ]
    )
    _check(twin, program, plan)


@PLAN
@pytest.mark.parametrize("outputs", [1, 6, 80])
def test_span_linear_readout_and_accumulate(twin: Any, outputs: int, plan: str) -> None:
    trial = Trial(outputs)
    M, N = trial.pick(7, 20, 64), trial.pick(*WIDTHS)
    x, y, h, out = (trial.state(n).at() for n in (N, M, N, outputs))
    cuts = sorted([0, M, *torch.randint(M + 1, (2,), generator=trial.generator).tolist()])
    spans, reach = trial.b.table("spans", cuts), trial.b.table("reach", [0, N // 2, N])
    w, b, table = trial.weight(M, N), trial.weight(M), trial.weight(3, N)
    v, c = trial.weight(3, outputs, N), trial.weight(3, outputs)
    program = trial.program(
        lambda t: [
            SpanLinear(y, x, w, spans, t, b, reach, activation="elu"),
            Elementwise(y, "add", y, y, alpha=0.5, spans=spans, index=t),
            Accumulate(h, table, row=t - 1, position=t - 1, scale=0.5, shift=-0.2),
            Readout(out, h, v, row=t, bias=c, activation="sigmoid"),
        ]
    )
    _check(twin, program, plan)


@PLAN
def test_pointwise_and_norms(twin: Any, plan: str) -> None:
    trial = Trial(37)
    width = 37
    a, b = trial.state(width, scale=3.0).at(), trial.state(width, scale=3.0).at()
    steps: list[Instruction] = [Gate(trial.state(width).at(), function, a, b) for function in GATES]
    for function in (*UNARY, "add", "mul"):
        y = trial.state(width * (2 if function == "concat_elu" else 1)).at()
        binary = function in ("add", "mul")
        alpha, beta = (-1.0, 1.5) if function == "clamp" else (0.75, 0.25)
        source = a
        if function == "log":
            source = trial.state(width).at()
            steps.append(Elementwise(source, "exp", a))
        steps.append(Elementwise(y, function, source, b if binary else None, alpha, 0.0 if binary else beta))
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
    _check(twin, trial.program(lambda t: steps), plan)


@PLAN
@pytest.mark.parametrize("seen", [(None, None), (2, None), (None, (1, 0, 2))], ids=str)
def test_attention_gather_and_store(twin: Any, seen: tuple[int | None, tuple[int, int, int] | None], plan: str) -> None:
    trial = Trial(3)
    attentions: list[Instruction] = []
    for heads, kv_heads, d, e in ((1, 1, 5, 3), (4, 2, 16, 24), (2, 1, 20, 70)):
        q, y = trial.state(heads * d).at(), trial.state(heads * e).at()
        keys, values = (trial.state(3, kv_heads * size).buffer.name for size in (d, e))
        attentions.append(Attention(y, q, keys, values, variable("t"), heads, kv_heads, d**-0.5, *seen))
    table, embedding, value = trial.weight(8, 40), trial.state(40).at(), trial.state(1).at()
    program = trial.program(
        lambda t: [
            *attentions,
            Store(value, t - 1, scale=2.0, shift=1.0, first=-3.0),
            Gather(embedding, table, t - 1, first=7, add=embedding),
        ]
    )
    _check(twin, program, plan)
