"""What the models share: their cases, and the check that ours and the loops follow one law."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastar.bench.alternatives import CudaGraph
from fastar.bench.machine import cache_bytes
from fastar.bench.registry import Absent, Call, Case, Contenders, Part
from fastar.sampling import Program, Sampler

# A user's loop: uniform numbers [positions, rows] to symbols [rows, positions], for as many positions as there are.
Loop = Callable[[Tensor], Tensor]

# Symbols of the check, few enough that rounding hardly ever decides one of them.
CHECKED = 2000


@dataclass(frozen=True)
class Workload:
    """A program and how wide and long it runs; loops that follow the same law, and contenders that only take time.

    On a GPU each loop also runs as a CUDA graph, of `captured` positions where the whole would be a hundred thousand
    nodes (None: of all); a loop takes as many positions as it is given uniform numbers for.
    """

    program: Program
    rows: int
    positions: int
    loops: Mapping[str, Loop]
    others: Mapping[str, Call | Part | Absent] = field(default_factory=dict)
    captured: int | None = None


@dataclass(frozen=True)
class Work:
    """Weights read in a step of all rows, products of one row in it, and steps of an iteration."""

    weights: int
    products: int
    steps: int


def case(
    name: str,
    make: Callable[[torch.device], Workload],
    work: Work,
    *,
    rows: int,
    dtype: torch.dtype,
    shapes: str,
    per: int,
    unit: str,
    small: bool = False,
    devices: tuple[str, ...] = ("cpu", "cuda"),
) -> Case:
    """A case of the registry: the whole of Sampler.sample against whole loops."""

    def build(device: torch.device) -> Contenders:
        workload = make(device)
        length = None if workload.program.positions else workload.positions
        if dtype == torch.float32:
            _check(workload, device)
        threads = torch.get_num_threads() if device.type == "cpu" else None
        sampler = Sampler(workload.program, rows, dtype=dtype, threads=threads)
        seeds = itertools.count()

        def ours() -> None:
            sampler.sample(seed=next(seeds), length=length)

        def timed(loop: Loop) -> Call:
            def call() -> None:
                loop(torch.rand(workload.positions, rows, device=device))

            return call

        alternatives: dict[str, Call | Part | Absent] = {key: timed(loop) for key, loop in workload.loops.items()}
        if device.type == "cuda":
            alternatives |= {f"CUDA graph, {key}": _graph(workload, loop) for key, loop in workload.loops.items()}
        return Contenders(ours, {**alternatives, **workload.others})

    return Case(
        name=f"sampling.{name}.{rows}.{str(dtype).removeprefix('torch.')}",
        op="sampling",
        devices=devices,
        dtype=dtype,
        shapes=f"{shapes}, batch {rows}",
        direction="sample",
        bytes=_moved(work.weights * dtype.itemsize, work.steps),
        flops=2 * work.products * rows * work.steps,
        build=build,
        small=small,
        per=per,
        unit=unit,
        rotates=False,
    )


def _graph(workload: Workload, loop: Loop) -> Call | Part:
    count = workload.captured or workload.positions
    u = torch.rand(count, workload.rows, device="cuda")
    graph = CudaGraph(lambda: loop(u))

    def call() -> None:
        u.uniform_()
        graph()

    return call if count == workload.positions else Part(call, workload.positions // count)


def _moved(weights: int, steps: int) -> int:
    # Weights that fit into the last cache come from memory once, larger ones in every step.
    return weights * steps if weights > cache_bytes(torch.device("cpu")) else weights


def draw(logits: Tensor, u: Tensor) -> Tensor:
    """Symbols [rows] from logits [rows, levels]: the first whose cumulative probability exceeds u."""
    levels = logits.shape[-1]
    cumulative = logits.float().softmax(-1).cumsum(-1)
    return torch.searchsorted(cumulative, u[:, None], right=True)[:, 0].clamp_(max=levels - 1)


def random(generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    """Normal weights whose products keep about the size of their inputs."""
    fan_in = shape[-1] if len(shape) > 1 else 16
    return torch.randn(shape, generator=generator) * (scale / fan_in**0.5)


def on(device: torch.device, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights, moved."""
    return {name: weight.to(device) for name, weight in weights.items()}


def _check(workload: Workload, device: torch.device) -> None:
    positions = max(1, min(workload.positions, CHECKED // workload.rows))
    u = torch.rand(workload.positions, workload.rows).clamp(1e-6, 1 - 1e-6)
    sampler = Sampler(workload.program, workload.rows)
    length = None if workload.program.positions else workload.positions
    symbols = sampler.sample(uniforms=u.T[:, :, None].double().contiguous(), length=length, seed=0)
    assert isinstance(symbols, Tensor)
    symbols, layout = symbols.flatten(1), workload.program.layout
    if layout is not None:
        # As they are drawn: an image comes with its channels first.
        symbols = symbols[:, workload.program.weights[layout].long().cpu()]
    for name, loop in workload.loops.items():
        drawn = loop(u[:positions].to(device)).long().cpu()
        if not torch.equal(drawn, symbols[:, :positions].long()):
            raise RuntimeError(f"{name}: draws other symbols than ours from the same uniform numbers")
