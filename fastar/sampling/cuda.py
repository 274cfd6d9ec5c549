"""The cuda executor: a step program run by one kernel from position to position, on a card or on its host twin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastar import native
from fastar.native import cuda as cuda_library
from fastar.sampling import cuda_plan, draws, space
from fastar.sampling.cpu import Spent
from fastar.sampling.cuda_plan import SCHEDULES, STAGES, Schedule, Wishes
from fastar.sampling.cuda_run import Run
from fastar.sampling.instructions import Attention, Draw
from fastar.sampling.program import Program
from fastar.sampling.request import Request, make

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
    shared memory than the card has, `blocks` sets how many make a cluster or a grid, `stages` how many each warp's ring
    has, through which weights come that are not kept in shared memory (0: they are read where they lie).
    """

    name = "cuda"
    interruptible = True

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
        stages: int | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {schedule!r}")
        for name, number in (("rows", rows), ("shared_bytes", shared_bytes), ("blocks", blocks)):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
                raise ValueError(f"{name}: expected a positive integer, got {number!r}")
        if stages is not None and (isinstance(stages, bool) or stages not in STAGES):
            raise ValueError(f"stages: expected one of {', '.join(map(str, STAGES))}, got {stages!r}")
        self.device = torch.device(device)
        if library is None:
            reason = why_not_on(self.device)
            if reason is not None:
                raise ValueError(f"device: the cuda executor {reason}")
            library = cuda_library.library(torch.cuda.get_device_capability(self.device))
        elif library.is_twin:
            self.device = torch.device("cpu")
        self.library = library
        self.index = self.device.index or 0
        if self.device.type == "cuda" and self.device.index is None:
            self.index = torch.cuda.current_device()
            self.device = torch.device("cuda", self.index)
        self.program = program
        self.precision = precision
        self.dtype = torch.float32
        self.wishes = Wishes(schedule, rows, shared_bytes, blocks, stages)
        self.card = self.library.describe(self.index)
        self.last: Spent | None = None
        self._again: Run | None = None
        self.repack(program.weights)

    def repack(self, weights: Mapping[str, Tensor]) -> None:
        """Take other weights of the same names, shapes and dtypes."""
        self._again = None
        self.program = self.program.with_weights(weights)
        held, pack = cuda_plan.packer(self.program, self.precision)
        self.packed, self.schedule, self.declined = cuda_plan.choose(
            self.program, pack, self.card, self.wishes, self.resident
        )
        self.require_memory(self.packed.bytes, f"the weights of {self.program.name}")
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
            f" {tally['resident_bytes']} of them from shared memory"
        ]
        return "; not ".join([*lines, *self.declined])

    def times(self) -> str:
        """A position's time as predicted for `rows` rows, and as it was in the last run if there has been one."""
        text = f"predicted {self.schedule.predicted_us:.3g} us a position for {self.wishes.rows} rows"
        if self.last is None or not self.last.positions:
            return text
        us = self.last.seconds / self.last.positions * 1e6
        return f"{text}, measured {us:.3g} us for {self.last.rows} rows over {self.last.positions:,} positions"

    def resident(self, plan: Schedule) -> int:
        """How many of a schedule's blocks the card holds at once."""
        cluster = plan.blocks_per_team if plan.name == "cluster" else 1
        there: int = self.library.resident(self.index, threads=plan.threads, shared=plan.shared_bytes, cluster=cluster)
        return there

    def require_memory(self, needed: int, what: str) -> None:
        """MemoryError where the device has not so many bytes left for something."""
        there = self.library.free_bytes(self.index)
        if needed > there and self.device.type == "cuda":
            # What torch has set aside and does not use; to ask for that takes it a tenth of a millisecond.
            there += torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        if needed > there:
            raise MemoryError(
                f"{what} take {needed / 2**20:,.2f} MiB, and {self.card.name} has {there / 2**20:,.2f} MiB left; make"
                " batch_size or length smaller, or free what else lies there"
            )

    def stream(self) -> int:
        """The caller's current stream."""
        return torch.cuda.current_stream(self.device).cuda_stream if self.device.type == "cuda" else 0

    def start(self, request: Request) -> Run:
        """A run at its first position."""
        return Run(self, request)

    def sample(self, n: int, length: int, seed: int, row_offset: int) -> Tensor | None:
        """The values of a whole run without options, [n, *shape] in the data's space; None where a draw failed.

        The run of the last such call is taken again: to make one takes the host longer than a small model the card.
        """
        run = self._again
        if run is None or (len(run.request.rows), run.request.length) != (n, length):
            run = self._again = self.start(make(self.program, n, seed=seed, length=length, row_offset=row_offset))
        else:
            run.restart(seed, row_offset)
        try:
            run.advance()
        except draws.SamplingError:
            return None
        integers = self.program.value.dtype == "int"
        return space.to_data(self.program, run.results()[0], torch.int64 if integers else torch.float32)

    def resume(self, request: Request, state: Mapping[str, Any]) -> Run:
        """The run that `Run.state_dict` recorded, under the same request."""
        run = Run(self, request)
        run.load_state_dict(state)
        return run
