"""Joining neighbouring instructions of a program: fewer entries, fewer exchanges between an executor's threads.

An activation moves into the linear op before it, a sum becomes its `add`, ``tanh(a) * sigmoid(b)`` a gate. The results
stay what they are, bit for bit; only scratch that is written once and read once, or never, disappears.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from fastar.sampling.index import Ref
from fastar.sampling.instructions import (
    ACTIVATIONS,
    Elementwise,
    End,
    Gate,
    Gather,
    Instruction,
    Linear,
    Loop,
    Norm,
    Store,
    TappedLinear,
    When,
)
from fastar.sampling.program import Program
from fastar.sampling.validate import validate

# What may as well write its result where a copy would put it.
_MOVABLE = (Linear, TappedLinear, Gather, Gate, Norm, Store, Elementwise)
# An entry of the code by the reference that it writes, where it may be taken away.
Producer = Callable[[Ref | None], Instruction | None]


def fuse(program: Program) -> Program:
    """The program with its instructions joined wherever that changes no result."""
    code = list(program.code)
    scratch = {one.name for one in program.buffers if one.kind == "scratch"}
    place = 0
    while place < len(code):
        joined = _join(code, place, scratch)
        if joined is None:
            place += 1
        else:
            new, gone = joined
            code[place] = new
            code = [step for k, step in enumerate(code) if k not in gone]
            # The joined entry may itself be joined by what follows, or take more in.
            place -= len(gone)
    code, weights = _without_unread(code, program, scratch)
    used = {ref.buffer for step in code for _, ref in step.refs()}
    buffers = tuple(one for one in program.buffers if one.kind != "scratch" or one.name in used)
    fused = replace(program, code=tuple(code), buffers=buffers, weights=weights)
    validate(fused)
    return fused


def _without_unread(
    code: list[Instruction], program: Program, scratch: set[str]
) -> tuple[list[Instruction], dict[str, Tensor]]:
    # What nobody reads is not computed, such as the residual of a WaveNet's last layer; its weights go with it.
    gone: list[Instruction] = []
    found = True
    while found:
        reads = [ref for step in code for _, ref in step.reads]
        unread = [
            step
            for step in code
            if isinstance(step, Linear | TappedLinear | Elementwise | Gate | Gather | Norm)
            and step.out.buffer in scratch
            and not any(_meet(ref, step.out) for ref in reads)
        ]
        found = bool(unread)
        gone += unread
        code = [step for step in code if not any(step is one for one in unread)]
    dropped = {name for step in gone for name in _names(step)} - {name for step in code for name in _names(step)}
    return code, {name: t for name, t in program.weights.items() if name not in dropped}


def _names(step: Instruction) -> set[str]:
    # Weights that a step uses, among other words.
    return {value for value in vars(step).values() if isinstance(value, str)}


def _join(code: list[Instruction], place: int, scratch: set[str]) -> tuple[Instruction, set[int]] | None:
    step = code[place]
    if not isinstance(step, Elementwise) or step.spans is not None or (step.alpha, step.beta) != (1.0, 0.0):
        return None
    found: dict[Ref, int] = {}

    def producer(ref: Ref | None) -> Instruction | None:
        at = None if ref is None else _producer(code, place, ref, scratch)
        if at is None or ref is None:
            return None
        found[ref] = at
        return code[at]

    for rule in (_activation, _sum, _gate):
        found.clear()
        joined = rule(step, producer)
        if joined is not None:
            new, taken = joined
            return new, {found[ref] for ref in taken}
    return None


def _producer(code: list[Instruction], place: int, ref: Ref, scratch: set[str]) -> int | None:
    # Where the reference is written, if it is read here only, and what is written there can as well be written here.
    if ref.buffer not in scratch or sum(_meet(one, ref) for step in code for _, one in step.refs()) != 2:
        return None
    changed: set[str] = set()
    for before in range(place - 1, -1, -1):
        step = code[before]
        if isinstance(step, Loop | When | End):
            return None
        if step.writes == (ref,):
            reads = {one.buffer for _, one in step.reads}
            return None if reads & changed else before
        changed |= {one.buffer for one in step.writes}
    return None


def _meet(one: Ref, other: Ref) -> bool:
    # Whether two references may share channels.
    if one.buffer != other.buffer:
        return False
    a, b = one.offset.constant, other.offset.constant
    return a is None or b is None or (a < b + other.width and b < a + one.width)


def _plain(step: Instruction | None, function: str) -> Ref | None:
    # The argument of an elementwise function without scaling.
    if not isinstance(step, Elementwise) or step.function != function or step.spans is not None:
        return None
    return step.a if (step.alpha, step.beta) == (1.0, 0.0) else None


def _activation(step: Elementwise, producer: Producer) -> tuple[Instruction, list[Ref]] | None:
    if step.function not in ACTIVATIONS:
        return None
    one = producer(step.a)
    joined: Instruction | None = None
    if isinstance(one, Linear | TappedLinear) and one.activation == "none":
        joined = replace(one, out=step.out, activation=step.function)
    elif step.function == "none" and isinstance(one, _MOVABLE) and getattr(one, "spans", None) is None:
        joined = replace(one, out=step.out)
    return (joined, [step.a]) if joined is not None and _separate(joined) else None


def _sum(step: Elementwise, producer: Producer) -> tuple[Instruction, list[Ref]] | None:
    if step.function != "add" or step.b is None:
        return None
    for mine, other in ((step.a, step.b), (step.b, step.a)):
        one = producer(mine)
        if not isinstance(one, Gather | Linear | TappedLinear) or one.add is not None:
            continue
        if isinstance(one, Gather) or one.activation == "none":
            joined: Instruction = replace(one, out=step.out, add=other)
            if _separate(joined):
                return joined, [mine]
    return None


def _gate(step: Elementwise, producer: Producer) -> tuple[Instruction, list[Ref]] | None:
    if step.function != "mul" or step.b is None:
        return None
    for a, b in ((step.a, step.b), (step.b, step.a)):
        second = producer(b)
        linear, gate = _plain(second, "silu"), _plain(second, "sigmoid")
        inner = None if gate is None else _plain(producer(a), "tanh")
        candidates: list[tuple[Instruction, list[Ref]]] = []
        if linear is not None:
            candidates.append((Gate(step.out, "silu", a, linear), [b]))
        if gate is not None and inner is not None:
            candidates.append((Gate(step.out, "tanh", inner, gate), [a, b]))
        if gate is not None:
            candidates.append((Gate(step.out, "linear", a, gate), [b]))
        for joined, taken in candidates:
            if _separate(joined):
                return joined, taken
    return None


def _separate(step: Instruction) -> bool:
    # Whether what is read lies elsewhere than what is written, but for operands that may share its place.
    (out,) = step.writes
    return all(ref == out and name in step.in_place for name, ref in step.reads if ref.buffer == out.buffer)
