"""The rules that make a step program valid: docs/step-programs.md, "Validity"."""

from __future__ import annotations

import math

import torch

from fastar._checks import FLOATS
from fastar.sampling import order
from fastar.sampling.instructions import Attention, Cell, Elementwise, End, Instruction, Loop, TappedLinear, When
from fastar.sampling.operands import CHECKS, Operands, is_int
from fastar.sampling.program import Buffer, Program, jumps
from fastar.sampling.rings import apart, check_rings
from fastar.sampling.scratch import Written

KINDS = ("state", "scratch", "input")


def validate(program: Program) -> None:
    """ValueError that names the entry and the reason, unless the program is valid."""
    _Validator(program).run()


class _Validator(Operands):
    def run(self) -> None:
        self.data()
        jumps(self.program.code)
        written = Written()
        hidden: list[tuple[str, tuple[float, float] | None]] = []
        opens = 0
        for place, step in enumerate(self.program.code):
            self.place = f"code[{place}] {step.op}"
            if isinstance(step, End):
                var, before = hidden.pop()
                if before is None:
                    self.ranges.pop(var, None)
                else:
                    self.ranges[var] = before
                written.close()
            elif isinstance(step, Loop):
                hidden.append(self.loop(step, depth=len(hidden)))
                opens += step.count is None
                written.open(survives=True)
            elif isinstance(step, When):
                hidden.append(self.when(step))
                written.open(survives=False)
            else:
                self.compute(step, written)
        self.place = "code"
        self.require(opens == (self.program.positions is None), "the open loop occurs once, in open programs only")
        self.life()
        check_rings(self.program)
        order.check(self.program)

    def data(self) -> None:
        program = self.program
        sizes = [("positions", program.positions), ("limit", program.limit), ("value.channels", program.value.channels)]
        for name, size in [*sizes, *(("shape", size) for size in program.shape or ())]:
            self.require(
                size is None or (is_int(size) and size > 0), f"{name}: expected a positive integer, got {size}"
            )
        self.require(program.positions is None or program.limit is None, "limit: only open programs have one")
        value = program.value
        self.require(value.dtype in ("int", "float"), f"value.dtype: expected int or float, got {value.dtype!r}")
        whole = is_int(value.levels) and (value.levels or 0) > 0
        self.require(
            whole if value.dtype == "int" else value.levels is None, "value.levels: for integers, and only there"
        )
        for name, t in program.weights.items():
            self.require(
                t.dtype in (*FLOATS, torch.int32), f"weight {name}: expected a float dtype or int32, got {t.dtype}"
            )
            self.require(t.dtype == torch.int32 or not bool(t.isnan().any()), f"weight {name}: holds NaN")
        if program.shape is None:
            self.require(program.layout is None, "layout: needs a shape")
        else:
            count = (program.positions or 0) * value.channels
            self.require(math.prod(program.shape) == count, f"shape {list(program.shape)}: expected {count} elements")
            if program.layout is not None:
                layout = self.weight("layout", program.layout, (count,), integer=True)
                same = torch.equal(layout.cpu().sort().values, torch.arange(count, dtype=torch.int32))
                self.require(same, f"layout {program.layout}: not a permutation of 0..{count - 1}")
        self.require(len(self.buffers) == len(program.buffers), "buffers: a name occurs twice")
        for one in program.buffers:
            self.place = f"buffer {one.name}"
            self.buffer(one)

    def buffer(self, one: Buffer) -> None:
        self.require(one.kind in KINDS, f"kind: expected one of {', '.join(KINDS)}, got {one.kind!r}")
        lowest = [0 if one.kind == "input" and i == 0 and len(one.shape) > 1 else 1 for i in range(len(one.shape))]
        fine = bool(one.shape) and all(is_int(n) and n >= low for n, low in zip(one.shape, lowest, strict=True))
        self.require(fine, f"shape: expected positive sizes, got {list(one.shape)}")
        self.require(one.kind != "scratch" or len(one.shape) == 1, "scratch has channels only")
        self.require(not one.ring or (one.kind == "state" and len(one.shape) > 1), "a ring is a state with coordinates")
        self.require(one.init is None or one.kind == "state", "init: only a state has one")
        if one.init is not None:
            self.weight("init", one.init, one.shape)

    def loop(self, step: Loop, depth: int) -> tuple[str, tuple[float, float] | None]:
        self.require(step.var not in self.ranges, f"variable {step.var} is in use around it")
        if step.count is None:
            self.require(
                depth == 0 and self.program.positions is None, "the open loop stands outermost, in open programs"
            )
            count: float = math.inf if self.program.limit is None else self.program.limit
        else:
            self.require(step.count > 0, f"expected a positive count, got {step.count}")
            count = step.count
        self.ranges[step.var] = (0, count - 1)
        return step.var, None

    def when(self, step: When) -> tuple[str, tuple[float, float] | None]:
        self.require(step.step > 0, f"expected a positive step, got {step.step}")
        low, high = self.bounds("index", step.index)
        if len(step.index.terms) != 1 or step.index.terms[0][1] != 1 or step.index.divisor != 1 or step.index.const:
            return "", None
        var = step.index.terms[0][0]
        stop = high if step.stop is None else min(high, step.stop - 1)
        start: float = (
            step.start if step.start >= low else step.start + math.ceil((low - step.start) / step.step) * step.step
        )
        self.require(start <= stop, "never runs")
        self.ranges[var] = (start, stop)
        return var, (low, high)

    def compute(self, step: Instruction, written: Written) -> None:
        for name, ref in step.refs():
            self.ref(name, ref, tapped=isinstance(step, TappedLinear) and name == "source")
        CHECKS[type(step)](self, step)
        self.aliasing(step)
        for name, ref in step.reads:
            if self.buffers[ref.buffer].kind == "scratch":
                fine = written.covers(ref, self.ranges)
                self.require(fine, f"{name}: {ref} is read before it is written in this pass")
        for ref in step.writes:
            self.require(self.buffers[ref.buffer].kind != "input", f"out: {ref.buffer} is an input")
            if self.buffers[ref.buffer].kind == "scratch":
                written.add(ref)

    def aliasing(self, step: Instruction) -> None:
        if isinstance(step, Cell) and step.cell_out is not None and step.cell_out.buffer == step.out.buffer:
            fine = apart(self.buffers[step.out.buffer], step.cell_out, step.out)
            self.require(fine, f"cell_out: {step.cell_out} may overlap out, {step.out}")
        for written in step.writes:
            for name, read in step.reads:
                if read.buffer != written.buffer or name == "out":
                    continue
                double = isinstance(step, Elementwise) and step.function == "concat_elu"
                same = read == written and name in step.in_place and not double
                taps = step.taps if isinstance(step, TappedLinear) and name == "source" else None
                fine = same or apart(self.buffers[read.buffer], read, written, taps)
                self.require(fine, f"{name}: {read} may overlap what is written, {written}")

    def life(self) -> None:
        written = {ref.buffer for step in self.program.code for ref in step.writes}
        for place, step in enumerate(self.program.code):
            read = {ref.buffer for _, ref in step.reads}
            if isinstance(step, Attention):
                read |= {step.keys, step.values}
            for name in sorted(read - written):
                one = self.buffers[name]
                fine = one.kind != "state" or one.init is not None
                self.require(fine, f"[{place}] {step.op}: state {name} is read, but never written and has no init")
