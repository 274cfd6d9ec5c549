"""The executors that a Sampler may choose from, each with its reason to decline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fastar.sampling import cpu, cuda, cuda_plan
from fastar.sampling.program import Program
from fastar.sampling.reference import Reference
from fastar.sampling.request import Request


class Run(Protocol):
    """A run under way. Values are float64 or int64 [n, T, V], sums float64 [n], lengths int64 [n]; `results` gives
    values, log_prob, lengths and log_weight on the host.

    An executor on a device of its own may go on beyond what `advance` asks for, where it is called with `ahead`, until
    `pause`; `values` up to `done` can be read at any time, the rest when it has stopped.
    """

    log_prob: Tensor
    log_weight: Tensor
    lengths: Tensor

    @property
    def values(self) -> Tensor: ...

    @property
    def done(self) -> int: ...

    @property
    def finished(self) -> bool: ...

    def advance(self, positions: int | None = None, ahead: bool = False) -> int: ...

    def pause(self) -> None: ...

    def results(self) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...

    def state_dict(self) -> dict[str, Any]: ...


class Executor(Protocol):
    """A program, packed for a device; `dtype` is that of the buffers in its runs' records.

    `interruptible` says whether Ctrl-C ends an `advance` of any length at once.
    """

    dtype: torch.dtype
    interruptible: bool

    def start(self, request: Request) -> Run: ...

    def resume(self, request: Request, state: Mapping[str, Any]) -> Run: ...

    def repack(self, weights: Mapping[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Plan:
    """What a Sampler asks an executor for."""

    program: Program
    dtype: torch.dtype | None
    device: torch.device
    batch_size: int
    threads: int | None


@dataclass(frozen=True)
class Backend:
    """An executor by name: why it cannot run a plan (None where it can), and how it is made."""

    name: str
    declines: Callable[[Plan], str | None]
    make: Callable[[Plan], Executor]
    describe: Callable[[Executor], str] = lambda executor: ""
    # A step's time, predicted and, after a run, measured; empty where an executor knows neither.
    times: Callable[[Executor], str] = lambda executor: ""
    # (executor, n, length, seed, row_offset): a whole run without options in one call, [n, *shape] in the data's space;
    # None where a draw failed.
    sample: Callable[[Executor, int, int, int, int], Tensor | None] | None = None


def _reference_declines(plan: Plan) -> str | None:
    if plan.dtype not in (None, torch.float32, torch.float64):
        return f"runs in float32 and float64, not {plan.dtype}"
    if plan.threads is not None:
        return "takes no number of threads"
    return None


def _reference(plan: Plan) -> Executor:
    return Reference(plan.program, plan.dtype or torch.float32, plan.device)


_PRECISIONS = {None: "float32", torch.float32: "float32", torch.bfloat16: "bfloat16", torch.int8: "int8"}


def _cpu_declines(plan: Plan) -> str | None:
    if plan.device.type != "cpu":
        return f"runs on the cpu, not on {plan.device}"
    if plan.dtype not in _PRECISIONS:
        return f"keeps weights in float32, bfloat16 or int8, not {plan.dtype}"
    return cpu.why_not(plan.program)


def _cpu(plan: Plan) -> Executor:
    return cpu.Cpu(plan.program, _PRECISIONS[plan.dtype], plan.threads, plan.batch_size)


def _describe_cpu(executor: Executor) -> str:
    assert isinstance(executor, cpu.Cpu)
    return executor.describe()


def _times_of_cpu(executor: Executor) -> str:
    assert isinstance(executor, cpu.Cpu)
    return executor.times()


def _sample_on_cpu(executor: Executor, n: int, length: int, seed: int, row_offset: int) -> Tensor | None:
    assert isinstance(executor, cpu.Cpu)
    return executor.sample(n, length, seed, row_offset)


_CUDA_PRECISIONS = {**_PRECISIONS, torch.float16: "float16"}


def _cuda_declines(plan: Plan) -> str | None:
    if plan.threads is not None:
        return "takes no number of threads"
    if plan.dtype not in _CUDA_PRECISIONS:
        return f"keeps weights in float32, bfloat16, float16 or int8, not {plan.dtype}"
    return cuda.why_not_on(plan.device) or cuda.why_not(plan.program)


def _cuda(plan: Plan) -> Executor:
    return cuda.Cuda(plan.program, _CUDA_PRECISIONS[plan.dtype], plan.device, plan.batch_size)


def _describe_cuda(executor: Executor) -> str:
    assert isinstance(executor, cuda.Cuda)
    return executor.describe()


def _times_of_cuda(executor: Executor) -> str:
    assert isinstance(executor, cuda.Cuda)
    return executor.times()


def _sample_on_cuda(executor: Executor, n: int, length: int, seed: int, row_offset: int) -> Tensor | None:
    assert isinstance(executor, cuda.Cuda)
    return executor.sample(n, length, seed, row_offset)


# Fastest first: `backend="auto"` takes the first that does not decline.
BACKENDS: list[Backend] = [
    Backend("cuda", _cuda_declines, _cuda, _describe_cuda, _times_of_cuda, _sample_on_cuda),
    Backend("cpu", _cpu_declines, _cpu, _describe_cpu, _times_of_cpu, _sample_on_cpu),
    Backend("reference", _reference_declines, _reference, lambda e: "a loop in Python over torch"),
]


def choose(plan: Plan, name: str) -> tuple[Backend, Executor, list[str]]:
    """The backend of this name, or for "auto" the first that can run the plan; and why those before it declined."""
    names = [one.name for one in BACKENDS]
    if name not in ("auto", *names):
        raise ValueError(f"backend: expected auto, {', '.join(names)}, got {name!r}")
    declined: list[str] = []
    for one in BACKENDS:
        if name in ("auto", one.name):
            reason = one.declines(plan)
            if reason is None:
                try:
                    return one, one.make(plan), declined
                except cuda_plan.DoesNotFitError as error:
                    reason = str(error)
            declined.append(f"{one.name}: {reason}")
    raise RuntimeError(f"backend: none can run {plan.program.name} ({'; '.join(declined)})")
