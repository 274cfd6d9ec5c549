"""The instructions of planes, a stage at a time, for `fastar.sampling.image`."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from fastar.sampling.builder import Builder, Handle
from fastar.sampling.image_plan import ONCE, PIXEL, Plan
from fastar.sampling.index import Index, Ref, variable
from fastar.sampling.instructions import Cell, Elementwise, Gate, Gather, Instruction, Linear, TappedLinear
from fastar.sampling.planes import CENTRE, Given, Node, Ones, Pointwise, Product, Raised, Recurrent, Tap, Term


class Emitter:
    """Writes the instructions of planes, a stage at a time."""

    def __init__(self, builder: Builder, plan: Plan, size: tuple[int, int]) -> None:
        self.builder = builder
        self.plan = plan
        self.size = size
        self.early: dict[Node, Ref] = {}
        # The scale of the plane that is computed, and whether the loop over columns counts its own.
        self.scale = 1
        self.own_columns = False
        self.mirrored = False
        self.cells: dict[Node, Handle] = {}

    def allocate(self) -> None:
        """A buffer for each plane."""
        b, (H, W) = self.builder, self.size
        taken = {node.path for node in self.plan.storage if isinstance(node, Given)}
        for node, kept in self.plan.storage.items():
            name, number = node.path or "y", 1
            while not isinstance(node, Given) and name in taken:
                number += 1
                name = f"{node.path or 'y'}.{number}"
            taken.add(name)
            if isinstance(node, Given):
                kept.handle = b.input(name, *((H, W) if node.spatial else ()), node.width)
            elif isinstance(node, Ones):
                kept.handle = b.state(name, H, W, 1, init=b.weight(name, torch.ones(H, W, 1)))
            elif self.plan.stages[node][0] == ONCE:
                kept.handle = b.state(name, node.width)
            elif kept.rows:
                kept.handle = b.state(name, kept.rows + kept.down, W // node.scale + kept.right, node.width, ring=True)
            elif kept.columns:
                kept.handle = b.state(name, W // node.scale + kept.right, node.width)
            else:
                kept.handle = b.scratch(name, node.width)
            if isinstance(node, Recurrent):
                # Moved by one, so that what lies before the first row or column is a zero in it.
                above = node.cell[0] < 0
                shape = (2, W, node.width) if above else (W + 1, node.width)
                self.cells[node] = b.state(f"{name}.cells", *shape, ring=above)

    def at(self, node: Node, dy: int = 0, dx: int = 0) -> Ref:
        """All channels of a plane, this far from the pixel."""
        kept = self.plan.storage[node]
        assert kept.handle is not None
        h = Index((kept.down + dy) * node.scale, (("h", 1),), max(node.scale, 1))
        wide, divisor = 1, max(node.scale, 1)
        if self.own_columns:
            wide, divisor = max(self.scale // divisor, 1), max(divisor // self.scale, 1)
        w = Index((kept.right + dx) * divisor, (("w", wide),), divisor)
        if self.mirrored:
            w = Index(self.size[1] - 1 + kept.right + dx, (("w", -1),))
        return kept.handle.at(*(h, w)[2 - (len(kept.handle.buffer.shape) - 1) :])

    def once(self) -> None:
        """What depends on nothing that is drawn."""
        for run in self.plan.runs():
            if self.plan.stages[run[0]][0] == ONCE:
                self._run(run, None)

    def rows(self, part: int) -> None:
        """The planes of a row, before or after its pixels: loops over columns."""
        self.own_columns = True
        for run in self.plan.runs():
            if self.plan.stages[run[0]][0] != part:
                continue
            self.scale = scale = run[0].scale
            self.mirrored = isinstance(run[0], Recurrent) and run[0].mirrored
            for row, column in _parities(run[0]):
                loop = self.builder.loop("w", self.size[1] // scale)
                with self._every("h", row * scale, scale, run[0]), loop, self._every("w", column, 1, run[0]):
                    self._run(run, None, (row, column))
        self.own_columns, self.scale, self.mirrored = False, 1, False

    def pixel(self, phase: int) -> None:
        """The planes of a pixel, in so far as they need this many of its draws."""
        for run in self.plan.runs():
            spans = [self._span(node, phase) for node in run]
            if self.plan.stages[run[0]][0] != PIXEL or not any(spans):
                continue
            self.scale = scale = run[0].scale
            for row, column in _parities(run[0]):
                with (
                    self._every("h", row * scale, scale, run[0]),
                    self._every("w", column * scale, scale, run[0]),
                ):
                    self._run(run, phase, (row, column))
        self.scale = 1

    def _every(self, var: str, start: int, scale: int, node: Node) -> contextlib.AbstractContextManager[None]:
        step = 2 * scale if isinstance(node, Raised) else scale
        return contextlib.nullcontext() if step == 1 else self.builder.when(variable(var), start, None, step)

    def _run(self, run: list[Node], phase: int | None, parity: tuple[int, int] = (0, 0)) -> None:
        for node in run:
            span = self._span(node, phase)
            if span is None:
                continue
            if isinstance(node, Pointwise):
                self._pointwise(node, *span)
            elif isinstance(node, Product):
                self._product(node, phase or 0, *span)
            elif isinstance(node, Raised):
                self._raised(node, parity)
            elif isinstance(node, Recurrent):
                self._recurrent(node, phase or 0, *span)

    def _recurrent(self, node: Recurrent, phase: int, start: int, width: int) -> None:
        units = self.plan.orders[node][start : start + width]
        # The gates come as o, f, i, g; a program has them in torch.nn's order.
        rows = torch.cat([units + gate * node.width for gate in (2, 1, 3, 0)])
        state = node.state.transpose(1, 2)
        own = Term(node, node.state_taps, state, torch.ones(state.shape, dtype=torch.bool))
        parts: list[tuple[Term, tuple[int, ...], int]] = []
        for term in node.terms:
            late = term.taps.index(CENTRE) if self._waits(node, term) else None
            rest = tuple(k for k in range(len(term.taps)) if k != late)
            if rest:
                parts.append((term, rest, term.node.width))
            if late is not None and self._reach(term, phase):
                parts.append((term, (late,), self._reach(term, phase)))
        parts.append((own, tuple(range(len(own.taps))), node.width))
        whole = Product(node.path, 4 * width, [], node.bias)
        self.plan.orders[whole] = rows
        gates = self.builder.scratch(f"{node.path}.gates", 4 * width).at()
        self._sum(whole, gates, slice(None), parts, None, final=True)
        now, before = (one.channels(start, width) for one in self._cells(node))
        out = self.at(node).channels(start, width)
        self.builder.add(Cell("lstm", out, gates, cell=before, cell_out=now))

    def _cells(self, node: Recurrent) -> tuple[Ref, Ref]:
        # The cell of this pixel, and of the one before it.
        h, w, cells = variable("h"), variable("w"), self.cells[node]
        if node.cell[0] < 0:
            return cells.at(h + 1, w), cells.at(h, w)
        if node.mirrored:
            return cells.at(-w + (self.size[1] - 1)), cells.at(-w + self.size[1])
        return cells.at(w + 1), cells.at(w)

    def _raised(self, node: Raised, parity: tuple[int, int]) -> None:
        (part,) = [one for one in node.phases if (one.row, one.column) == parity]
        seen = torch.ones(part.weight.shape, dtype=torch.bool)
        term = Term(node.source, part.taps, part.weight, seen)
        whole = Product(node.path, node.width, [term], node.bias, node.activation, scale=node.scale)
        self.plan.orders[whole] = self.plan.orders[node]
        parts = [(term, tuple(range(len(part.taps))), node.source.width)]
        self._sum(whole, self.at(node), slice(None), parts, None, final=True)

    def _span(self, node: Node, phase: int | None) -> tuple[int, int] | None:
        if phase is None:
            return 0, node.width
        found = torch.nonzero(self._known(node) == phase).flatten().tolist()
        return (found[0], len(found)) if found else None

    def _pointwise(self, node: Pointwise, start: int, width: int) -> None:
        refs = [self.at(one.node, one.dy, one.dx).channels(start, width) for one in node.operands]
        out = self.at(node).channels(start, width)
        step: Instruction = (
            Gate(out, node.function, *refs)
            if node.gate
            else Elementwise(out, node.function, refs[0], refs[1] if len(refs) > 1 else None, node.alpha, node.beta)
        )
        self.builder.add(step)

    def _product(self, node: Product, phase: int, start: int, width: int) -> None:
        phases = self._known(node)
        out = self.at(node)
        late = [(term, term.taps.index(CENTRE)) for term in node.terms if self._waits(node, term)]
        first = int(phases[0]) == phase
        if int(phases[-1]) == phase and first and all(self._reach(term, phase) == term.node.width for term, _ in late):
            parts = [(term, tuple(range(len(term.taps)))) for term in node.terms]
            self._sum(node, out, slice(None), [(t, k, t.node.width) for t, k in parts], None, final=True)
            return
        # The pixel's own channels come phase by phase; what lies elsewhere is added up beforehand, for all phases.
        rest = {id(term): tuple(k for k in range(len(term.taps))) for term in node.terms}
        for term, centre in late:
            rest[id(term)] = tuple(k for k in rest[id(term)] if k != centre)
        before = [(term, rest[id(term)], term.node.width) for term in node.terms if rest[id(term)]]
        if first and before:
            self.early[node] = self.builder.scratch(f"{node.path}.before", node.width).at()
            self._sum(node, self.early[node], slice(None), before, None, final=False)
        early = self.early.get(node)
        parts_now = [(term, (centre,), self._reach(term, phase)) for term, centre in late]
        self._sum(
            node,
            out.channels(start, width),
            slice(start, start + width),
            [one for one in parts_now if one[2]],
            None if early is None else early.channels(start, width),
            final=True,
        )

    def _waits(self, node: Node, term: Term) -> bool:
        return CENTRE in term.taps and self.plan.in_pixel(term.node) and self.plan.in_pixel(node)

    def _reach(self, term: Term, phase: int) -> int:
        return int((self._known(term.node) <= phase).sum())

    def _known(self, node: Node) -> Tensor:
        # Phases as the channels lie in memory.
        phases = self.plan.phases[node][self.plan.orders[node]]
        return phases if self.plan.in_pixel(node) else torch.zeros_like(phases)

    def _sum(
        self,
        node: Product,
        out: Ref,
        rows: slice,
        parts: list[tuple[Term, tuple[int, ...], int]],
        add: Ref | None,
        final: bool,
    ) -> None:
        # out = act(sum over parts + b + add): taps of a term by number, and how many of its channels are read.
        b, order = self.builder, self.plan.orders[node][rows]
        activation = node.activation if final else "none"
        bias = None
        if add is None and node.bias is not None:
            bias = self._weight(node, "bias", node.bias[order.to(node.bias.device)])
        if not parts:
            if add is None:
                table = torch.zeros(1, out.width) if bias is None else b.weights[bias][None]
                b.add(Gather(out, self._weight(node, "constant", table)))
                add = out
            b.add(Elementwise(out, activation, add))
        for number, (term, taps, reach) in enumerate(parts):
            last = number == len(parts) - 1
            inner = self._order(term.node)[:reach]
            weight = term.weight[order.to(term.weight.device)][:, list(taps)][:, :, inner.to(term.weight.device)]
            source = self.at(term.node).channels(0, reach)
            offsets = [self._offset(term.node, term.taps[k]) for k in taps]
            done = activation if last else "none"
            if all(not any(one) for one in offsets) and len(taps) == 1:
                name = self._weight(node, "weight", weight[:, 0])
                b.add(Linear(out, source, name, bias, add, done))
            else:
                name = self._weight(node, "weight", weight)
                b.add(TappedLinear(out, source, tuple(offsets), name, bias, add, done))
            bias, add = None, out

    def _offset(self, node: Node, tap: Tap) -> tuple[int, ...]:
        kept = self.plan.storage[node]
        assert kept.handle is not None
        return tap[3 - len(kept.handle.buffer.shape) :]

    def _order(self, node: Node) -> Tensor:
        return torch.arange(node.width) if isinstance(node, Given | Ones) else self.plan.orders[node]

    def _weight(self, node: Node, part: str, tensor: Tensor) -> str:
        name = unique = f"{node.path}.{part}" if node.path else part
        number = 1
        while unique in self.builder.weights:
            number += 1
            unique = f"{name}.{number}"
        return self.builder.weight(unique, tensor.contiguous())


def _parities(node: Node) -> list[tuple[int, int]]:
    # The rows and columns, modulo 2, in which a raised plane has weights of its own.
    return [(one.row, one.column) for one in node.phases] if isinstance(node, Raised) else [(0, 0)]
