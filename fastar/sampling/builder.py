"""Writing step programs by hand or by lowering: names, buffers and nesting, validated when built."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastar.sampling.index import Index, Ref, index, variable
from fastar.sampling.instructions import End, Instruction, Loop, When
from fastar.sampling.program import Buffer, Program, Value
from fastar.sampling.validate import validate


@dataclass(frozen=True)
class Handle:
    """A buffer under construction."""

    buffer: Buffer

    def at(self, *coordinates: int | Index) -> Ref:
        """All channels at these coordinates."""
        return Ref(self.buffer.name, tuple(index(one) for one in coordinates), Index(), self.buffer.width)


class Builder:
    """Collects a program; `build` validates and returns it."""

    def __init__(self, name: str, value: Value, positions: int | None, limit: int | None = None) -> None:
        self.name = name
        self.value = value
        self.positions = positions
        self.limit = limit
        self.weights: dict[str, Tensor] = {}
        self._buffers: dict[str, Buffer] = {}
        self._code: list[Instruction] = []

    def weight(self, name: str, tensor: Tensor) -> str:
        """Enter a weight; the same tensor may come again under its name (a tied head)."""
        held = self.weights.get(name)
        if held is not None and (held.data_ptr() != tensor.data_ptr() or held.shape != tensor.shape):
            raise ValueError(f"weight {name}: entered twice with different tensors")
        self.weights[name] = tensor.detach()
        return name

    def table(self, name: str, entries: list[int]) -> str:
        """Enter an int32 table."""
        return self.weight(name, torch.tensor(entries, dtype=torch.int32))

    def state(self, name: str, *shape: int, ring: bool = False, init: str | None = None) -> Handle:
        """A buffer that persists, zero or `init` at the start."""
        return self._buffer(Buffer(name, "state", shape, ring, init))

    def scratch(self, name: str, width: int) -> Handle:
        """A buffer written before it is read in every pass; the name gets a number where it is taken."""
        unique, number = name, 1
        while unique in self._buffers:
            number += 1
            unique = f"{name}.{number}"
        return self._buffer(Buffer(unique, "scratch", (width,)))

    def input(self, name: str, *shape: int) -> Handle:
        """A buffer that the caller of a run brings."""
        return self._buffer(Buffer(name, "input", shape))

    def _buffer(self, buffer: Buffer) -> Handle:
        if buffer.name in self._buffers:
            raise ValueError(f"buffer {buffer.name}: the name is taken")
        self._buffers[buffer.name] = buffer
        return Handle(buffer)

    def add(self, *steps: Instruction) -> None:
        """Append instructions."""
        self._code.extend(steps)

    @contextlib.contextmanager
    def loop(self, var: str, count: int | None) -> Iterator[Index]:
        """The body runs for var = 0 .. count - 1; count None is the length of the run."""
        self.add(Loop(var, count))
        yield variable(var)
        self.add(End())

    @contextlib.contextmanager
    def when(self, condition: Index, start: int = 0, stop: int | None = None, step: int = 1) -> Iterator[None]:
        """The body runs where the index is in range(start, stop, step)."""
        self.add(When(condition, start, stop, step))
        yield
        self.add(End())

    def build(self, shape: tuple[int, ...] | None = None, layout: str | None = None) -> Program:
        """The program, validated."""
        program = Program(
            name=self.name,
            value=self.value,
            positions=self.positions,
            limit=self.limit,
            shape=shape,
            layout=layout,
            buffers=tuple(self._buffers.values()),
            weights=dict(self.weights),
            code=tuple(self._code),
        )
        validate(program)
        return program
