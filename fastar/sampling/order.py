"""Whether a program's values come in order: positions 0, 1, 2, ... once each, none read before it exists.

The loops are walked as a run would walk them, but only where they hold draws; what merely reads is checked by bounds.
"""

from __future__ import annotations

import math

from fastar.sampling.index import Index
from fastar.sampling.instructions import Draw, Emit, Instruction, Loop, When
from fastar.sampling.program import Program, jumps

# An open loop is walked this many times past the last constant that a `when` compares with.
_OPEN_PASSES = 8
# A walk longer than this per position is refused: real programs stay within the loops around their draws.
_STEPS_PER_POSITION = 256


def check(program: Program) -> None:
    """ValueError that names the entry where the order breaks."""
    walk = _Walk(program)
    walk.block(0, len(program.code))
    if program.positions is not None and walk.done != program.positions:
        raise ValueError(f"code: {walk.done} positions are drawn, expected {program.positions}")


class _Walk:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.jumps = jumps(program.code)
        self.open_passes = _passes(program)
        self.budget = 10_000 + _STEPS_PER_POSITION * (program.positions or self.open_passes)
        self.variables: dict[str, int] = {}
        # The variables of loops that hold no draw, and so are not walked: they keep their whole range.
        self.ranges: dict[str, tuple[float, float]] = {}
        self.done = 0
        values = [isinstance(one, Draw | Emit) and getattr(one, "out", None) is None for one in program.code]
        reads = [getattr(one, "position", None) is not None for one in program.code]
        self.values_before = _sums(values)
        self.reads_before = _sums(reads)

    def block(self, start: int, stop: int) -> None:
        place = start
        while place < stop:
            step = self.program.code[place]
            if isinstance(step, Loop | When):
                end = self.jumps[place]
                if self.reads_before[end] > self.reads_before[place]:
                    self.nest(step, place, end)
                place = end
            elif getattr(step, "position", None) is not None:
                self.value(place, step)
            place += 1

    def spend(self, place: int) -> None:
        self.budget -= 1
        if self.budget < 0:
            raise ValueError(f"code[{place}]: the loops around the draws take too many passes for so few positions")

    def nest(self, step: Loop | When, place: int, end: int) -> None:
        draws = self.values_before[end] > self.values_before[place]
        if isinstance(step, When):
            self.spend(place)
            low, high = self.bounds(step.index)
            if low != high or step.holds(int(low)):
                if low != high and draws:
                    raise ValueError(f"code[{place}] when: its draws depend on a loop that holds none of its own")
                self.block(place + 1, end)
        elif not draws:
            self.ranges[step.var] = (0, (math.inf if step.count is None else step.count) - 1)
            self.block(place + 1, end)
            del self.ranges[step.var]
        else:
            for number in range(self.open_passes if step.count is None else step.count):
                self.spend(place)
                self.variables[step.var] = number
                self.block(place + 1, end)
                if step.count is None and self.done != number + 1:
                    raise ValueError(
                        f"code[{place}] loop: an open loop draws one position per pass, position {step.var}"
                    )
            del self.variables[step.var]

    def bounds(self, index: Index) -> tuple[float, float]:
        fixed = {var: (number, number) for var, number in self.variables.items()}
        return index.bounds({**fixed, **self.ranges})

    def value(self, place: int, step: Instruction) -> None:
        self.spend(place)
        low, high = self.bounds(step.position)  # type: ignore[attr-defined]
        if isinstance(step, Draw) and step.out is not None:
            if low < 0 or (self.program.positions is not None and high >= self.program.positions):
                raise ValueError(f"code[{place}] draw: position {low} to {high} is outside the program")
        elif isinstance(step, Draw | Emit):
            if (low, high) != (self.done, self.done):
                raise ValueError(f"code[{place}] {step.op}: expected position {self.done} to come next, got {low:.0f}")
            self.done += 1
        elif high >= self.done:
            raise ValueError(
                f"code[{place}] {step.op}: reads position {high:.0f}, which does not exist before it is drawn"
            )


def _sums(flags: list[bool]) -> list[int]:
    total, sums = 0, []
    for flag in flags:
        sums.append(total)
        total += flag
    return sums


def _passes(program: Program) -> int:
    ends = [abs(n) for one in program.code if isinstance(one, When) for n in (one.start, one.stop or 0, one.step)]
    passes = max(ends, default=0) * 2 + _OPEN_PASSES
    return passes if program.limit is None else min(passes, program.limit)
