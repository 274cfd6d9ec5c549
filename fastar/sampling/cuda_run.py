"""A run of the cuda executor: what a kernel borrows, how it is waited for, cancelled and taken up again."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastar import native
from fastar.sampling import cuda_failure, cuda_plan
from fastar.sampling.cpu import Spent
from fastar.sampling.cuda_failure import Reached
from fastar.sampling.philox import as_int64
from fastar.sampling.reference import fingerprint
from fastar.sampling.request import Request

if TYPE_CHECKING:
    from fastar.sampling.cuda import Cuda

# A kernel under way looks about this often whether it is still wanted: reading a word of the host takes it 1 us.
_REPORT_US = 1000.0
# A run that completes nothing for so many seconds is taken for stuck.
_PATIENCE = 30.0
# The host asks in a tight loop for so many seconds, and from then on sleeps in between.
_EAGER = 1e-3


class Run:
    """A run of the cuda executor: values and sums so far, and the device memory behind them.

    `advance` waits for what it asks for. `launch` only enqueues, on the caller's current stream, and `settle` waits; a
    CUDA graph can capture `rewind` and `launch`. A run that is let go of is cancelled.
    """

    def __init__(self, executor: Cuda, request: Request) -> None:
        self.executor = executor
        self.program = executor.program
        self.request = request
        device, plan, packed = executor.device, executor.schedule, executor.packed
        n, T, V = len(request.rows), request.length, self.program.value.channels
        self._teams = -(-n // plan.rows_per_team)
        scores = packed.score_bytes(
            rows=plan.rows_per_team, threads=plan.threads, blocks=self._teams * plan.blocks_per_team
        )
        self._refuse_too_many_rows()
        numbers = n * (packed.fast + packed.slow)
        flags = packed.flag_words(teams=self._teams) if plan.name == "grid" else 0
        executor.require_memory(
            4 * (numbers + flags) + 8 * n * (T * V + 3) + scores, f"{n} rows of {self.program.name}"
        )
        self._make_state(n, T, V)
        # Beside the rows' numbers the counters of a grid's edges, which begin at zero as well.
        self._memory = torch.empty(numbers + flags, device=device)
        self._arena = self._memory[:numbers].view(n, packed.fast + packed.slow)
        self._scores = torch.empty(scores, dtype=torch.uint8, device=device) if scores else None
        # Words that the kernel reads and writes while it runs: whether it is cancelled, and how far each team is.
        self._words = self._on_host(1 + self._teams, dtype=torch.int32)
        # A copy of the values that can be read while the kernel goes on.
        self._handed: Tensor | None = None
        self._spent = Spent(n)
        # What ends a launch that nobody has waited for.
        self._flight: weakref.finalize[..., Run] | None = None
        self._stream = 0
        # Positions complete, and how many will be when what is enqueued has ended.
        self.done = self._target = 0
        # As the program names them, in the order in which the native part numbers them.
        self._variables: dict[str, int] = {}
        for step in self.program.code:
            if hasattr(step, "var"):
                self._variables.setdefault(step.var, len(self._variables))
        self._record = self._make_record(n, T)
        self.rewind()

    def _make_state(self, n: int, T: int, V: int) -> None:
        # What a run begins with and what comes of it, in one stretch: each copy between host and device takes as long
        # as many steps of a small program.
        request, device = self.request, self.executor.device
        progress = torch.zeros(self._teams, native.core().CUDA_PROGRESS_BYTES, dtype=torch.uint8)
        self.executor.packed.stand(progress.data_ptr(), self._teams, 0 if self.program.code else -1, 0, [])
        self._progress_bytes = progress.numel()
        begins = [progress.flatten(), request.lengths.view(torch.uint8), torch.zeros(16 * n, dtype=torch.uint8)]
        head = sum(one.numel() for one in begins)
        whole = torch.cat([*begins, request.rows.view(torch.uint8), request.seeds.view(torch.uint8)]).to(device)
        self._begin, self._names = whole[:head], whole[head:].view(torch.int64).view(2, n)
        self._state = torch.empty(head + 8 * n * T * V, dtype=torch.uint8, device=device)
        self._values, self.log_prob, self.lengths, self.log_weight = self._outcome(self._state)

    def _outcome(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        n, words = len(self.request.rows), state[self._progress_bytes :].view(torch.float64)
        values = words[3 * n :].view(n, self.request.length, self.program.value.channels)
        return values, words[n : 2 * n], words[:n].view(torch.int64), words[2 * n : 3 * n]

    def results(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """values, log_prob, lengths and log_weight on the host, by one copy."""
        return self._outcome(self._state.to("cpu", copy=True))

    def _on_host(self, *shape: int, dtype: torch.dtype) -> Tensor:
        # The card reaches pinned memory under the same address.
        return torch.zeros(shape, dtype=dtype, pin_memory=self.executor.device.type == "cuda")

    def _refuse_too_many_rows(self) -> None:
        executor, rows = self.executor, len(self.request.rows)
        reason = cuda_plan.why_not_resident(executor.schedule, rows, executor.card, executor.resident)
        if reason is not None:
            raise ValueError(f"rows: {reason}; make an executor with rows={rows}")

    def rewind(self) -> None:
        """Back to the first position: enqueued on the current stream, like `launch`, and for the same uses."""
        self.pause()
        self._state[: len(self._begin)].copy_(self._begin)
        self._values.zero_()
        self._memory.zero_()
        executor, packed = self.executor, self.executor.packed
        for number, one in enumerate(self.program.buffers):
            begin, size = packed.buffers[number]
            if begin >= 0 and number in executor.initial:
                self._arena[:, begin : begin + size] = executor.initial[number]
            elif begin >= 0 and one.kind == "scratch" and executor.library.is_twin:
                # Nobody may read it before it was written: on the twin whoever does finds out.
                self._arena[:, begin : begin + size] = float("nan")
        self._record["turn"] = 0
        self._stand_at(0, self.request.lengths)

    def restart(self, seed: int, row_offset: int) -> None:
        """Back to the first position, to draw with another seed, for rows from `row_offset` on."""
        # Sums of integers wrap, as the numbers of rows do.
        rows = torch.arange(len(self.request.rows)) + as_int64(row_offset, "row_offset")
        seeds = torch.full_like(rows, as_int64(seed))
        self.request = replace(self.request, rows=rows, seeds=seeds)
        self._names.copy_(torch.stack((rows, seeds)))
        self.rewind()

    def _make_record(self, n: int, T: int) -> dict[str, Any]:
        request, device, plan = self.request, self.executor.device, self.executor.schedule

        def ready(name: str, t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
            if t is None:
                return None
            if t.device not in (device, torch.device("cpu")):
                raise ValueError(f"{name}: expected a tensor on {device} or on the cpu, got one on {t.device}")
            return t.to(device, dtype).contiguous()

        def address(t: Tensor | None) -> int | None:
            return None if t is None else t.data_ptr()

        held = {
            "row_numbers": self._names[0],
            "seeds": self._names[1],
            "given": ready("given", request.given, torch.float64),
            "support": ready("support", request.levels, torch.uint8),
            "low": ready("support", request.low, torch.float64),
            "high": ready("support", request.high, torch.float64),
            "uniforms": ready("uniforms", request.uniforms, torch.float64),
            "lengths": self.lengths,
            "values": self._values,
            "log_prob": self.log_prob,
            "log_weight": self.log_weight,
            "stretch": self.executor.stretch,
            "arena": self._arena,
            "flags": self._memory[self._arena.numel() :],
            "progress": self._state,
            "scores": self._scores,
            "cancel": self._words,
            "reached": self._words[1:],
        }
        names = [one.name for one in self.program.buffers if one.kind == "input"]
        inputs = [ready(f"inputs[{name!r}]", request.inputs[name], torch.float32) for name in names]
        # The kernels borrow all of these.
        self._held = (held, inputs)
        return {
            **{name: address(t) for name, t in held.items()},
            "inputs": [(one.data_ptr(), one[0].numel() if n else 0) for one in inputs if one is not None],
            "rows": n,
            "schedule": plan.name,
            "rows_per_team": plan.rows_per_team,
            "blocks_per_team": plan.blocks_per_team,
            "threads": plan.threads,
            "length": T,
            "channels": self.program.value.channels,
            "levels": self.program.value.levels or 0,
            **request.drawing(),
            "report_every": max(1, int(_REPORT_US / max(plan.predicted_us, 1e-3))),
            "handed": None,
        }

    @property
    def values(self) -> Tensor:
        """What was drawn, up to `done` positions; on the host while the kernel goes on, else on the device."""
        return self._values if self._flight is None or self._handed is None else self._handed

    @property
    def finished(self) -> bool:
        """Whether every position is complete, or every row has ended."""
        return self.done == self.request.length or (self._flight is None and self._ended)

    def launch(self, positions: int | None = None) -> None:
        """Enqueue as many positions more (None: all) on the caller's current stream; nothing is waited for.

        Nor is anything allocated, so a CUDA graph can capture it, behind `rewind` where each replay shall begin anew.
        """
        executor, length = self.executor, self.request.length
        target = length if positions is None else min(length, self._target + positions)
        self._record["target"] = target
        capturing = executor.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        stream = executor.stream()
        if not capturing:
            if self._flight is not None and stream != self._stream:
                self.settle()
            self._words[1:] = -1
        executor.packed.run(executor.library, executor.index, self._record, stream)
        self._record["turn"] = 1 - self._record["turn"]
        self._target = target
        if capturing or self._flight is not None:
            return
        self._stream = stream
        held = (self._held, self._handed)
        self._flight = weakref.finalize(self, _end, executor.library, executor.index, stream, self._words, held)

    def advance(self, positions: int | None = None, ahead: bool = False) -> int:
        """Run until this many more positions are complete (None: all); returns how many were.

        With `ahead` the kernel goes on to the end, while `values` holds on the host what is complete. An exception from
        outside, such as Ctrl-C, ends the kernel and leaves the run where it is: it can be advanced again.
        """
        if self.executor.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("advance: waits, which a CUDA graph cannot; capture rewind() and launch() instead")
        if positions == 0 or self.finished:
            return 0
        before, length, began = self.done, self.request.length, time.perf_counter()
        wanted = length if positions is None else min(length, before + positions)
        if self._target < wanted:
            if ahead:
                self._hand_over(wanted - before)
            self.launch(None if ahead else wanted - self._target)
        self._wait(wanted)
        self._spent.seconds += time.perf_counter() - began
        self._spent.positions += self.done - before
        self.executor.last = self._spent
        return self.done - before

    def _hand_over(self, every: int) -> None:
        if self._handed is None:
            self._handed = self._on_host(*self._values.shape, dtype=torch.float64)
            self._record["handed"] = self._handed.data_ptr()
        self._handed.copy_(self._values)
        self._record["report_every"] = min(self._record["report_every"], every)

    def _wait(self, wanted: int) -> None:
        library, index, stream, reached = self.executor.library, self.executor.index, self._stream, self._words[1:]
        began = looked = time.monotonic()
        stand, idle = reached.tolist(), 0.0
        try:
            while not library.is_done(index, stream):
                now = time.monotonic()
                # A process that was stopped meanwhile has not waited: a look counts for a second at most.
                idle, looked = idle + min(1.0, now - looked), now
                at = reached.tolist()
                # A team that has ended says so beyond every position; where all have, so will the kernel.
                if wanted < self._target and wanted <= min(at) < native.core().CUDA_ALL_REACHED:
                    self.done = wanted
                    return
                if at != stand or max(at) < 0:
                    idle, stand = 0.0, at
                if idle > _PATIENCE:
                    self._give_up()
                time.sleep(0.0 if now - began < _EAGER else min(1e-3, (now - began) / 16))
        except KeyboardInterrupt:
            self.pause()
            raise
        self._land()

    def _give_up(self) -> None:
        assert self._flight is not None
        self._words[0] = 1
        self._flight.detach()
        # A kernel that may write on keeps its memory.
        _LOST.append((self._held, self._handed))
        raise RuntimeError(
            f"{self.program.name}: no position was completed for {_PATIENCE:.0f} seconds, so the kernel is stuck; its"
            " memory is kept, and the device may need a new process"
        )

    def settle(self) -> None:
        """Wait for what was enqueued, or captured and replayed, and see where it got to; raises what went wrong."""
        if self._flight is not None:
            self._wait(self._target)
        else:
            self._land()

    def _land(self) -> None:
        if self._flight is not None:
            flight, self._flight = self._flight, None
            flight.detach()
            self.executor.library.wait(self.executor.index, self._stream)
        self._words[0] = 0
        reached, lengths = self._reached()
        self._stand_at(max((done for _, done, _, _ in reached), default=self.request.length), lengths)
        cuda_failure.raise_first(self.program, reached, self._variables, self._buffer)

    def _stand_at(self, done: int, lengths: Tensor) -> None:
        self.done = self._target = done
        self._ended = bool((lengths <= done).all())

    def pause(self) -> None:
        """End a kernel under way after the position that it is at; the next `advance` goes on from there."""
        if self._flight is None:
            return
        self._words[0] = 1
        self._land()
        if self._teams > 1:
            # Each ended where it was: all go to where the first of them is.
            self.launch(0)
            self._land()

    def _reached(self) -> tuple[Reached, Tensor]:
        # Of each team, and the rows' lengths.
        host = self._state[: self._progress_bytes + 8 * len(self.request.rows)].cpu()
        reached: Reached = self.executor.packed.progress(host.data_ptr(), self._teams)
        return reached, host[self._progress_bytes :].view(torch.int64)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run on another machine needs to continue this one, beside the request."""
        self.pause()
        # Teams whose rows have all ended stopped early; the others stand alike.
        place, _, variables, _ = max(self._reached()[0], key=lambda one: one[1])
        return {
            "program": fingerprint(self.program),
            "place": len(self.program.code) if place < 0 else place,
            "done": self.done,
            "variables": {name: variables[number] for name, number in self._variables.items()},
            "buffers": {name: self._buffer(number).to("cpu", copy=True) for number, name in self._stored()},
            **dict(zip(_TENSORS, self.results(), strict=True)),
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
        progress = torch.zeros(self._progress_bytes, dtype=torch.uint8)
        self.executor.packed.stand(progress.data_ptr(), self._teams, place, state["done"], variables)
        self._state[: self._progress_bytes].copy_(progress)
        self._stand_at(state["done"], state["lengths"])

    def _stored(self) -> list[tuple[int, str]]:
        return [(number, one.name) for number, one in enumerate(self.program.buffers) if one.kind != "input"]

    def _buffer(self, number: int) -> Tensor:
        begin, size = self.executor.packed.buffers[number]
        shape = (len(self.request.rows), *self.program.buffers[number].shape)
        return self._arena[:, begin : begin + size].view(shape)


def _end(library: Any, index: int, stream: int, words: Tensor, held: object) -> None:
    # `held` is what the kernel borrows until then.
    words[0] = 1
    with contextlib.suppress(RuntimeError):
        library.wait(index, stream)


_LOST: list[object] = []
# In the order of `results`.
_TENSORS = ("values", "log_prob", "lengths", "log_weight")
