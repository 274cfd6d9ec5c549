"""Count what the kernels of one file of kernels/ load, store and multiply, as one card would run them, without a GPU.

    TRITON_INTERPRET=1 python count_kernels.py masked_conv2d 90 [PROGRAMS]

Writes one JSON object per launch of the file's `compile_cases`, whose sizes are those that matter. Triton's interpreter
runs the kernel's own code on the card's tiles: every element that a load or store touches counts, masked ones do not,
and a product of tiles counts its multiply-adds twice. Of a launch with more programs than PROGRAMS, that many are run,
drawn at random with a fixed seed, and the sums are scaled; programs differ at edges alone.

Tensors of the meta device are replaced by zeros. A tensor whose values say what is loaded, as a list of blocks does,
has to lie on the CPU in the file's cases.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import math
import os
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from triton.runtime.interpreter import interpreter_builder

from fastar.kernels import _launch
from fastar.kernels._launch import Launch

TARGETS = {80: _launch.SM80, 90: _launch.SM90, 100: _launch.SM100}


@dataclasses.dataclass
class Count:
    """The sums over one launch: bytes between the kernel and memory (or its caches), and operations in products."""

    kernel: str
    programs: int
    loaded: float = 0
    stored: float = 0
    operations: float = 0


def count(launch: Launch, most: int) -> Count:
    """Run at most `most` of the launch's programs and count; values are not computed, results are not to be used."""
    grid = (*launch.grid, *(1,) * (3 - len(launch.grid)))
    programs = math.prod(grid)
    found = Count(launch.kernel.__name__, programs)
    chosen = range(programs) if programs <= most else random.Random(0).sample(range(programs), most)
    if not chosen:
        return found
    with _counting(found, [tuple(map(int, np.unravel_index(one, grid))) for one in chosen], grid):
        launch.kernel[(len(chosen),)](**{name: _held(value) for name, value in launch.arguments.items()})
    for field in ("loaded", "stored", "operations"):
        setattr(found, field, getattr(found, field) * programs / len(chosen))
    return found


def _held(value: Any) -> Any:
    if not (isinstance(value, torch.Tensor) and value.is_meta):
        return value
    extent = 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    return torch.zeros(max(extent, 1), dtype=value.dtype).as_strided(value.shape, value.stride())


@contextlib.contextmanager
def _counting(found: Count, places: list[tuple[int, ...]], grid: tuple[int, ...]) -> Iterator[None]:
    builder = interpreter_builder

    def touched(pointers: Any, mask: Any) -> int:
        elements = int(np.broadcast_to(mask.data, pointers.data.shape).sum())
        return elements * max(1, pointers.get_element_ty().primitive_bitwidth // 8)

    def load(access: Callable[..., Any], pointers: Any, mask: Any, *rest: Any) -> Any:
        found.loaded += touched(pointers, mask)
        return access(pointers, mask, *rest)

    def store(access: Callable[..., Any], pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        found.stored += touched(pointers, mask)
        return access(pointers, value, mask, *rest)

    def dot(access: Callable[..., Any], a: Any, b: Any, accumulator: Any, *rest: Any) -> Any:
        found.operations += 2 * math.prod(a.data.shape) * b.data.shape[-1]
        return accumulator

    def at_its_place(access: Callable[..., Any], number: int, *_: int) -> None:
        builder.grid_dim = grid
        access(*places[number])

    replaced = {
        "create_masked_load": load,
        "create_masked_store": store,
        "create_dot": dot,
        "set_grid_idx": at_its_place,
    }
    before = {name: getattr(builder, name) for name in replaced}
    for name, function in replaced.items():
        setattr(builder, name, lambda *args, _new=function, _old=before[name], **kw: _new(_old, *args, **kw))
    try:
        yield
    finally:
        for name, access in before.items():
            setattr(builder, name, access)


def counts(module_name: str, capability: int, most: int, only: str = "") -> Iterator[tuple[str, Count]]:
    """Each case's name with what each of its launches does on this card; `only` cases whose names begin so."""
    module = importlib.import_module(f"fastar.kernels.{module_name}")
    for case, call in module.compile_cases():
        if not case.startswith(only):
            continue
        with _launch.recording(TARGETS[capability]) as launches:
            call()
        for launch in launches:
            yield case, count(launch, most)


def main(module_name: str, capability: int, most: int) -> None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise SystemExit("the kernels are counted by Triton's interpreter: set TRITON_INTERPRET=1")
    # Divisions of zeros by zeros are no news: the inputs hold nothing else.
    np.seterr(all="ignore")
    torch.set_num_threads(1)
    for case, found in counts(module_name, capability, most):
        print(json.dumps({"module": module_name, "case": case, **dataclasses.asdict(found)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 64)
