"""Step programs as a flat sequence of words, for a native binary that knows neither Python nor torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor

from fastar.sampling.index import Index, Ref
from fastar.sampling.instructions import HEADS, End, Head, Instruction, Loop, When
from fastar.sampling.program import Program

# In the order of the native enumerations.
OPS = (
    *("loop", "when", "end", "linear", "tapped_linear", "span_linear", "gather", "accumulate", "readout", "gate"),
    *("elementwise", "norm", "attention", "cell", "draw", "store", "emit"),
)
FUNCTIONS = ["none", "relu", "elu", "gelu", "gelu_tanh", "tanh", "sigmoid", "silu", "exp", "log", "softplus"]
GATES = ["tanh", "linear", "silu"]
NORMS = ["layer", "rms"]
CELLS = ["tanh", "lstm", "gru"]
ELEMENTWISE = ["unary", "clamp", "concat_elu", "add", "mul"]
BUFFERS = ["state", "scratch", "input"]
PRECISIONS = ["float32", "bfloat16", "int8"]

# The names that a native field has in the instructions, the last one present counting.
OPERANDS = (
    ("out",),
    ("source", "a", "query", "input_gates", "params"),
    ("add",),
    ("b", "hidden_gates"),
    ("hidden",),
    ("cell",),
    ("cell_out",),
    ("log_prob",),
)
WEIGHTS = (("weight", "table"), ("bias",), ("spans",), ("reach",))
INDICES = (("index", "bank", "row", "base", "newest"), ("position",))

Word = object


def words(program: Program, precision: str, rows: int, length: int) -> str:
    """A program, and the run that is wanted of it."""
    return " ".join(_word(one) for one in _Writer(program).program(precision, rows, length))


def _word(value: Word) -> str:
    if value is None:
        return "-"
    return value.hex() if isinstance(value, float) else str(int(value)) if isinstance(value, bool) else str(value)


class _Writer:
    def __init__(self, source: Program) -> None:
        self.source = source
        self.weights = {name: i for i, name in enumerate(source.weights)}
        self.buffers = {one.name: i for i, one in enumerate(source.buffers)}
        self.variables: dict[str, int] = {}

    def program(self, precision: str, rows: int, length: int) -> Iterator[Word]:
        p = self.source
        yield from (p.name.replace(" ", "_"), PRECISIONS.index(precision), rows, length)
        yield from (p.value.channels, p.value.levels or 0)
        yield len(p.weights)
        for weight in p.weights.values():
            yield from self.weight(weight)
        yield len(p.buffers)
        for one in p.buffers:
            yield BUFFERS.index(one.kind)
            yield from self.numbers(one.shape)
            yield from (one.ring, -1 if one.init is None else self.weights[one.init])
        yield len(p.code)
        for step in p.code:
            yield from self.instruction(step)
        yield len(self.variables)

    def numbers(self, values: Sequence[int]) -> Iterator[Word]:
        yield len(values)
        yield from values

    def weight(self, weight: Tensor) -> Iterator[Word]:
        yield weight.is_floating_point()
        yield from self.numbers(tuple(weight.shape))
        yield from weight.flatten().tolist()

    def variable(self, name: str) -> int:
        return self.variables.setdefault(name, len(self.variables))

    def index(self, one: Index | None) -> Iterator[Word]:
        if one is None:
            yield None
            return
        yield from (one.const, one.divisor, len(one.terms))
        for name, coefficient in one.terms:
            yield from (self.variable(name), coefficient)

    def ref(self, one: Ref | None) -> Iterator[Word]:
        if one is None:
            yield None
            return
        yield from (self.buffers[one.buffer], len(one.at))
        for at in one.at:
            yield from self.index(at)
        yield from self.index(one.offset)
        yield one.width

    def instruction(self, step: Instruction) -> Iterator[Word]:
        yield OPS.index(step.op)
        if isinstance(step, Loop):
            yield from (self.variable(step.var), step.count)
        elif isinstance(step, When):
            yield from self.index(step.index)
            yield from (step.start, step.stop, step.step)
        elif not isinstance(step, End):
            yield from self.compute({f.name: getattr(step, f.name) for f in fields(step)}, step.op)

    def compute(self, values: dict[str, Any], op: str) -> Iterator[Word]:
        def last(names: Iterable[str], kind: type) -> Any:
            found = [values[name] for name in names if isinstance(values.get(name), kind)]
            return found[-1] if found else None

        for names in OPERANDS:
            yield from self.ref(last(names, Ref))
        for names in WEIGHTS:
            name = last(names, str)
            yield -1 if name is None else self.weights[name]
        for names in INDICES:
            yield from self.index(last(names, Index))
        taps = values.get("taps", ())
        yield len(taps)
        for tap in taps:
            yield from self.numbers(tap)
        symbol = values.get("first") if op == "gather" else None
        yield from (values.get("channel", 0), symbol)
        cache = [self.buffers[values[name]] if op == "attention" else -1 for name in ("keys", "values")]
        yield from (*cache, values.get("heads", 1), values.get("kv_heads", 1), values.get("window"))
        yield from values.get("local") or (0, 0, 0)
        first = values["first"] if op == "store" else 0.0
        scale, shift = values.get("scale", values.get("alpha", 1.0)), values.get("shift", values.get("beta", 0.0))
        yield from (float(one) for one in (scale, shift, first, values.get("eps", 0.0)))
        yield from self.functions(values, op)
        yield from self.head(values["head"] if op == "draw" else Head("given"))

    def functions(self, values: dict[str, Any], op: str) -> Iterator[Word]:
        function = values.get("activation", "none")
        elementwise = "unary"
        if op == "elementwise":
            special = values["function"] in ELEMENTWISE
            elementwise, function = (values["function"], "none") if special else ("unary", values["function"])
        yield FUNCTIONS.index(function)
        yield GATES.index(values["function"]) if op == "gate" else 0
        yield NORMS.index(values["kind"]) if op == "norm" else 0
        yield CELLS.index(values["kind"]) if op == "cell" else 0
        yield ELEMENTWISE.index(elementwise)

    def head(self, head: Head) -> Iterator[Word]:
        yield from (HEADS.index(head.kind), head.levels or 0, head.components, head.channels)
        yield from (None if one is None else float(one) for one in (head.low, head.high, head.min_log_scale))
        yield float(head.branch)
