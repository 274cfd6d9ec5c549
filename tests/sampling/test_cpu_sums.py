"""Sums of several linears, which the cpu executor turns into fewer products, against the reference executor."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fastar import native
from fastar.sampling.builder import Builder
from fastar.sampling.cpu import Cpu
from fastar.sampling.instructions import Draw, Elementwise, Gather, Head, Linear
from fastar.sampling.program import Program, Value
from fastar.sampling.reference import Reference
from fastar.sampling.request import make
from tests.budget import assert_within_budget

pytestmark = pytest.mark.skipif(native.why_missing() is not None, reason=str(native.why_missing()))

SYMBOLS, WIDTH, T = 70, 80, 6
SOURCES = (64, 16, 48, 112, 32, 96)


def sums(kind: str) -> Program:
    """y = x + sum_i W_i tanh(V_i x), a linear at a time.

    `seen`: a sum on the way has another reader. `changed`: what the first adds is written anew before the last.
    `uneven`: a source that fills no whole block of inputs.
    """
    generator = torch.Generator().manual_seed(5)
    widths = (*SOURCES[:2], 20, *SOURCES[3:]) if kind == "uneven" else SOURCES
    b = Builder("sums", Value("int", 1, SYMBOLS), T)

    def weight(name: str, *shape: int) -> None:
        b.weight(name, torch.randn(shape, generator=generator) * (3.0 / shape[-1] ** 0.5))

    weight("embed", SYMBOLS + 1, WIDTH)
    weight("head", SYMBOLS, WIDTH)
    x, other, logits = b.scratch("x", WIDTH).at(), b.scratch("other", WIDTH).at(), b.scratch("logits", SYMBOLS).at()
    start = b.state("start", WIDTH).at()
    y = [b.scratch(f"y{i}", WIDTH).at() for i in range(len(widths))]
    with b.loop("t", T) as t:
        b.add(Gather(x, "embed", position=t - 1, first=SYMBOLS), Elementwise(start, "none", x))
        b.add(Elementwise(other, "none", x, alpha=0.0))
        for i, width in enumerate(widths):
            h = b.scratch(f"h{i}", width).at()
            weight(f"{i}.in", width, WIDTH)
            weight(f"{i}.out", WIDTH, width)
            weight(f"{i}.bias", WIDTH)
            last = i + 1 == len(widths)
            b.add(
                Linear(h, x, f"{i}.in", activation="tanh"),
                Linear(
                    y[i],
                    h,
                    f"{i}.out",
                    f"{i}.bias" if i % 2 else None,
                    y[i - 1] if i else start,
                    activation="relu" if last else "none",
                ),
            )
            if kind == "seen" and i == 1:
                b.add(Elementwise(other, "none", y[i], alpha=0.5))
            if kind == "changed" and i == 0:
                b.add(Elementwise(start, "none", x, alpha=-1.0))
        b.add(Elementwise(y[-1], "add", y[-1], other), Linear(logits, y[-1], "head"))
        b.add(Draw(Head("categorical", SYMBOLS), t, logits))
    return b.build()


@pytest.mark.parametrize("kind", ["plain", "seen", "changed", "uneven"])
def test_a_sum_of_linears_is_what_the_reference_computes(kind: str) -> None:
    program = sums(kind)
    request = make(program, 3, seed=1)
    run = Cpu(program, threads=1).start(request)
    run.advance()
    forced = dataclasses.replace(request, given=run.values)
    exact, same = (Reference(program, dtype).start(forced) for dtype in (torch.float64, torch.float32))
    exact.advance()
    same.advance()
    scale = torch.full_like(exact.log_prob, 4.0 * T)
    assert_within_budget(
        run.log_prob.float(), same.log_prob.float(), exact.log_prob, scale=scale, what=f"log_prob, {kind}"
    )


@pytest.mark.parametrize("kind", ["plain", "seen", "changed", "uneven"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_a_sum_of_linears_hangs_on_no_split(kind: str, precision: str) -> None:
    program = sums(kind)
    request = make(program, 3, seed=1)
    runs = [
        Cpu(program, precision, threads, rows, sharing).start(request)
        for threads, rows, sharing in ((1, 3, "auto"), (2, 1, "steps"), (2, 3, "rows"), (3, 3, "steps"))
    ]
    for run in runs:
        run.advance()
    for run in runs[1:]:
        assert torch.equal(run.values, runs[0].values)
        assert torch.equal(run.log_prob, runs[0].log_prob)
