"""Lowering over images: from a module over [B, C, H, W] to a program that draws pixel by pixel, colour by colour.

A plane is computed as soon as what it looks at is known, and once: before everything (conditions), in a loop over
columns before the row's pixels are drawn (vertical stacks), with the pixel, or after the row. With the pixel each
channel has a phase, the number of the pixel's own draws that it needs. Channels are stored sorted by phase, so that
what a phase computes is a span of channels and what it reads of the pixel itself is a prefix. Planes that somebody
looks back at are kept in caches of as many rows as that takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fastar.sampling.builder import Builder, Handle
from fastar.sampling.fuse import fuse
from fastar.sampling.index import Index, Ref
from fastar.sampling.instructions import (
    Draw,
    Elementwise,
    Gate,
    Gather,
    Head,
    Instruction,
    Linear,
    Store,
    TappedLinear,
)
from fastar.sampling.planes import CENTRE, At, Canvas, Given, Node, Pixels, Planes, Pointwise, Product, Tap, Term
from fastar.sampling.program import Program, Value
from fastar.sampling.trace import LoweringError, lower_module

# When a plane is computed: (part of the program, loop over columns within it).
_ONCE, _BEFORE, _PIXEL, _AFTER = range(4)
Stage = tuple[int, int]


@dataclass
class _Storage:
    # The buffer of a plane: how many rows are kept (0: no rows; columns only where somebody looks along the row), and
    # by how much it is moved down and right, so that who reads beyond the upper left edge reads zeros.
    rows: int = 0
    columns: bool = False
    down: int = 0
    right: int = 0
    handle: Handle | None = None


@dataclass
class _Plan:
    # What is known of each plane, planes in the order of computation.
    nodes: list[Node] = field(default_factory=list)
    stages: dict[Node, Stage] = field(default_factory=dict)
    # In a pass over a pixel: after how many of its own draws a channel is known.
    phases: dict[Node, Tensor] = field(default_factory=dict)
    # Channels as they lie in memory; the same tensor for planes that are combined channel by channel.
    orders: dict[Node, Tensor] = field(default_factory=dict)
    storage: dict[Node, _Storage] = field(default_factory=dict)

    def in_pixel(self, node: Node) -> bool:
        """Whether a plane is computed with the pixel."""
        return self.stages.get(node, (_ONCE, 0))[0] == _PIXEL


def image(
    module: nn.Module,
    head: Head,
    shape: Sequence[int],
    *,
    name: str = "image",
    colour_major: bool = True,
    scale: float = 1.0,
    shift: float = 0.0,
    inputs: Mapping[str, Sequence[int]] | None = None,
) -> Program:
    """The program of a module from [B, C, H, W], shape = (C, H, W), to [B, C * P, H, W], P = head.params.

    Colours are drawn one after the other: position (h * W + w) * C + c. Output c * P + k (k * C + c if not
    `colour_major`) is parameter k of colour c, and may depend only on pixels before its own in raster order and on
    earlier colours of its own. A head of C channels draws a pixel's colours at once: position h * W + w, P outputs.
    Values enter as ``scale * x + shift``. `inputs` are further arguments of the module by name: (width,)
    for a vector [B, width], (H, W, channels) for a map, which a run brings with its channels last.
    """
    C, H, W = shape
    if head.channels not in (1, C):
        raise ValueError(f"head: expected 1 or {C} channels, got {head.channels}")
    draws = C // head.channels
    canvas = Canvas((H, W))
    pixels = Pixels("x", C)
    given = {one: _given(one, each, (H, W)) for one, each in (inputs or {}).items()}
    y = canvas.value(lower_module(module, Planes((At(pixels),)), canvas, given))
    canvas.path = ""
    if y.width != draws * head.params:
        raise canvas.refuse(f"it gives {y.width} channels, and the head {head} reads {draws} x {head.params}")
    out = y.pieces[0]
    if len(y.pieces) > 1 or (out.dy, out.dx) != CENTRE or isinstance(out.node, Pixels | Given):
        raise canvas.refuse("its output is no single layer's; end with a convolution of kernel size 1")
    unit = torch.arange(y.width)
    colour, parameter = (unit // head.params, unit % head.params) if colour_major else (unit % draws, unit // draws)
    plan = _plan(out.node, pixels, head.channels, colour, parameter)

    levels = 2 if head.kind == "bernoulli" else head.levels
    value = Value("float", head.channels) if levels is None else Value("int", head.channels, levels)
    b = Builder(name, value, H * W * draws)
    emitter = _Emitter(b, plan, (H, W))
    emitter.allocate()
    emitter.nodes((_ONCE, 0))
    with b.loop("h", H):
        for stage in sorted({one for one in plan.stages.values() if one[0] == _BEFORE}):
            with b.loop("w", W):
                emitter.nodes(stage)
        with b.loop("w", W):
            for c in range(draws):
                emitter.nodes((_PIXEL, 0), c)
                position = Index(c, tuple(sorted({"h": W * draws, "w": draws}.items())))
                b.add(Draw(head, position, emitter.at(out.node).channels(c * head.params, head.params)))
                if pixels in plan.storage:
                    known = emitter.at(pixels).channels(c * head.channels, head.channels)
                    b.add(Store(known, position, scale, shift))
            emitter.nodes((_PIXEL, 0), draws)
        for stage in sorted({one for one in plan.stages.values() if one[0] == _AFTER}):
            with b.loop("w", W):
                emitter.nodes(stage)
    places = [(c * H + h) * W + w for h in range(H) for w in range(W) for c in range(C)]
    return fuse(b.build(shape=(C, H, W), layout=None if C == 1 else b.table("layout", places)))


def _given(name: str, shape: Sequence[int], size: tuple[int, int]) -> Planes:
    if len(shape) == 1:
        return Planes((At(Given(name, shape[0])),), vector=True)
    if len(shape) != 3 or tuple(shape[:2]) != size:
        raise ValueError(f"inputs: expected {name} to be (width,) or {(*size, 'channels')}, got {tuple(shape)}")
    return Planes((At(Given(name, shape[2], spatial=True)),))


def _plan(out: Node, pixels: Pixels, channels: int, colour: Tensor, parameter: Tensor) -> _Plan:
    plan = _Plan()
    _visit(out, plan)
    plan.stages[pixels] = (_PIXEL, 0)
    for node in plan.nodes:
        plan.stages[node] = _stage(node, plan)
    # What is drawn from is computed with the pixel, even where it depends on earlier rows only.
    plan.stages[out] = max(plan.stages[out], (_PIXEL, 0))
    if plan.stages[out][0] == _AFTER:
        raise LoweringError(f"{out.path}: the output at a pixel depends on pixels to its right in the same row")
    plan.phases[pixels] = torch.arange(pixels.width) // channels + 1
    plan.orders[pixels] = torch.arange(pixels.width)
    for node in plan.nodes:
        plan.phases[node] = _phases(node, plan)
    _order(plan, out, colour * len(colour) + parameter)
    late = plan.phases[out] > colour
    if bool(late.any()):
        unit = int(late.int().argmax())
        what = "the pixel itself" if channels > 1 or pixels.width == 1 else f"colour {int(plan.phases[out][unit]) - 1}"
        raise LoweringError(f"{out.path}: output {unit}, of colour {int(colour[unit])}, depends on {what}")
    _store(plan, out)
    return plan


def _visit(node: Node, plan: _Plan) -> None:
    # Sources first. Without recursion: a deep network would exhaust Python's stack.
    waiting: list[tuple[Node, bool]] = [(node, False)]
    seen: set[Node] = set()
    while waiting:
        one, ready = waiting.pop()
        if ready:
            plan.nodes.append(one)
        elif one not in seen and not isinstance(one, Pixels | Given):
            seen.add(one)
            waiting.append((one, True))
            waiting += [(source, False) for source, _ in reversed(one.reads)]


def _stage(node: Node, plan: _Plan) -> Stage:
    stage: Stage = (_ONCE, 0)
    for source, taps in node.reads:
        for dy, dx in taps:
            if isinstance(source, Given):
                stage = max(stage, (_BEFORE, 0) if source.spatial else (_ONCE, 0))
                continue
            part, loop = plan.stages[source]
            if part == _ONCE:
                continue
            if dy > 0:
                raise LoweringError(f"{node.path}: looks at a row below the pixel's")
            if dy < 0:
                stage = max(stage, (_BEFORE, 0))
            elif dx <= 0:
                stage = max(stage, (part, loop))
            else:
                stage = max(stage, (_AFTER, 0) if part == _PIXEL else (part, loop + 1))
    return stage


def _phases(node: Node, plan: _Plan) -> Tensor:
    # A channel needs what it reads of the pixel itself.
    needed = plan.phases.get(node, torch.zeros(node.width, dtype=torch.long))
    if not plan.in_pixel(node):
        return needed
    if isinstance(node, Pointwise):
        for one in node.operands:
            if (one.dy, one.dx) == CENTRE and plan.in_pixel(one.node):
                needed = torch.maximum(needed, plan.phases[one.node])
    elif isinstance(node, Product):
        for term in node.terms:
            if CENTRE in term.taps and plan.in_pixel(term.node):
                reads = term.seen[:, term.taps.index(CENTRE)] * plan.phases[term.node]
                needed = torch.maximum(needed, reads.amax(1))
    return needed


def _order(plan: _Plan, out: Node, rank: Tensor) -> None:
    # One order for planes that are combined: by phase, and for the output by colour and parameter. Where the phases of
    # one of them do not rise along it, channels wait for those before them.
    group = {node: [node] for node in plan.nodes}
    for node in plan.nodes:
        for one in node.operands if isinstance(node, Pointwise) else ():
            if group[one.node] is not group[node]:
                group[node] += group[one.node]
                for member in group[one.node]:
                    group[member] = group[node]
    for members in {id(one): one for one in group.values()}.values():
        late = torch.stack([plan.phases[one] for one in members]).sum(0)
        order = torch.argsort(rank if out in members else late, stable=True)
        plan.orders.update(dict.fromkeys(members, order))
    changed = True
    while changed:
        changed = False
        for node in plan.nodes:
            phases, order = _phases(node, plan), plan.orders[node]
            risen = torch.empty_like(phases)
            risen[order] = phases[order].cummax(0).values
            changed = changed or not torch.equal(risen, plan.phases[node])
            plan.phases[node] = risen


def _store(plan: _Plan, out: Node) -> None:
    plan.storage[out] = _Storage()
    for node in plan.nodes:
        plan.storage.setdefault(node, _Storage())
        for source, taps in node.reads:
            kept = plan.storage.setdefault(source, _Storage())
            if isinstance(source, Given) or plan.stages[source][0] == _ONCE:
                continue
            for dy, dx in taps:
                kept.rows = max(kept.rows, 1 - dy if dy < 0 else 0)
                kept.columns = kept.columns or dx != 0 or plan.stages[source] != plan.stages[node]
                if isinstance(node, Pointwise):
                    kept.down, kept.right = max(kept.down, -dy), max(kept.right, -dx)


class _Emitter:
    """Writes the instructions of planes, a stage at a time."""

    def __init__(self, builder: Builder, plan: _Plan, size: tuple[int, int]) -> None:
        self.builder = builder
        self.plan = plan
        self.size = size
        self.early: dict[Node, Ref] = {}

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
            elif self.plan.stages[node][0] == _ONCE:
                kept.handle = b.state(name, node.width)
            elif kept.rows:
                kept.handle = b.state(name, kept.rows + kept.down, W + kept.right, node.width, ring=True)
            elif kept.columns:
                kept.handle = b.state(name, W + kept.right, node.width)
            else:
                kept.handle = b.scratch(name, node.width)

    def at(self, node: Node, dy: int = 0, dx: int = 0) -> Ref:
        """All channels of a plane, this far from the pixel."""
        kept = self.plan.storage[node]
        assert kept.handle is not None
        h, w = Index(kept.down + dy, (("h", 1),)), Index(kept.right + dx, (("w", 1),))
        return kept.handle.at(*(h, w)[2 - (len(kept.handle.buffer.shape) - 1) :])

    def nodes(self, stage: Stage, phase: int | None = None) -> None:
        """The planes of a stage; with a phase, those of their channels that it computes."""
        for node in self.plan.nodes:
            if self.plan.stages[node] == stage:
                span = self._span(node, phase)
                if span is not None and isinstance(node, Pointwise):
                    self._pointwise(node, *span)
                elif span is not None and isinstance(node, Product):
                    self._product(node, phase or 0, *span)

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
        return torch.arange(node.width) if isinstance(node, Given) else self.plan.orders[node]

    def _weight(self, node: Node, part: str, tensor: Tensor) -> str:
        name = unique = f"{node.path}.{part}" if node.path else part
        number = 1
        while unique in self.builder.weights:
            number += 1
            unique = f"{name}.{number}"
        return self.builder.weight(unique, tensor.contiguous())
