"""Sampler: a model's step program on an executor, with samples in the model's data space."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fastar import _checks
from fastar.sampling import backends, prefill, space
from fastar.sampling.backends import Plan, Run
from fastar.sampling.cost import cost
from fastar.sampling.draws import Options
from fastar.sampling.program import Program
from fastar.sampling.request import Request, make

Progress = bool | Callable[[int, int], object]

# A run is left this often to look for Ctrl-C and to report progress.
_SECONDS = 0.1


@dataclass(frozen=True)
class SampleResult:
    """Samples with what is known of them; log_prob is the model's own, log_weight its part at given positions."""

    values: Tensor
    log_prob: Tensor
    lengths: Tensor
    seed: int | Sequence[int]
    log_weight: Tensor


@dataclass
class _Job:
    # A call of `sample` or `stream` under way: its chunks of rows, those done, and the one that is running.
    requests: list[Request]
    seed: int | Sequence[int]
    return_info: bool = False
    done: list[tuple[Tensor, ...]] = field(default_factory=list)
    run: Run | None = None
    # Positions of that one that a stream has given away.
    streamed: int = 0


class Sampler:
    """Draws from a model on the fastest executor that can run it.

    Args:
        model: a step program, or a model with a method `lower()` that gives one (and `condition(cond, n, length)`, the
            program's inputs, where it takes conditions; and `prefill(values, inputs)`, see `fastar.sampling.prefill`).
        batch_size: rows that run together; more are drawn in chunks.
        dtype: arithmetic of the run; None is the executor's own choice.
        backend: "auto", or an executor by name.
        threads: worker threads, for executors that have some.

    The weights are packed at creation; `refresh` packs them again after training steps. A sampler belongs to one thread
    at a time; any number of samplers may run side by side.
    """

    def __init__(
        self,
        model: Any,
        batch_size: int,
        dtype: torch.dtype | None = None,
        backend: str = "auto",
        threads: int | None = None,
    ) -> None:
        self.model = model
        self.program = _lowered(model)
        self.batch_size = _checks.positive("batch_size", batch_size)
        if threads is not None:
            _checks.positive("threads", threads)
        self.plan = Plan(self.program, dtype, _device(self.program), batch_size, threads)
        _refuse_if_too_large(self.program, self.batch_size)
        self.executor: backends.Executor | None
        self.backend, self.executor, self.declined = backends.choose(self.plan, backend)
        self._contents = prefill.contents(model)
        self._job: _Job | None = None
        self._lock = threading.Lock()
        # Positions that take about _SECONDS, as far as is known: a run is left no more often than it has to be.
        self._pace = 1
        # Rows and positions of a call without options that took less than _SECONDS.
        self._short = (0, 0)

    def sample(
        self,
        n: int | None = None,
        *,
        length: int | Sequence[int] | Tensor | None = None,
        cond: Any = None,
        seed: int | Sequence[int] | None = None,
        row_offset: int = 0,
        uniforms: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        greedy: bool = False,
        given: Tensor | None = None,
        support: tuple[object, object] | Tensor | None = None,
        stop: int | None = None,
        position_offset: int = 0,
        progress: Progress = False,
        return_info: bool = False,
    ) -> Tensor | SampleResult:
        """n samples (batch_size by default), [n, ...] in the data's space, or a SampleResult with `return_info`.

        `given` has the shape of the values, NaN or -1 where unknown, and says their length where `length` does not.
        Positions known before every unknown one are conditioned on exactly; a known position after an unknown one is
        clamped, and `log_weight` is the correction. The random numbers are those of positions from `position_offset`
        on, for a window into something longer. An interrupted call is finished by `resume`.
        """
        plain = (
            given is None
            and support is None
            and uniforms is None
            and stop is None
            and cond is None
            and top_k is None
            and top_p is None
            and not (greedy or progress or return_info or position_offset)
            and type(temperature) is float
            and temperature == 1.0
            and (length is None or type(length) is int)
        )
        if seed is None:
            seed = _fresh_seed()
        if plain and self._short[0]:
            values = self._at_once(n, length, seed, row_offset)
            if values is not None:
                return values
        began = time.perf_counter()
        with self._exclusive():
            self._job = self._prepare(
                n,
                return_info,
                length=length,
                cond=cond,
                seed=seed,
                row_offset=row_offset,
                uniforms=uniforms,
                options=Options(temperature, top_k, top_p, greedy),
                given=given,
                support=support,
                stop=stop,
                position_offset=position_offset,
            )
            result = self._finish(progress)
        if plain and self.backend.sample is not None and time.perf_counter() - began < _SECONDS:
            self._short = (min(len(result), self.batch_size), self.program.length(length))  # type: ignore[arg-type]
        return result

    def stream(
        self,
        chunk: int,
        n: int | None = None,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        greedy: bool = False,
        **options: Any,
    ) -> Iterator[Tensor]:
        """The values of n <= batch_size rows as they are drawn: [n, k] or [n, k, V], k positions in drawing order.

        Takes the options of `sample`. A known prefix that the model takes in at once comes in one piece. A broken-off
        stream is continued by `resume(chunk)`.
        """
        _checks.positive("chunk", chunk)
        if (n or 0) > self.batch_size:
            raise ValueError(f"n: expected at most batch_size, {self.batch_size}, for a stream, got {n}")
        with self._exclusive():
            self._job = self._prepare(n, False, options=Options(temperature, top_k, top_p, greedy), **options)
        return self._chunks(chunk)

    def resume(self, chunk: int | None = None, progress: Progress = False) -> Any:
        """Finish the interrupted call: its result, or with `chunk` an iterator over the values that remain."""
        if self._job is None:
            raise RuntimeError("resume: nothing was interrupted")
        if chunk is not None:
            return self._chunks(_checks.positive("chunk", chunk))
        with self._exclusive():
            return self._finish(progress)

    def refresh(self) -> None:
        """Take the model's weights as they are now."""
        with self._exclusive() as executor:
            if isinstance(self.model, Program):
                raise TypeError("refresh: this sampler was made from a program, which has no model to follow")
            program = _lowered(self.model)
            if replace(program, weights={}) != replace(self.program, weights={}):
                raise ValueError("refresh: the model has changed its shape; make a new Sampler")
            executor.repack(program.weights)
            self.program, self._contents = program, prefill.contents(self.model)

    def state_dict(self) -> dict[str, Any]:
        """The interrupted call, so that another sampler of the same model can finish it after `load_state_dict`."""
        with self._exclusive():
            job = self._job
            if job is None:
                raise RuntimeError("state_dict: no call is under way")
            return {
                "requests": [vars(one) for one in job.requests],
                "seed": job.seed,
                "return_info": job.return_info,
                "done": list(job.done),
                "run": None if job.run is None else job.run.state_dict(),
                "streamed": job.streamed,
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a call that `state_dict` recorded; ValueError for another model's or executor's record."""
        with self._exclusive() as executor:
            try:
                requests = [Request(**one) for one in state["requests"]]
                job = _Job(requests, state["seed"], state["return_info"], list(state["done"]))
                job.streamed = state["streamed"]
                if state["run"] is not None:
                    job.run = executor.resume(requests[len(job.done)], state["run"])
            except (KeyError, TypeError, IndexError) as error:
                raise ValueError(f"state_dict: not a sampler's record ({error})") from error
            self._job = job

    def explain(self) -> str:
        """The executor and why, memory, work per position, and its time: predicted, and measured after a run."""
        c = cost(self.program)
        times = self.backend.times(self._open())
        lines = [
            f"{self.program.name}: {self.backend.name} ({self.backend.describe(self._open())})",
            *(f"  declined  {reason}" for reason in self.declined),
            f"  memory    weights {_mib(c.weight_bytes)}, {_mib(c.row_bytes)} per row, "
            f"{_mib(c.row_bytes * self.batch_size)} for {self.batch_size} rows",
            f"  a step    {c.multiply_adds:,.0f} multiply-adds per row, {c.weights_read:,.0f} weights read, "
            f"{c.instructions:,.1f} instructions",
            *([f"  time      {times}"] if times else []),
        ]
        return "\n".join(lines)

    def close(self) -> None:
        """Give the packed weights and the workers back; the sampler cannot be used afterwards."""
        self.executor = None
        self._job = None

    def _open(self) -> backends.Executor:
        if self.executor is None:
            raise RuntimeError("this Sampler is closed")
        return self.executor

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[backends.Executor]:
        executor = self._open()
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("this Sampler is in use by another thread; make one Sampler per thread")
        try:
            yield executor
        finally:
            self._lock.release()

    def _at_once(self, n: int | None, length: Any, seed: Any, row_offset: Any) -> Tensor | None:
        # A call without options and no longer than one before: it differs in seed and rows alone, so nothing else is
        # looked at again. None where it is not so, or where it fails: the usual way then says why.
        program, sample = self.program, self.backend.sample
        n = self.batch_size if n is None else n
        T = length if program.positions is None else program.positions
        if (
            sample is None
            or not (type(n) is type(T) is type(seed) is type(row_offset) is int)
            or not (0 < n <= self._short[0] and 0 < T <= self._short[1] and length in (None, T))
            or not (0 <= seed < 1 << 64 and 0 <= row_offset < 1 << 64)
            or self.executor is None
            or not self._lock.acquire(blocking=False)
        ):
            return None
        try:
            self._job = None
            return sample(self.executor, n, T, seed, row_offset)
        except BaseException:
            # `resume` begins it again: what is lost is short.
            self._job = self._prepare(n, False, length=length, seed=seed, row_offset=row_offset, options=Options())
            raise
        finally:
            self._lock.release()

    def _prepare(
        self,
        n: int | None,
        return_info: bool,
        *,
        seed: int | Sequence[int] | None = None,
        length: int | Sequence[int] | Tensor | None = None,
        cond: Any = None,
        given: Tensor | None = None,
        **options: Any,
    ) -> _Job:
        # What an unfinished stream computes ahead would only hold this call up.
        if self._job is not None and self._job.run is not None:
            self._job.run.pause()
        n = self.batch_size if n is None else n
        if length is None and self.program.positions is None and isinstance(given, Tensor) and given.dim() > 1:
            length = given.shape[1]
        if seed is None:
            seed = _fresh_seed()
        whole = make(
            self.program,
            n,
            seed=seed,
            length=length,
            given=space.to_positions(self.program, given, "given"),
            inputs=self._inputs(cond, n, length),
            **options,
        )
        if n <= self.batch_size:
            return _Job([whole], seed, return_info)
        chunks = [space.rows(whole, start, self.batch_size) for start in range(0, n, self.batch_size)]
        return _Job(chunks, seed, return_info)

    def _inputs(self, cond: Any, n: int, length: Any) -> Mapping[str, Tensor]:
        names = [one.name for one in self.program.buffers if one.kind == "input"]
        if not names:
            if cond is not None:
                raise ValueError(f"cond: {self.program.name} takes none")
            return {}
        if cond is None:
            raise ValueError(f"cond: {self.program.name} needs it")
        if hasattr(self.model, "condition"):
            inputs: Mapping[str, Tensor] = self.model.condition(cond, n, length)
            return inputs
        if isinstance(cond, Tensor) and len(names) == 1:
            return {names[0]: cond}
        if not isinstance(cond, Mapping):
            raise TypeError(f"cond: expected a tensor for each of {', '.join(names)}, got {type(cond).__name__}")
        return cond

    def _running(self, job: _Job) -> Run:
        if job.run is None:
            request = job.requests[len(job.done)]
            executor = self._open()
            state = prefill.state(self.model, self.program, request, self._contents, executor.dtype)
            job.run = executor.start(request) if state is None else executor.resume(request, state)
        return job.run

    def _finish(self, progress: Progress) -> Tensor | SampleResult:
        job = self._job
        assert job is not None
        total = sum(len(one.rows) * one.length for one in job.requests)
        report = _reporter(progress)
        at_once = progress is False and self._open().interruptible
        while len(job.done) < len(job.requests):
            run = self._running(job)
            while not run.finished:
                began = time.perf_counter()
                done = run.advance(None if at_once else self._pace)
                spent = time.perf_counter() - began
                if done:
                    self._pace = max(1, min(2 * self._pace, int(done * _SECONDS / max(spent, 1e-9))))
                before = sum(len(one.rows) * one.length for one in job.requests[: len(job.done)])
                report(before + len(run.values) * run.done, total)
            job.done.append(run.results())
            job.run = None
        report(total, total)
        self._job = None
        values, log_prob, lengths, log_weight = (
            parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*job.done, strict=True)
        )
        values = space.to_data(self.program, values, self._value_dtype())
        return SampleResult(values, log_prob, lengths, job.seed, log_weight) if job.return_info else values

    def _chunks(self, chunk: int) -> Iterator[Tensor]:
        job = self._job
        assert job is not None
        finished = False
        try:
            while not finished:
                with self._exclusive():
                    if self._job is not job:
                        raise RuntimeError("stream: another call of this Sampler has taken its place")
                    # A new run may stand behind a prefix that was taken in at once: that comes in one piece.
                    most = chunk if job.run is not None else self._running(job).done + chunk
                    run, before = self._running(job), job.streamed
                    run.advance(max(0, before + chunk - run.done), ahead=True)
                    job.streamed = min(run.done, before + most)
                    piece = run.values[:, before : job.streamed].cpu().to(self._value_dtype())
                    finished = run.finished and job.streamed == run.done
                    if finished:
                        self._job = None
                if piece.shape[1]:
                    yield piece[..., 0] if piece.shape[2] == 1 else piece
        finally:
            # Whoever breaks off does not want the rest.
            if job.run is not None:
                job.run.pause()

    def _value_dtype(self) -> torch.dtype:
        if self.program.value.dtype == "int":
            return torch.int64
        return torch.float64 if self.plan.dtype == torch.float64 else torch.float32


def _lowered(model: Any) -> Program:
    if isinstance(model, Program):
        return model
    if not hasattr(model, "lower"):
        raise TypeError(
            f"model: expected a step program or a model with lower(), got {type(model).__name__}; "
            "fastar.sampling.sequence makes a program of a module"
        )
    program = model.lower()
    if not isinstance(program, Program):
        raise TypeError(f"model: lower() of {type(model).__name__} gave {type(program).__name__}, not a Program")
    return program


def _device(program: Program) -> torch.device:
    devices = {t.device for t in program.weights.values()}
    if len(devices) > 1:
        names = " and ".join(sorted(map(str, devices)))
        raise ValueError(f"model: its weights lie on {names}; move them to one device")
    return next(iter(devices), torch.device("cpu"))


def _fresh_seed() -> int:
    return int(torch.randint(0, 2**63 - 1, ()))


def _mib(size: float) -> str:
    return f"{size / 2**20:,.2f} MiB"


def _refuse_if_too_large(program: Program, batch_size: int) -> None:
    c = cost(program)
    needed = c.weight_bytes + c.row_bytes * batch_size
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    if there is not None and needed > there:
        raise MemoryError(
            f"batch_size: {batch_size} rows of {program.name} need {_mib(needed)}, the machine has {_mib(there)}; "
            f"a row takes {_mib(c.row_bytes)}, the weights {_mib(c.weight_bytes)}"
        )


def _reporter(progress: Progress) -> Callable[[int, int], object]:
    if callable(progress):
        return progress
    if not progress:
        return lambda done, total: None

    def bar(done: int, total: int) -> None:
        filled = 40 * done // max(total, 1)
        end = "\n" if done == total else ""
        sys.stderr.write(f"\r[{'#' * filled}{'.' * (40 - filled)}] {done}/{total}{end}")
        sys.stderr.flush()

    return bar
