"""What each instruction asks of its operands: part of the validity rules of docs/step-programs.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastar.reference.attention import furthest
from fastar.sampling.index import Index, Ref
from fastar.sampling.instructions import (
    ACTIVATIONS,
    BINARY,
    CELLS,
    GATES,
    HEADS,
    NORMS,
    UNARY,
    Accumulate,
    Attention,
    Cell,
    Draw,
    Elementwise,
    Emit,
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
from fastar.sampling.program import Program


class Scope:
    """A program, the entry that is being checked, and the ranges of the loop variables around it."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.buffers = {one.name: one for one in program.buffers}
        self.ranges: dict[str, tuple[float, float]] = {}
        self.place = "program"

    def require(self, fine: bool, reason: str) -> None:
        if not fine:
            raise ValueError(f"{self.place}: {reason}")

    def weight(self, argument: str, name: str, shape: Sequence[int | None], integer: bool = False) -> Tensor:
        if name not in self.program.weights:
            raise ValueError(f"{self.place}: {argument}: no weight is named {name!r}")
        t = self.program.weights[name]
        fits = t.dim() == len(shape) and all(want in (None, have) for have, want in zip(t.shape, shape, strict=True))
        wanted = ["any" if want is None else want for want in shape]
        self.require(fits, f"{argument}: expected {name} of shape {wanted}, got {list(t.shape)}")
        self.require((t.dtype == torch.int32) == integer, f"{argument}: {name} is {t.dtype}")
        return t

    def bounds(self, name: str, one: Index) -> tuple[float, float]:
        for var, _ in one.terms:
            self.require(var in self.ranges, f"{name}: variable {var} is not in scope")
        self.require(one.divisor > 0, f"{name}: expected a positive divisor")
        return one.bounds(self.ranges)

    def inside(self, name: str, one: Index, size: int) -> None:
        low, high = self.bounds(name, one)
        self.require(low >= 0 and high < size, f"{name}: {one} runs from {low} to {high}, beyond 0..{size - 1}")

    def ref(self, name: str, ref: Ref, tapped: bool = False) -> None:
        if ref.buffer not in self.buffers:
            raise ValueError(f"{self.place}: {name}: no buffer is named {ref.buffer!r}")
        buffer = self.buffers[ref.buffer]
        self.require(len(ref.at) == len(buffer.shape) - 1, f"{name}: {ref} needs {len(buffer.shape) - 1} coordinates")
        for axis, (one, size) in enumerate(zip(ref.at, buffer.shape, strict=False)):
            low, _ = self.bounds(name, one)
            if not tapped and axis == 0 and (buffer.ring or (size == 0 and self.program.positions is None)):
                self.require(low >= 0, f"{name}: coordinate {one} falls to {low}")
            elif not tapped:
                self.inside(f"{name} coordinate {axis}", one, size)
        self.require(ref.width > 0, f"{name}: expected a positive width, got {ref.width}")
        self.inside(f"{name} channels", ref.offset, buffer.width - ref.width + 1)

    def same_width(self, step: Instruction, *names: str) -> None:
        given = [(name, ref.width) for name, ref in step.refs() if name in names]
        self.require(len({width for _, width in given}) <= 1, f"widths differ: {given}")


class Operands(Scope):
    """One check per instruction, named as its op."""

    def matrix(self, step: Linear | TappedLinear, columns: Sequence[int | None]) -> None:
        self.one_of("activation", step.activation, ACTIVATIONS)
        front: list[int | None] = [] if step.bank is None else [None]
        weight = self.weight("weight", step.weight, [*front, step.out.width, *columns])
        if step.bank is not None:
            front = [weight.shape[0]]
            self.inside("bank", step.bank, weight.shape[0])
        if step.bias is not None:
            self.weight("bias", step.bias, [*front, step.out.width])
        self.same_width(step, "out", "add")

    def one_of(self, name: str, value: str, allowed: Sequence[str]) -> None:
        self.require(value in allowed, f"{name}: expected one of {', '.join(allowed)}, got {value!r}")

    def linear(self, step: Linear) -> None:
        self.matrix(step, [step.source.width])

    def tapped_linear(self, step: TappedLinear) -> None:
        fine = bool(step.taps) and all(len(tap) == len(step.source.at) and tap for tap in step.taps)
        self.require(fine, f"taps: expected one offset per coordinate of {step.source}, got {step.taps}")
        self.matrix(step, [len(step.taps), step.source.width])

    def spans(self, spans: str, index: Index | None, rows: int) -> int:
        if index is None:
            raise ValueError(f"{self.place}: spans need an index")
        t = self.weight("spans", spans, [None], integer=True)
        steps = t.numel() - 1
        rising = steps > 0 and bool((t[1:] >= t[:-1]).all()) and int(t[0]) >= 0 and int(t[-1]) <= rows
        self.require(rising, f"spans: expected {spans} to rise from 0 or more to at most {rows}")
        self.inside("index", index, steps)
        return steps

    def span_linear(self, step: SpanLinear) -> None:
        self.one_of("activation", step.activation, ACTIVATIONS)
        steps = self.spans(step.spans, step.index, step.out.width)
        self.require(self.buffers[step.out.buffer].kind == "state", "out: expected a state, of which the rest stays")
        self.weight("weight", step.weight, [step.out.width, step.source.width])
        if step.bias is not None:
            self.weight("bias", step.bias, [step.out.width])
        if step.reach is not None:
            reach = self.weight("reach", step.reach, [steps], integer=True)
            fine = int(reach.min()) >= 0 and int(reach.max()) <= step.source.width
            self.require(fine, f"reach: expected 0..{step.source.width} in {step.reach}")
        self.same_width(step, "out", "add")

    def channel(self, channel: int) -> None:
        self.require(0 <= channel < self.program.value.channels, f"channel: {channel} of {self.program.value.channels}")

    def gather(self, step: Gather) -> None:
        self.channel(step.channel)
        rows = self.weight("table", step.table, [None, step.out.width]).shape[0]
        self.same_width(step, "out", "add")
        symbols = 1
        if step.position is not None:
            self.bounds("position", step.position)
            self.require(self.program.value.dtype == "int", "position: a symbol needs values of dtype int")
            symbols = self.program.value.levels or 0
        else:
            self.require(step.first is None, "first: needs a position")
        if step.first is not None:
            self.require(step.first >= 0, f"first: expected 0 or more, got {step.first}")
            self.inside("base + first", step.base + step.first, rows)
        self.inside("base", step.base, rows - symbols + 1)

    def accumulate(self, step: Accumulate) -> None:
        self.channel(step.channel)
        rows = self.weight("table", step.table, [None, step.out.width]).shape[0]
        self.bounds("position", step.position)
        # Before the first position nothing is read, so the row may fall outside together with the position.
        same = step.row.terms == step.position.terms and step.row.divisor == step.position.divisor == 1
        low, high = self.bounds("row", step.row)
        if same and self.bounds("position", step.position)[0] < 0:
            low = max(low, step.row.const - step.position.const)
        self.require(low >= 0 and high < rows, f"row: {step.row} runs from {low} to {high}, beyond 0..{rows - 1}")

    def readout(self, step: Readout) -> None:
        self.one_of("activation", step.activation, ACTIVATIONS)
        rows = self.weight("weight", step.weight, [None, step.out.width, step.source.width]).shape[0]
        self.inside("row", step.row, rows)
        if step.bias is not None:
            self.weight("bias", step.bias, [rows, step.out.width])

    def gate(self, step: Gate) -> None:
        self.one_of("function", step.function, GATES)
        self.same_width(step, "out", "a", "b")

    def elementwise(self, step: Elementwise) -> None:
        self.one_of("function", step.function, (*UNARY, *BINARY))
        self.require(
            (step.b is not None) == (step.function in BINARY), f"b: {step.function} takes {1 + (step.b is None)}"
        )
        double = step.function == "concat_elu"
        self.require(step.out.width == step.a.width * (2 if double else 1), f"width of out: {step.out.width}")
        self.same_width(step, "a", "b")
        if step.spans is not None:
            self.require(not double, "spans: not with concat_elu")
            self.spans(step.spans, step.index, step.out.width)
            self.require(
                self.buffers[step.out.buffer].kind == "state", "out: expected a state, of which the rest stays"
            )

    def norm(self, step: Norm) -> None:
        self.one_of("kind", step.kind, NORMS)
        self.require(step.eps >= 0, f"eps: expected 0 or more, got {step.eps}")
        self.same_width(step, "out", "source")
        for name, weight in (("weight", step.weight), ("bias", step.bias)):
            if weight is not None:
                self.weight(name, weight, [step.out.width])

    def attention(self, step: Attention) -> None:
        fine = step.heads > 0 and step.kv_heads > 0 and step.heads % step.kv_heads == 0
        self.require(fine, f"heads: {step.heads} is no multiple of kv_heads, {step.kv_heads}")
        self.require(step.window is None or step.window > 0, "window: expected a positive integer")
        if step.local is not None:
            fine = len(step.local) == 3 and min(step.local[:2]) >= 0 and step.local[2] > 0
            self.require(fine, f"local: expected rows, columns and a positive width, got {list(step.local)}")
            self.require(step.window is None, "local: has a window beside it")
        for name, whole, width in (("keys", step.keys, step.query.width), ("values", step.values, step.out.width)):
            if whole not in self.buffers:
                raise ValueError(f"{self.place}: {name}: no buffer is named {whole!r}")
            one = self.buffers[whole]
            self.require(len(one.shape) == 2, f"{name}: {whole} is not [slots, channels]")
            fine = width % step.heads == 0 and one.width == width // step.heads * step.kv_heads
            self.require(fine, f"{name}: {one.width} channels do not fit {width} in {step.heads} heads")
            self.require(whole != step.out.buffer, f"{name}: is also written")
            if one.ring:
                fine = furthest(step.window, step.local) < one.shape[0]
                field = "window" if step.local is None else "local"
                self.require(fine, f"{field}: expected to see at most the ring's {one.shape[0]} slots")
                self.require(self.bounds("newest", step.newest)[0] >= 0, "newest: falls below 0")
            else:
                self.inside("newest", step.newest, one.shape[0])

    def cell(self, step: Cell) -> None:
        self.one_of("kind", step.kind, CELLS)
        gates = {"tanh": 1, "gru": 3, "lstm": 4}[step.kind] * step.out.width
        self.require(step.input_gates.width == gates, f"input_gates: expected width {gates}")
        self.same_width(step, "input_gates", "hidden_gates")
        self.same_width(step, "out", "hidden", "cell", "cell_out")
        fits = (step.cell is not None) == (step.cell_out is not None) == (step.kind == "lstm")
        self.require(fits, "cell and cell_out: both for an lstm, else neither")
        gru = step.kind == "gru"
        self.require((step.hidden is not None) == gru, "hidden: for a gru, and only there")
        self.require(not gru or step.hidden_gates is not None, "hidden_gates: a gru needs them")

    def draw(self, step: Draw) -> None:
        self.bounds("position", step.position)
        self.head(step.head)
        if step.head.kind == "given":
            self.require(step.params is None and step.out is None, "params and out: the head given has none")
        else:
            have = None if step.params is None else step.params.width
            self.require(have == step.head.params, f"params: expected width {step.head.params}, got {have}")
        if step.out is not None:
            self.require(step.out.width == step.head.channels == 1, "out: expected width 1")

    def head(self, head: Head) -> None:
        self.one_of("head", head.kind, HEADS)
        for name, size in (("components", head.components), ("channels", head.channels)):
            self.require(is_int(size) and size > 0, f"head.{name}: expected a positive integer, got {size}")
        for name, number in (("low", head.low), ("high", head.high), ("min_log_scale", head.min_log_scale)):
            fine = number is None or (isinstance(number, int | float) and math.isfinite(number))
            self.require(fine, f"head.{name}: expected a finite number, got {number}")
        self.require(isinstance(head.branch, int | float) and 0 <= head.branch < 1, "head.branch: expected 0 to 1")
        ends = (head.low is None) == (head.high is None)
        self.require(ends and (head.low is None or head.low < (head.high or 0.0)), "head: low and high, low < high")
        self.require(head.kind == "logistic" or head.channels == 1, "head.channels: only a logistic has several")
        if head.kind in ("normal", "gaussian", "laplace"):
            self.require(head.levels is None, f"head.levels: {head.kind} is continuous")
        if head.kind == "categorical":
            self.require(is_int(head.levels) and (head.levels or 0) > 0, "head.levels: expected a positive integer")
        if head.kind == "logistic" and head.levels is not None:
            fine = is_int(head.levels) and head.levels > 1 and head.low is not None
            self.require(fine, "head.levels: a discretised logistic has 2 or more, and low and high")

    def store(self, step: Store) -> None:
        self.bounds("position", step.position)
        self.require(
            step.out.width == self.program.value.channels, f"out: width {self.program.value.channels} expected"
        )

    def emit(self, step: Emit) -> None:
        self.bounds("position", step.position)
        self.require(self.program.value.dtype == "float", "values of dtype int are drawn, not computed")
        fine = step.source.width == self.program.value.channels
        self.require(fine, f"source: width {self.program.value.channels} expected")
        self.require(step.log_prob is None or step.log_prob.width == 1, "log_prob: expected width 1")


def is_int(value: object) -> bool:
    """Whether the value is an integer and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


CHECKS: dict[type[Instruction], Callable[[Operands, Instruction], None]] = {
    cls: getattr(Operands, cls.op) for cls in Instruction.__subclasses__() if hasattr(Operands, cls.op)
}
