"""Step programs as data: what docs/step-programs.md specifies, with saving, loading and printing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastar.sampling import codec, instructions
from fastar.sampling.index import Index
from fastar.sampling.instructions import End, Instruction, Loop, When

FORMAT = "fastar step program"
VERSION = 1


@dataclass(frozen=True)
class Value:
    """What one position holds: `channels` integers below `levels`, or floats."""

    dtype: str = "int"
    channels: int = 1
    levels: int | None = None

    @staticmethod
    def from_json(data: Any) -> Value:
        """The value that `vars` gave."""
        return codec.decode(Value, "value", data)


@dataclass(frozen=True)
class Buffer:
    """A float tensor per row; the last dimension of `shape` is the channels, those before it coordinates."""

    name: str
    kind: str
    shape: tuple[int, ...]
    ring: bool = False
    init: str | None = None

    @property
    def width(self) -> int:
        """The number of channels."""
        return self.shape[-1]

    @staticmethod
    def from_json(data: Any) -> Buffer:
        """The buffer that `vars` gave."""
        return codec.decode(Buffer, "buffer", data)


@dataclass(frozen=True)
class _Header:
    # What program.json holds beside the code.
    name: str
    value: Value
    positions: int | None
    limit: int | None
    shape: tuple[int, ...] | None
    layout: str | None
    buffers: tuple[Buffer, ...]


@dataclass(frozen=True)
class Program:
    """A model's sampling loop: buffers per row, weights, and code that draws positions 0, 1, 2, ... in turn."""

    name: str
    value: Value
    positions: int | None
    buffers: tuple[Buffer, ...]
    weights: Mapping[str, Tensor] = field(repr=False)
    code: tuple[Instruction, ...]
    limit: int | None = None
    shape: tuple[int, ...] | None = None
    layout: str | None = None

    def buffer(self, name: str) -> Buffer:
        """The buffer of this name."""
        return {one.name: one for one in self.buffers}[name]

    def with_weights(self, weights: Mapping[str, Tensor]) -> Program:
        """The same program over other weights of the same names, shapes and dtypes."""
        have = {name: (tuple(t.shape), t.dtype) for name, t in self.weights.items()}
        want = {name: (tuple(t.shape), t.dtype) for name, t in weights.items()}
        if have != want:
            wrong = sorted(name for name in {*have, *want} if have.get(name) != want.get(name))
            raise ValueError(
                f"weights: expected the program's names, shapes and dtypes; these differ: {', '.join(wrong)}"
            )
        return replace(self, weights=dict(weights))

    def length(self, length: int | None) -> int:
        """The positions of a run: the program's own, or for an open program what is asked, up to its limit."""
        if self.positions is not None:
            if length not in (None, self.positions):
                raise ValueError(f"length: {self.name} has {self.positions} positions, got {length}")
            return self.positions
        if length is None:
            raise ValueError(f"length: {self.name} is open, so the number of positions has to be given")
        if length < 1 or (self.limit is not None and length > self.limit):
            bound = "at least 1" if self.limit is None else f"1 to {self.limit}"
            raise ValueError(f"length: expected {bound} for {self.name}, got {length}")
        return length

    def __str__(self) -> str:
        return listing(self)

    def to_json(self) -> dict[str, Any]:
        """Everything but the weights' contents."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "positions": self.positions,
            "limit": self.limit,
            "value": vars(self.value),
            "shape": self.shape,
            "layout": self.layout,
            "buffers": [vars(one) for one in self.buffers],
            "code": [one.to_json() for one in self.code],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Program:
        """The program that `to_json` wrote, over these weights; ValueError if it is not a valid one."""
        from fastar.sampling.validate import validate

        if data.get("format") != FORMAT or data.get("version") != VERSION:
            came = f"{data.get('format')!r}, version {data.get('version')!r}"
            raise ValueError(f"program: expected {FORMAT!r}, version {VERSION}, got {came}")
        header = codec.decode(
            _Header, "program", {k: v for k, v in data.items() if k not in ("format", "version", "code")}
        )
        if not isinstance(data.get("code"), list):
            raise ValueError("code: expected a list")
        code = tuple(instructions.from_json(one) for one in data["code"])
        program = Program(**vars(header), weights=dict(weights), code=code)
        validate(program)
        return program

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write program.json and weights.safetensors into the folder, each by a rename, the program last."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        # Weights that share memory (a tied head) are written once each: the file format refuses shared storage.
        weights = {
            name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in self.weights.items()
        }
        save_file(weights, path / "weights.safetensors.new")
        (path / "program.json.new").write_text(json.dumps(self.to_json(), indent=1))
        os.replace(path / "weights.safetensors.new", path / "weights.safetensors")
        os.replace(path / "program.json.new", path / "program.json")

    @staticmethod
    def load(folder: str | os.PathLike[str]) -> Program:
        """The program saved in the folder, validated."""
        path = Path(folder)
        try:
            data = json.loads((path / "program.json").read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path / 'program.json'}: not JSON: {error}") from error
        if not isinstance(data, dict):
            raise ValueError(f"{path / 'program.json'}: expected an object, got {type(data).__name__}")
        return Program.from_json(data, load_file(path / "weights.safetensors"))


def jumps(code: tuple[Instruction, ...]) -> dict[int, int]:
    """For the place of each loop and when, the place of its end, and the other way round."""
    pairs: dict[int, int] = {}
    opened: list[int] = []
    for place, one in enumerate(code):
        if isinstance(one, Loop | When):
            opened.append(place)
        elif isinstance(one, End):
            if not opened:
                raise ValueError(f"code[{place}]: end without a loop or when")
            start = opened.pop()
            pairs[start], pairs[place] = place, start
    if opened:
        raise ValueError(f"code[{opened[-1]}]: {code[opened[-1]].op} is never closed")
    return pairs


def listing(program: Program) -> str:
    """The program as an assembly listing."""
    value = program.value
    what = f"int < {value.levels}" if value.dtype == "int" else value.dtype
    count = program.positions if program.positions is not None else f"open, limit {program.limit}"
    lines = [f"program {program.name}", f"  positions {count}   value {what} x {value.channels}"]
    lines += [f"  shape {list(program.shape)}   layout {program.layout or 'identity'}"] if program.shape else []
    lines.append("weights")
    width = max((len(name) for name in program.weights), default=0)
    for name, t in program.weights.items():
        lines.append(f"  {name:<{width}}  {str(t.dtype).removeprefix('torch.'):<8} {list(t.shape)}")
    lines.append("buffers")
    width = max((len(one.name) for one in program.buffers), default=0)
    for one in program.buffers:
        extra = ("  ring" if one.ring else "") + (f"  init {one.init}" if one.init else "")
        lines.append(f"  {one.name:<{width}}  {one.kind:<7} {list(one.shape)}{extra}")
    lines.append("code")
    depth = 0
    for place, step in enumerate(program.code):
        depth -= isinstance(step, End)
        lines.append(f"  {place:>4}  {'  ' * depth}{_line(step)}".rstrip())
        depth += isinstance(step, Loop | When)
    return "\n".join(lines)


def _line(step: Instruction) -> str:
    if isinstance(step, Loop):
        return f"loop {step.var} < {'length' if step.count is None else step.count}"
    if isinstance(step, When):
        stop = "" if step.stop is None else step.stop
        return f"when {step.index} in {step.start}:{stop}:{step.step}"
    written = ", ".join(str(ref) for ref in step.writes)
    shown = []
    for f in fields(step):
        value = getattr(step, f.name)
        if f.name in ("out", "cell_out") or value is None or value in (f.default, Index()):
            continue
        text = " ".join(str(tap) for tap in value) if isinstance(value, tuple) else str(value)
        shown.append(f"{f.name}={text}")
    return f"{step.op:<14}" + (f"{written} <- " if written else "") + "  ".join(shown)
