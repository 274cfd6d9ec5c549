"""What a program costs: memory per row, weights, and multiply-adds and weight bytes read per position."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastar.sampling.instructions import (
    Accumulate,
    Attention,
    End,
    Instruction,
    Linear,
    Loop,
    Readout,
    SpanLinear,
    TappedLinear,
    When,
)
from fastar.sampling.program import Program


@dataclass(frozen=True)
class Cost:
    """Bytes of the weights as they stand and of one row's buffers (4 per number), and work per position.

    `multiply_adds` and `weights_read` are means over the positions; attention counts at half of its cache.
    """

    weight_bytes: int
    row_bytes: int
    multiply_adds: float
    weights_read: float
    instructions: float


def cost(program: Program, length: int | None = None) -> Cost:
    """The cost of a program; an open one is counted at `length` positions where attention needs it."""
    T = program.positions or length or program.limit or 1
    factors = [1.0]
    work = read = count = 0.0
    for step in program.code:
        if isinstance(step, Loop):
            factors.append(factors[-1] * (T if step.count is None else step.count))
        elif isinstance(step, When):
            factors.append(factors[-1] * _share(step, program, T))
        elif isinstance(step, End):
            factors.pop()
        else:
            numbers, products = _products(step, program)
            work, read, count = work + factors[-1] * products, read + factors[-1] * numbers, count + factors[-1]
    row = sum(4 * math.prod(max(n, T) if n == 0 else n for n in one.shape) for one in program.buffers)
    weight_bytes = sum(t.numel() * t.element_size() for t in program.weights.values())
    return Cost(weight_bytes, row + 8 * T * program.value.channels, work / T, read / T, count / T)


def _share(step: When, program: Program, T: int) -> float:
    # Of the passes of the loop whose bare variable a `when` tests; anything else counts in full.
    if len(step.index.terms) != 1 or step.index.terms[0][1] != 1 or step.index.divisor != 1:
        return 1.0
    counts = {one.var: one.count or T for one in program.code if isinstance(one, Loop)}
    n = counts[step.index.terms[0][0]]
    return sum(step.holds(i + step.index.const) for i in range(n)) / n


def _products(step: Instruction, program: Program) -> tuple[float, float]:
    # Numbers of weights read, and multiply-adds.
    if isinstance(step, Linear | Readout):
        n = float(step.out.width * step.source.width)
        return n, n
    if isinstance(step, TappedLinear):
        n = float(step.out.width * step.source.width * len(step.taps))
        return n, n
    if isinstance(step, SpanLinear):
        spans = program.weights[step.spans].tolist()
        reach = [step.source.width] * (len(spans) - 1) if step.reach is None else program.weights[step.reach].tolist()
        n = sum((b - a) * r for a, b, r in zip(spans, spans[1:], reach, strict=False)) / (len(spans) - 1)
        return n, n
    if isinstance(step, Accumulate):
        return float(step.out.width), float(step.out.width)
    if isinstance(step, Attention):
        slots = program.buffer(step.keys).shape[0]
        seen = min(step.window or slots, slots) / 2
        if step.local is not None:
            rows, columns, width = step.local
            seen = min(seen, (rows + 0.5) * min(2 * columns + 1, width))
        return 0.0, (step.query.width + step.out.width) * seen
    return 0.0, 0.0
