"""The cuda executor: a step program run by one kernel from position to position, on a card or on its host twin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastar import native
from fastar.native import cuda as cuda_library
from fastar.sampling import cuda_plan, draws
from fastar.sampling.cpu import REASONS
from fastar.sampling.cuda_plan import SCHEDULES, Room, Wishes
from fastar.sampling.index import Ref
from fastar.sampling.instructions import Attention, Draw
from fastar.sampling.program import Program
from fastar.sampling.reference import fingerprint
from fastar.sampling.request import Request

PRECISIONS = ("float32", "bfloat16", "float16", "int8")

# The kernels hold these in arrays of fixed size.
_MOST_COORDINATES = 3
_MOST_TERMS = 4
_MOST_CHANNELS = 16
_MOST_VARIABLES = 8
_MOST_INPUTS = 8

# Cards before sm_80 lack the asynchronous copies and the matrix instructions of sixteen bits that the kernels use.
_OLDEST_CARD = (8, 0)


def why_not(program: Program) -> str | None:
    """Why the cuda executor does not take a program, or None where it does."""
    missing = native.why_missing()
    if missing is not None:
        return missing
    if sum(one.kind == "input" for one in program.buffers) > _MOST_INPUTS:
        return f"more than {_MOST_INPUTS} inputs"
    if len({step.var for step in program.code if hasattr(step, "var")}) > _MOST_VARIABLES:
        return f"more than {_MOST_VARIABLES} loop variables"
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


def why_not_on(device: torch.device) -> str | None:
    """Why the cuda executor does not run on a device, or None where it does; takes no CUDA context."""
    if device.type != "cuda":
        return f"runs on a CUDA device, not on {device}"
    if torch.version.hip is not None:
        return "runs on NVIDIA's cards"
    card = torch.cuda.get_device_capability(device)
    if card < _OLDEST_CARD:
        return f"runs on cards from sm_80 on, this one is sm_{card[0]}{card[1]}"
    return None


class Cuda:
    """Runs a program in one launch per `advance`. Bit for bit the same for a row whatever the batch and its split.

    `precision` is how matrices of 16 outputs and more are kept: float32; bfloat16 or float16 (inputs are rounded alike,
    sums are float32); or int8 with a scale per output (inputs are rounded to bfloat16). Buffers are float32 throughout.
    `rows` is the batch that the work is shared out for; a run may have any other. `library` is the card's
    (`fastar.native.cuda.library`), or the host twin, whose tensors are the CPU's. `shared_bytes` leaves a block less
    shared memory than the card has, `blocks` sets how many make a cluster or a grid.
    """

    name = "cuda"

    def __init__(
        self,
        program: Program,
        precision: str = "float32",
        device: torch.device | str = "cuda",
        rows: int = 1,
        schedule: str = "auto",
        library: Any = None,
        shared_bytes: int | None = None,
        blocks: int | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {schedule!r}")
        for name, number in (("rows", rows), ("shared_bytes", shared_bytes), ("blocks", blocks)):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
                raise ValueError(f"{name}: expected a positive integer, got {number!r}")
        self.library = cuda_library.library() if library is None else library
        self.device = torch.device("cpu") if self.library.is_twin else torch.device(device)
        if not self.library.is_twin and self.device.type != "cuda":
            raise ValueError(f"device: expected a CUDA device, got {device}")
        self.program = program
        self.precision = precision
        self.dtype = torch.float32
        self.wishes = Wishes(schedule, rows, shared_bytes, blocks)
        index = self.device.index
        self.card = self.library.describe(
            index if index is not None else 0 if self.library.is_twin else torch.cuda.current_device()
        )
        self.repack(program.weights)

    def repack(self, weights: Mapping[str, Tensor]) -> None:
        """Take other weights of the same names, shapes and dtypes."""
        self.program = self.program.with_weights(weights)
        held = {
            name: t.detach().to("cpu", torch.int32 if t.dtype == torch.int32 else torch.float32).contiguous()
            for name, t in weights.items()
        }
        records = {name: (t.data_ptr(), tuple(t.shape), t.dtype == torch.int32) for name, t in held.items()}

        def pack(room: Room) -> Any:
            return native.core().CudaProgram(
                self.program,
                records,
                self.precision,
                fast_numbers=room.numbers,
                caches_far=room.caches_far,
                resident_bytes=room.resident_bytes,
                local_bytes=room.local_bytes,
                blocks=room.blocks,
                contents=room.contents,
            )

        self.packed, self.schedule, self.declined = cuda_plan.choose(self.program, pack, self.card, self.wishes)
        host = torch.empty(self.packed.bytes, dtype=torch.uint8)
        self.packed.copy_to(host.data_ptr())
        self.stretch = host.to(self.device)
        self.initial = {
            number: held[one.init].reshape(-1).to(self.device)
            for number, one in enumerate(self.program.buffers)
            if one.init is not None
        }

    def describe(self) -> str:
        """The schedule, what it takes, and why no other, in one line."""
        plan, tally = self.schedule, self.packed.tally
        lines = [
            f"{self.precision} weights ({self.packed.bytes / 1e6:.1f} MB packed), {self.card.name},"
            f" {plan.name} schedule: {plan.reason}; {plan.shared_bytes} bytes of shared memory a block;"
            f" each command once: {tally['commands']} commands, {tally['block_meetings']} meetings of a block,"
            f" {tally['team_meetings']} of all, {tally['edges']} edges,"
            f" {tally['weight_bytes']} bytes of weights read by a block,"
            f" {tally['resident_bytes']} of them from shared memory;"
            f" predicted, not measured: {plan.predicted_us:.2f} us a position"
        ]
        return "; not ".join([*lines, *self.declined])

    def start(self, request: Request) -> Run:
        """A run at its first position."""
        return Run(self, request)

    def resume(self, request: Request, state: Mapping[str, Any]) -> Run:
        """The run that `Run.state_dict` recorded, under the same request."""
        run = Run(self, request)
        run.load_state_dict(state)
        return run


class Run:
    """A run of the cuda executor: values and sums so far, and the device memory behind them."""

    def __init__(self, executor: Cuda, request: Request) -> None:
        self.executor = executor
        self.program = executor.program
        self.request = request
        device = executor.device
        n, T, V = len(request.rows), request.length, self.program.value.channels
        self.values = torch.zeros(n, T, V, dtype=torch.float64, device=device)
        self.log_prob = torch.zeros(n, dtype=torch.float64, device=device)
        self.log_weight = torch.zeros(n, dtype=torch.float64, device=device)
        self.lengths = request.lengths.to(device, torch.int64, copy=True).contiguous()
        self.done = 0
        plan, packed = executor.schedule, executor.packed
        self._teams = -(-n // plan.rows_per_team)
        self._refuse_too_many_rows()
        progress = torch.zeros(self._teams, native.core().CUDA_PROGRESS_BYTES, dtype=torch.uint8)
        packed.stand(progress.data_ptr(), self._teams, self._first_place(), 0, [])
        self._progress = progress.to(device)
        self._arena = self._fresh_arena(n)
        scores = packed.score_bytes(
            rows=plan.rows_per_team, threads=plan.threads, blocks=self._teams * plan.blocks_per_team
        )
        self._scores = torch.empty(scores, dtype=torch.uint8, device=device) if scores else None
        # As the program names them, in the order in which the native part numbers them.
        self._variables: dict[str, int] = {}
        for step in self.program.code:
            if hasattr(step, "var"):
                self._variables.setdefault(step.var, len(self._variables))
        self._record = self._make_record(n, T)

    def _refuse_too_many_rows(self) -> None:
        # Blocks that wait for one another have to be resident together.
        plan, card = self.executor.schedule, self.executor.card
        if plan.name == "grid" and self._teams * plan.blocks_per_team > card.multiprocessors:
            raise ValueError(
                f"rows: {len(self.request.rows)} rows need {self._teams} grids of {plan.blocks_per_team} blocks, which"
                f" have to be resident together on the {card.multiprocessors} multiprocessors of {card.name}; make an"
                f" executor with rows={len(self.request.rows)}"
            )

    def _first_place(self) -> int:
        return 0 if self.program.code else -1

    def _fresh_arena(self, n: int) -> Tensor:
        packed = self.executor.packed
        arena = torch.zeros(n, packed.fast + packed.slow, device=self.executor.device)
        for number, one in enumerate(self.program.buffers):
            begin, size = packed.buffers[number]
            if begin < 0:
                continue
            if number in self.executor.initial:
                arena[:, begin : begin + size] = self.executor.initial[number]
            elif one.kind == "scratch" and self.executor.library.is_twin:
                # Nobody may read it before it was written: on the twin whoever does finds out.
                arena[:, begin : begin + size] = float("nan")
        return arena

    def _make_record(self, n: int, T: int) -> dict[str, Any]:
        request, device, plan = self.request, self.executor.device, self.executor.schedule

        def ready(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
            return None if t is None else t.to(device, dtype).contiguous()

        def address(t: Tensor | None) -> int | None:
            return None if t is None else t.data_ptr()

        held = {
            "row_numbers": ready(request.rows, torch.int64),
            "seeds": ready(request.seeds, torch.int64),
            "given": ready(request.given, torch.float64),
            "support": ready(request.levels, torch.uint8),
            "low": ready(request.low, torch.float64),
            "high": ready(request.high, torch.float64),
            "uniforms": ready(request.uniforms, torch.float64),
            "lengths": self.lengths,
            "values": self.values,
            "log_prob": self.log_prob,
            "log_weight": self.log_weight,
            "stretch": self.executor.stretch,
            "arena": self._arena,
            "progress": self._progress,
            "scores": self._scores,
        }
        names = [one.name for one in self.program.buffers if one.kind == "input"]
        inputs = [ready(request.inputs[name], torch.float32) for name in names]
        # The kernels borrow all of these.
        self._held = (held, inputs)
        options = request.options
        return {
            **{name: address(t) for name, t in held.items()},
            "inputs": [(one.data_ptr(), one[0].numel() if n else 0) for one in inputs if one is not None],
            "rows": n,
            "schedule": plan.name,
            "turn": 0,
            "rows_per_team": plan.rows_per_team,
            "blocks_per_team": plan.blocks_per_team,
            "threads": plan.threads,
            "length": T,
            "channels": self.program.value.channels,
            "levels": self.program.value.levels or 0,
            "levels_per_row": request.levels is not None and request.levels.shape[0] == n,
            "range_per_row": request.low is not None and request.low.shape[0] == n,
            "uniform_draws": 0 if request.uniforms is None else request.uniforms.shape[2],
            "stop": -1 if request.stop is None else request.stop,
            "position_offset": request.position_offset,
            "temperature": float(options.temperature),
            "top_k": options.top_k or 0,
            "top_p": float(options.top_p or 0.0),
            "greedy": options.greedy,
        }

    @property
    def finished(self) -> bool:
        """Whether every position is complete, or every row has ended."""
        return self.done == self.request.length or bool((self.lengths <= self.done).all())

    def advance(self, positions: int | None = None) -> int:
        """Run until this many more positions are complete (None: all); returns how many were.

        One launch on the current stream, whose end is waited for. Signals are acted on between calls.
        """
        if self.finished:
            return 0
        before, length = self.done, self.request.length
        self._record["target"] = length if positions is None else min(length, before + positions)
        stream = 0
        if self.executor.device.type == "cuda":
            stream = torch.cuda.current_stream(self.executor.device).cuda_stream
        with torch.cuda.device(self.executor.device) if stream else torch.no_grad():
            self.executor.packed.run(self.executor.library, self._record, stream)
        self._record["turn"] = 1 - self._record["turn"]
        reached = self._reached()
        self.done = max(done for _, done, _, _ in reached)
        self._raise_failure(reached)
        return self.done - before

    def _reached(self) -> list[tuple[int, int, list[int], tuple[str, int, int, int] | None]]:
        host = self._progress.cpu()
        reached: list[tuple[int, int, list[int], tuple[str, int, int, int] | None]] = self.executor.packed.progress(
            host.data_ptr(), self._teams
        )
        return reached

    def _raise_failure(self, reached: list[tuple[int, int, list[int], tuple[str, int, int, int] | None]]) -> None:
        failed = [(failure, variables) for _, _, variables, failure in reached if failure is not None]
        if not failed:
            return
        (kind, row, position, place), variables = min(failed, key=lambda one: (one[0][2], one[0][1]))
        where = f"position {position}, code[{place}] {self.program.code[place].op}"
        culprit = self._culprit(row, place, variables) if kind in ("not_a_number", "not_finite") else None
        if culprit is not None:
            where = f"position {position}, code[{culprit}] {self.program.code[culprit].op}"
            raise draws.SamplingError(f"{where}: row {row}: the result is not finite, so the draw after it has no law")
        if kind == "stuck":
            raise RuntimeError(f"{self.program.name}: blocks of the grid waited ten seconds for one another in vain")
        raise draws.SamplingError(f"{where}: row {row}: {REASONS[kind]}")

    def _culprit(self, row: int, place: int, variables: list[int]) -> int | None:
        # The first instruction between the last control flow and the draw whose result is not finite.
        values = {name: variables[number] for name, number in self._variables.items()}
        buffers = {one.name: number for number, one in enumerate(self.program.buffers)}
        first = place
        while first > 0 and hasattr(self.program.code[first - 1], "out"):
            first -= 1
        for at in range(first, place):
            for ref in (getattr(self.program.code[at], name, None) for name in ("out", "cell_out")):
                if isinstance(ref, Ref):
                    buffer = self._buffer(buffers[ref.buffer])[row]
                    for axis, index in enumerate(ref.at):
                        buffer = buffer[index.at(values) % self.program.buffer(ref.buffer).shape[axis]]
                    begin = ref.offset.at(values)
                    if not bool(buffer[begin : begin + ref.width].isfinite().all()):
                        return at
        return None

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run on another machine needs to continue this one, beside the request."""
        # Teams whose rows have all ended stopped early; the others stand alike.
        place, _, variables, _ = max(self._reached(), key=lambda one: one[1])
        return {
            "program": fingerprint(self.program),
            "place": len(self.program.code) if place < 0 else place,
            "done": self.done,
            "variables": {name: variables[number] for name, number in self._variables.items()},
            "buffers": {name: self._buffer(number).clone() for number, name in self._stored()},
            **{name: getattr(self, name).clone() for name in _TENSORS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a record of `state_dict`; ValueError for one of another program or of another request."""
        if state.get("program") != fingerprint(self.program):
            raise ValueError(f"state: recorded by another program than {self.program.name}")
        own = [(name, getattr(self, name), state[name]) for name in _TENSORS]
        for name, have, came in own + [(name, self._buffer(k), state["buffers"][name]) for k, name in self._stored()]:
            if came.shape != have.shape or came.dtype != have.dtype:
                raise ValueError(
                    f"state: {name} is {came.dtype} {list(came.shape)}, expected {have.dtype} {list(have.shape)}"
                )
            have.copy_(came)
        variables = [int(state["variables"].get(name, 0)) for name in self._variables]
        place = -1 if state["place"] == len(self.program.code) else state["place"]
        host = self._progress.cpu()
        self.executor.packed.stand(host.data_ptr(), self._teams, place, state["done"], variables)
        self._progress.copy_(host)
        self.done = state["done"]

    def _stored(self) -> list[tuple[int, str]]:
        return [(number, one.name) for number, one in enumerate(self.program.buffers) if one.kind != "input"]

    def _buffer(self, number: int) -> Tensor:
        begin, size = self.executor.packed.buffers[number]
        shape = (len(self.request.rows), *self.program.buffers[number].shape)
        return self._arena[:, begin : begin + size].view(shape)


_TENSORS = ("values", "log_prob", "log_weight", "lengths")
