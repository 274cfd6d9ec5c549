"""Distances within a buffer: which references cannot meet, and whether a ring still holds what is read from it."""

from __future__ import annotations

from collections.abc import Sequence

from fastar.sampling.index import Index, Ref
from fastar.sampling.instructions import Instruction, TappedLinear
from fastar.sampling.program import Buffer, Program


def distance(write: Index, read: Index) -> int | None:
    """How far the written coordinate is ahead of the one read, where that is the same in every pass."""
    if write.terms != read.terms or write.divisor != read.divisor or (write.const - read.const) % write.divisor:
        return None
    return (write.const - read.const) // write.divisor


def apart(buffer: Buffer, read: Ref, write: Ref, taps: Sequence[tuple[int, ...]] | None = None) -> bool:
    """Whether two references to one buffer share no element, whatever the variables are."""
    behind = distance(write.offset, read.offset)
    if behind is not None and (behind >= read.width or -behind >= write.width):
        return True
    return all(_apart_at(buffer, read.at, write.at, tap) for tap in taps or [(0,) * len(read.at)])


def _apart_at(buffer: Buffer, read: tuple[Index, ...], write: tuple[Index, ...], tap: tuple[int, ...]) -> bool:
    for axis, (one, other, offset) in enumerate(zip(read, write, tap, strict=True)):
        away = distance(other, one)
        if away is None:
            continue
        wrapped = (away - offset) % buffer.shape[0] if buffer.ring and axis == 0 else away - offset
        if wrapped:
            return True
    return False


def check_rings(program: Program) -> None:
    """Refuse reads of a ring that its writes have overwritten, or that run ahead of them."""
    rings = {one.name for one in program.buffers if one.ring}
    written: dict[str, list[tuple[int, Index]]] = {name: [] for name in rings}
    read_at: dict[str, list[tuple[int, Index]]] = {name: [] for name in rings}
    for place, step in enumerate(program.code):
        for ref in step.writes:
            if ref.buffer in rings:
                written[ref.buffer].append((place, ref.at[0]))
        for field, ref in step.reads:
            if ref.buffer in rings:
                read_at[ref.buffer] += [(place, ref.at[0] + offset) for offset in _first_offsets(step, field)]
    for buffer in program.buffers:
        writes = written.get(buffer.name, [])
        if len({at for _, at in writes}) != 1:
            continue
        first, write = writes[0]
        size = buffer.shape[0]
        for place, read in read_at[buffer.name]:
            behind = distance(write, read)
            # Entry 0 exists once written in this pass, and with further coordinates a pass writes only a part of it.
            early = place < first and len(buffer.shape) == 2
            lowest, highest = (1, size) if early else (0, size - 1)
            if behind is not None and not lowest <= behind <= highest:
                raise ValueError(
                    f"code[{place}] {program.code[place].op}: reads {buffer.name}[{read}], {behind} behind what is "
                    f"written; there the ring of {size} holds {lowest} to {highest} behind"
                )


def _first_offsets(step: Instruction, field: str) -> list[int]:
    if isinstance(step, TappedLinear) and field == "source":
        return sorted({tap[0] for tap in step.taps})
    return [0]
