"""The closed instruction set of step programs, as data classes. What each means: docs/step-programs.md."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from fastar.sampling import codec
from fastar.sampling.index import Index, Ref

ACTIVATIONS = ("none", "relu", "elu", "gelu", "gelu_tanh", "tanh", "sigmoid", "silu")
UNARY = (*ACTIVATIONS, "exp", "log", "softplus", "clamp", "concat_elu")
BINARY = ("add", "mul")
GATES = ("tanh", "linear", "silu")
NORMS = ("layer", "rms")
CELLS = ("tanh", "lstm", "gru")
HEADS = ("bernoulli", "categorical", "normal", "gaussian", "laplace", "logistic", "given")


@dataclass(frozen=True)
class Head:
    """The law of a draw: which parameters it reads, and what they mean."""

    kind: str
    levels: int | None = None
    components: int = 1
    channels: int = 1
    low: float | None = None
    high: float | None = None
    min_log_scale: float | None = None
    branch: float = 0.0

    @property
    def params(self) -> int:
        """How many parameters the head reads."""
        if self.kind == "bernoulli":
            return 1
        if self.kind == "categorical":
            return self.levels or 0
        if self.kind == "normal":
            return 2
        if self.kind == "given":
            return 0
        return self.components * (1 + 2 * self.channels + self.channels * (self.channels - 1) // 2)

    @property
    def draws(self) -> int:
        """How many random numbers one position takes."""
        if self.kind == "given":
            return 0
        return 1 if self.kind in ("bernoulli", "categorical", "normal") else 1 + self.channels

    def __str__(self) -> str:
        shown = [f"{f.name}={getattr(self, f.name)}" for f in fields(self)[1:] if getattr(self, f.name) != f.default]
        return f"{self.kind}({', '.join(shown)})"

    def to_json(self) -> Any:
        """The fields that differ from their defaults."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    @staticmethod
    def from_json(data: Any) -> Head:
        """The head that `to_json` wrote."""
        return codec.decode(Head, "head", data)


# The fields of type Ref that are written; all others are read.
_WRITTEN = ("out", "cell_out")


@dataclass(frozen=True)
class Instruction:
    """One entry of a program's code."""

    op: ClassVar[str] = ""
    # Names of the Ref fields that may be the very channels of `out`, since every element is read before it is written.
    in_place: ClassVar[tuple[str, ...]] = ()

    @property
    def writes(self) -> tuple[Ref, ...]:
        """The references that are written."""
        return tuple(ref for name, ref in self.refs() if name in _WRITTEN)

    @property
    def reads(self) -> list[tuple[str, Ref]]:
        """The references that are read, with their fields' names."""
        return [(name, ref) for name, ref in self.refs() if name not in _WRITTEN]

    def refs(self) -> list[tuple[str, Ref]]:
        """Every reference with its field's name."""
        return self._refs

    @functools.cached_property
    def _refs(self) -> list[tuple[str, Ref]]:
        # Kept, since joining and checking a long program ask for them again and again.
        return [(f.name, value) for f in fields(self) if isinstance(value := getattr(self, f.name), Ref)]

    def to_json(self) -> dict[str, Any]:
        """{"op": name, field: value, ...} without absent optional fields."""
        data: dict[str, Any] = {"op": self.op}
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None:
                data[f.name] = value.to_json() if hasattr(value, "to_json") else value
        return data


@dataclass(frozen=True)
class Loop(Instruction):
    """var = 0 .. count - 1; count None is the length of the run."""

    op = "loop"
    var: str
    count: int | None = None


@dataclass(frozen=True)
class When(Instruction):
    """The body runs where index is in range(start, stop, step); stop None is no bound."""

    op = "when"
    index: Index
    start: int = 0
    stop: int | None = None
    step: int = 1

    def holds(self, value: int) -> bool:
        """Whether the body runs at this value of the index."""
        return (
            value >= self.start and (self.stop is None or value < self.stop) and (value - self.start) % self.step == 0
        )


@dataclass(frozen=True)
class End(Instruction):
    """Closes the innermost loop or when."""

    op = "end"


@dataclass(frozen=True)
class Linear(Instruction):
    """y = act(W x + b + add), W and b taken from a bank where `bank` is given."""

    op = "linear"
    in_place = ("add",)
    out: Ref
    source: Ref
    weight: str
    bias: str | None = None
    add: Ref | None = None
    activation: str = "none"
    bank: Index | None = None


@dataclass(frozen=True)
class TappedLinear(Instruction):
    """y = act(sum_k W[:, k] x(at + taps[k]) + b + add); a tap outside contributes nothing."""

    op = "tapped_linear"
    in_place = ("add",)
    out: Ref
    source: Ref
    taps: tuple[tuple[int, ...], ...]
    weight: str
    bias: str | None = None
    add: Ref | None = None
    activation: str = "none"
    bank: Index | None = None


@dataclass(frozen=True)
class SpanLinear(Instruction):
    """y[r] = act(W[r, :reach] x[:reach] + b[r] + add[r]) for the rows of span i."""

    op = "span_linear"
    in_place = ("add",)
    out: Ref
    source: Ref
    weight: str
    spans: str
    index: Index
    bias: str | None = None
    reach: str | None = None
    add: Ref | None = None
    activation: str = "none"


@dataclass(frozen=True)
class Gather(Instruction):
    """y = table[base + symbol] + add."""

    op = "gather"
    in_place = ("add",)
    out: Ref
    table: str
    position: Index | None = None
    channel: int = 0
    base: Index = field(default_factory=Index)
    first: int | None = None
    add: Ref | None = None


@dataclass(frozen=True)
class Accumulate(Instruction):
    """y += (scale * value + shift) * table[row]."""

    op = "accumulate"
    out: Ref
    table: str
    row: Index
    position: Index
    channel: int = 0
    scale: float = 1.0
    shift: float = 0.0

    @property
    def reads(self) -> list[tuple[str, Ref]]:
        """What it adds to."""
        return [("out", self.out)]


@dataclass(frozen=True)
class Readout(Instruction):
    """y = W[row] act(x) + b[row]."""

    op = "readout"
    out: Ref
    source: Ref
    weight: str
    row: Index
    bias: str | None = None
    activation: str = "none"


@dataclass(frozen=True)
class Gate(Instruction):
    """tanh: tanh(a) sigmoid(b); linear: a sigmoid(b); silu: a silu(b)."""

    op = "gate"
    in_place = ("a", "b")
    out: Ref
    function: str
    a: Ref
    b: Ref


@dataclass(frozen=True)
class Elementwise(Instruction):
    """f(alpha a + beta), alpha a + b, alpha a b, or a clamp to [alpha, beta]; in a span, or everywhere."""

    op = "elementwise"
    in_place = ("a", "b")
    out: Ref
    function: str
    a: Ref
    b: Ref | None = None
    alpha: float = 1.0
    beta: float = 0.0
    spans: str | None = None
    index: Index | None = None


@dataclass(frozen=True)
class Norm(Instruction):
    """Layer norm or root-mean-square norm over the channels."""

    op = "norm"
    out: Ref
    source: Ref
    kind: str = "layer"
    weight: str | None = None
    bias: str | None = None
    eps: float = 1e-5


@dataclass(frozen=True)
class Attention(Instruction):
    """Softmax attention of one query over the cached slots up to `newest`."""

    op = "attention"
    out: Ref
    query: Ref
    keys: str
    values: str
    newest: Index
    heads: int
    kv_heads: int
    scale: float
    window: int | None = None
    local: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Cell(Instruction):
    """The pointwise part of a tanh, LSTM or GRU cell, gates in torch.nn's order."""

    op = "cell"
    in_place = ("hidden", "cell")
    kind: str
    out: Ref
    input_gates: Ref
    hidden_gates: Ref | None = None
    hidden: Ref | None = None
    cell: Ref | None = None
    cell_out: Ref | None = None


@dataclass(frozen=True)
class Draw(Instruction):
    """The value of a position, drawn from the head's law; into `out` instead, where that is given."""

    op = "draw"
    head: Head
    position: Index
    params: Ref | None = None
    out: Ref | None = None


@dataclass(frozen=True)
class Store(Instruction):
    """y = scale * value + shift; `first` before the first position."""

    op = "store"
    out: Ref
    position: Index
    scale: float = 1.0
    shift: float = 0.0
    first: float = 0.0


@dataclass(frozen=True)
class Emit(Instruction):
    """A position's value is x; the log-probability gains `log_prob`."""

    op = "emit"
    source: Ref
    position: Index
    log_prob: Ref | None = None


BY_OP: dict[str, type[Instruction]] = {cls.op: cls for cls in Instruction.__subclasses__()}


def from_json(data: Any) -> Instruction:
    """The instruction that `Instruction.to_json` wrote; ValueError for anything else."""
    if not isinstance(data, dict) or not isinstance(data.get("op"), str) or data["op"] not in BY_OP:
        raise ValueError(f"code: expected an entry with op in {sorted(BY_OP)}, got {data!r:.80}")
    rest = {name: value for name, value in data.items() if name != "op"}
    return codec.decode(BY_OP[data["op"]], f"code: {data['op']}", rest)
