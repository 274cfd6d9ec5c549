"""The cpu executor: a step program run natively from the first position to the last."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastar import native
from fastar.sampling import draws
from fastar.sampling.instructions import Attention, Draw
from fastar.sampling.program import Program
from fastar.sampling.reference import fingerprint
from fastar.sampling.request import Request

PRECISIONS = ("float32", "bfloat16", "int8")
SHARINGS = ("auto", "rows", "steps")

# The native part holds these in arrays of fixed size.
_MOST_COORDINATES = 3
_MOST_TERMS = 4
_MOST_CHANNELS = 16

REASONS = {
    "not_a_number": "a parameter of the draw is NaN",
    "no_support": "the levels that the support allows all have probability 0",
    "not_given": "the value is not modelled and has to be given",
    "not_finite": "the value computed is not finite",
}


def why_not(program: Program) -> str | None:
    """Why the cpu executor does not take a program, or None where it does."""
    missing = native.why_missing()
    if missing is not None:
        return missing
    for place, step in enumerate(program.code):
        for name, ref in step.refs():
            if len(ref.at) > _MOST_COORDINATES:
                return f"code[{place}] {step.op}: {name} has more than {_MOST_COORDINATES} coordinates"
            if any(len(one.terms) > _MOST_TERMS for one in (*ref.at, ref.offset)):
                return f"code[{place}] {step.op}: an index of {name} has more than {_MOST_TERMS} variables"
        if isinstance(step, Draw) and max(step.head.channels, program.value.channels) > _MOST_CHANNELS:
            return f"code[{place}] draw: more than {_MOST_CHANNELS} channels"
        if isinstance(step, Attention) and program.buffer(step.keys).shape[0] != program.buffer(step.values).shape[0]:
            return f"code[{place}] attention: keys and values of different numbers of slots"
    return None


@dataclass(slots=True)
class Spent:
    """What a run has taken so far."""

    rows: int
    positions: int = 0
    seconds: float = 0.0


class Cpu:
    """Runs a program in C++. Bit for bit the same for a row whatever the batch, its split, and the threads.

    `precision` is how matrices are kept: float32, bfloat16 (inputs are rounded alike, sums are float32), or int8 with a
    scale per output (inputs are quantised per row). Buffers are float32 throughout. `rows` is the batch that the work
    is shared out for; a run may have any other. `sharing` is how: each thread alone with its own rows, all threads
    together at the steps of all rows, or whichever a cost model prefers; `ns_to_hear`, until one thread sees what
    another has written, is measured for it unless given.
    """

    name = "cpu"
    interruptible = True

    def __init__(
        self,
        program: Program,
        precision: str = "float32",
        threads: int | None = None,
        rows: int = 1,
        sharing: str = "auto",
        ns_to_hear: float | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
        if sharing not in SHARINGS:
            raise ValueError(f"sharing: expected one of {', '.join(SHARINGS)}, got {sharing!r}")
        for name, number in (("threads", threads), ("rows", rows)):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
                raise ValueError(f"{name}: expected a positive integer, got {number!r}")
        self.program = program
        self.precision = precision
        self.dtype = torch.float32
        self.threads = threads or len(os.sched_getaffinity(0))
        self.rows = rows
        self.sharing = sharing
        self.ns_to_hear = ns_to_hear
        self.last: Spent | None = None
        self.repack(program.weights)

    def repack(self, weights: Mapping[str, Tensor]) -> None:
        """Take other weights of the same names, shapes and dtypes."""
        self.program = self.program.with_weights(weights)
        held = {
            name: t.detach().to("cpu", torch.int32 if t.dtype == torch.int32 else torch.float32).contiguous()
            for name, t in weights.items()
        }
        records = {name: (t.data_ptr(), tuple(t.shape), t.dtype == torch.int32) for name, t in held.items()}
        # The plan copies what it needs, so nothing holds these weights any longer than this call.
        how = (self.precision, self.threads, self.rows, self.sharing, self.ns_to_hear)
        self.plan = native.core().Plan(self.program, records, *how)
        layout = self.program.layout
        self._layout = None if layout is None else self.program.weights[layout].to("cpu", torch.int32).contiguous()

    def describe(self) -> str:
        """How the work is shared out and why, in one line."""
        plan, level = self.plan, native.core().level()
        how = "each thread runs its own rows" if plan.sharing == "rows" else "threads share the steps of every row"
        return (
            f"{self.precision} weights ({plan.weight_bytes / 1e6:.1f} MB packed), {level}, {plan.threads} of"
            f" {self.threads} threads for {self.rows} rows: {how}"
            + (f", one hears of another in {plan.ns_to_hear:.0f} ns" if plan.ns_to_hear else "")
        )

    def times(self) -> str:
        """A step's time as predicted for `rows` rows, and as measured in the last run if there has been one."""
        text = f"predicted {self.plan.predicted_ns / 1e3:.3g} us for {self.rows} rows"
        if self.last is None or not self.last.positions:
            return text
        steps, rows = self.last.positions, self.last.rows
        return f"{text}, measured {self.last.seconds / steps * 1e6:.3g} us for {rows} rows over {steps:,} steps"

    def start(self, request: Request) -> Run:
        """A run at its first position."""
        return Run(self, request)

    def sample(self, n: int, length: int, seed: int, row_offset: int) -> Tensor | None:
        """The values of a whole run without options, [n, *shape] in the data's space; None where a draw failed.

        What `start` takes is not checked here. The run is a single call, since one of a small model takes less time
        than to make a `Request`.
        """
        program = self.program
        integers = program.value.dtype == "int"
        V = program.value.channels
        shape = program.shape or ((length,) if V == 1 else (length, V))
        out = torch.empty((n, *shape), dtype=torch.int64 if integers else torch.float32)
        layout = None if self._layout is None else self._layout.data_ptr()
        seconds = self.plan.sample(n, length, seed, row_offset, integers, layout, out.data_ptr())
        if seconds < 0.0:
            return None
        self.last = Spent(n, length, seconds)
        return out

    def resume(self, request: Request, state: Mapping[str, Any]) -> Run:
        """The run that `Run.state_dict` recorded, under the same request."""
        run = Run(self, request)
        run.load_state_dict(state)
        return run


class Run:
    """A run of the cpu executor: its rows' values and sums so far, and the native state behind them."""

    def __init__(self, executor: Cpu, request: Request) -> None:
        self.executor = executor
        self.program = executor.program
        self.request = request
        self.plan = executor.plan
        n, T, V = len(request.rows), request.length, self.program.value.channels
        self.values = _zeros(n, T, V)
        self.log_prob = torch.zeros(n, dtype=torch.float64)
        self.log_weight = torch.zeros(n, dtype=torch.float64)
        self.lengths = request.lengths.to("cpu", torch.int64, copy=True).contiguous()
        self._native = native.core().Run(self.plan, self._record(n, T))
        self._spent = Spent(n)
        # As the program names them, in the order in which the native part numbers them.
        self._variables: dict[str, int] = {}
        for step in self.program.code:
            if hasattr(step, "var"):
                self._variables.setdefault(step.var, len(self._variables))

    def _record(self, n: int, T: int) -> dict[str, Any]:
        request = self.request

        def ready(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
            return None if t is None else t.to("cpu", dtype).contiguous()

        levels = ready(request.levels, torch.uint8)
        low, high = ready(request.low, torch.float64), ready(request.high, torch.float64)
        names = [one.name for one in self.program.buffers if one.kind == "input"]
        inputs = [ready(request.inputs[name], torch.float32) for name in names]
        given, uniforms = ready(request.given, torch.float64), ready(request.uniforms, torch.float64)
        rows, seeds = ready(request.rows, torch.int64), ready(request.seeds, torch.int64)
        # The native run borrows all of these.
        self._held = (levels, low, high, inputs, given, uniforms, rows, seeds)

        def address(t: Tensor | None) -> int | None:
            return None if t is None else t.data_ptr()

        return {
            "rows": n,
            "length": T,
            "row_numbers": address(rows),
            "seeds": address(seeds),
            "lengths": address(self.lengths),
            "values": address(self.values),
            "log_prob": address(self.log_prob),
            "log_weight": address(self.log_weight),
            "given": address(given),
            "levels": address(levels),
            "low": address(low),
            "high": address(high),
            "uniforms": address(uniforms),
            **request.drawing(),
            "inputs": [address(one) for one in inputs],
            "input_entries": [request.inputs[name].shape[1] for name in names],
        }

    @property
    def done(self) -> int:
        """How many positions are complete."""
        done: int = self._native.done
        return done

    @property
    def finished(self) -> bool:
        """Whether every position is complete, or every row has ended."""
        finished: bool = self._native.finished
        return finished

    def pause(self) -> None:
        """Nothing: this executor runs while it is asked to, and no longer."""

    def results(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """values, log_prob, lengths and log_weight."""
        return self.values, self.log_prob, self.lengths, self.log_weight

    def advance(self, positions: int | None = None, ahead: bool = False) -> int:
        """Run until this many more positions are complete (None: all), never `ahead`; returns how many were.

        Ctrl-C and other signals are looked for about every 50 ms, at a position's end; the run can go on afterwards.
        """
        if self.finished:
            return 0
        began = time.perf_counter()
        done: int = self._native.advance(self.request.length if positions is None else positions)
        self._spent.seconds += time.perf_counter() - began
        self._spent.positions += done
        self.executor.last = self._spent
        self._raise_failure()
        return done

    def _raise_failure(self) -> None:
        failure = self._native.failure
        if failure is None:
            return
        kind, row, position, place = failure
        step = self.program.code[place]
        where = f"position {position}, code[{place}] {step.op}"
        if kind == "not_a_number" and not isinstance(step, Draw):
            raise draws.SamplingError(f"{where}: row {row}: the result is not finite, so the draw after it has no law")
        raise draws.SamplingError(f"{where}: row {row}: {REASONS[kind]}")

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run on another machine needs to continue this one, beside the request."""
        variables = self._native.variables
        return {
            "program": fingerprint(self.program),
            "place": self._native.place,
            "done": self.done,
            "variables": {name: variables[number] for name, number in self._variables.items()},
            "buffers": {name: self._buffer(number) for number, name in self._stored()},
            "own": self._own(),
            **{name: getattr(self, name).clone() for name in _TENSORS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a record of `state_dict`; ValueError for one of another program or of another request."""
        if state.get("program") != fingerprint(self.program):
            raise ValueError(f"state: recorded by another program than {self.program.name}")
        shapes = {self.program.buffers[number].name: self._shape(number) for number, _ in self._stored()}
        for name in _TENSORS:
            came, have = state[name], getattr(self, name)
            if came.shape != have.shape or came.dtype != have.dtype:
                raise ValueError(
                    f"state: {name} is {came.dtype} {list(came.shape)}, expected {have.dtype} {list(have.shape)}"
                )
        for number, name in self._stored():
            came = state["buffers"][name]
            if tuple(came.shape) != shapes[name] or came.dtype != torch.float32:
                raise ValueError(
                    f"state: {name} is {came.dtype} {list(came.shape)}, expected float32 {list(shapes[name])}"
                )
            self._native.write(number, came.contiguous().data_ptr())
        # What this executor keeps in a form of its own is exact there only; the reference's records have none.
        if "own" in state:
            own, shape = state["own"], (len(self.request.rows), self.plan.own_floats)
            if tuple(own.shape) != shape or own.dtype != torch.float32:
                raise ValueError(f"state: own is {own.dtype} {list(own.shape)}, expected float32 {list(shape)}")
            self._native.write_own(own.contiguous().data_ptr())
        for name in _TENSORS:
            getattr(self, name).copy_(state[name])
        variables = [int(state["variables"].get(name, 0)) for name in self._variables]
        self._native.stand(state["place"], variables, state["done"])

    def _own(self) -> Tensor:
        t = torch.empty(len(self.request.rows), self.plan.own_floats)
        self._native.read_own(t.data_ptr())
        return t

    def _stored(self) -> list[tuple[int, str]]:
        return [(number, one.name) for number, one in enumerate(self.program.buffers) if one.kind != "input"]

    def _shape(self, number: int) -> tuple[int, ...]:
        return (len(self.request.rows), *self.program.buffers[number].shape)

    def _buffer(self, number: int) -> Tensor:
        t = torch.empty(self._shape(number))
        self._native.read(number, t.data_ptr())
        return t


def _zeros(n: int, T: int, V: int) -> Tensor:
    # torch.zeros fills with torch's threads, which then go on spinning for milliseconds on cores that the run needs.
    # And pages that the system clears are not touched before they are written.
    size = n * T * V
    if size == 0:
        return torch.zeros(n, T, V, dtype=torch.float64)
    return torch.frombuffer(bytearray(8 * size), dtype=torch.float64).view(n, T, V)


_TENSORS = ("values", "log_prob", "log_weight", "lengths")
