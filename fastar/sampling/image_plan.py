"""When and where the planes of a module over images are computed and kept, for `fastar.sampling.image`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastar.sampling.builder import Handle
from fastar.sampling.planes import CENTRE, Given, Node, Ones, Pixels, Pointwise, Product, Raised, Recurrent
from fastar.sampling.trace import LoweringError

# When a plane is computed: (part of the program, loop over columns within it).
ONCE, BEFORE, PIXEL, AFTER = range(4)
Stage = tuple[int, int]


@dataclass
class Storage:
    # The buffer of a plane: how many rows are kept (0: no rows; columns only where somebody looks along the row), and
    # by how much it is moved down and right, so that who reads beyond the upper left edge reads zeros.
    rows: int = 0
    columns: bool = False
    down: int = 0
    right: int = 0
    handle: Handle | None = None


@dataclass
class Plan:
    # What is known of each plane, planes in the order of computation.
    nodes: list[Node] = field(default_factory=list)
    stages: dict[Node, Stage] = field(default_factory=dict)
    # In a pass over a pixel: after how many of its own draws a channel is known.
    phases: dict[Node, Tensor] = field(default_factory=dict)
    # Channels as they lie in memory; the same tensor for planes that are combined channel by channel.
    orders: dict[Node, Tensor] = field(default_factory=dict)
    storage: dict[Node, Storage] = field(default_factory=dict)

    def runs(self) -> Iterator[list[Node]]:
        """Planes of one stage and scale that come one after the other; raised and mirrored ones alone."""
        for stage in sorted(set(self.stages.values())):
            run: list[Node] = []
            for node in self.nodes:
                if self.stages[node] != stage:
                    continue
                if run and (run[-1].scale != node.scale or _alone(node) or _alone(run[-1])):
                    yield run
                    run = []
                run.append(node)
            if run:
                yield run

    def in_pixel(self, node: Node) -> bool:
        """Whether a plane is computed with the pixel."""
        return self.stages.get(node, (ONCE, 0))[0] == PIXEL


def _alone(node: Node) -> bool:
    return isinstance(node, Raised) or (isinstance(node, Recurrent) and node.mirrored)


def make_plan(out: Node, pixels: Pixels, channels: int, colour: Tensor, parameter: Tensor) -> Plan:
    """The plan of a module's output, whose channels belong to these colours and parameters."""
    plan = Plan(visit(out))
    plan.stages[pixels] = (PIXEL, 0)
    for node in plan.nodes:
        plan.stages[node] = _stage(node, plan)
    # What is drawn from is computed with the pixel, even where it depends on earlier rows only.
    plan.stages[out] = max(plan.stages[out], (PIXEL, 0))
    if plan.stages[out][0] == AFTER:
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


def visit(node: Node) -> list[Node]:
    """The planes that a plane is computed from and itself, sources first."""
    # Without recursion: a deep network would exhaust Python's stack.
    found: list[Node] = []
    waiting: list[tuple[Node, bool]] = [(node, False)]
    seen: set[Node] = set()
    while waiting:
        one, ready = waiting.pop()
        if ready:
            found.append(one)
        elif one not in seen and not isinstance(one, Pixels | Given | Ones):
            seen.add(one)
            waiting.append((one, True))
            waiting += [(source, False) for source, _ in reversed(one.reads)]
    return found


def _stage(node: Node, plan: Plan) -> Stage:
    stage: Stage = (ONCE, 0)
    if isinstance(node, Recurrent):
        # From right to left a row can only be run through once it is complete.
        stage = (AFTER, 0) if node.mirrored else (PIXEL, 0)
    for source, taps in node.reads:
        for dy, dx in taps:
            if isinstance(source, Given | Ones):
                whole = isinstance(source, Given) and not source.spatial
                stage = max(stage, (ONCE, 0) if whole else (BEFORE, 0))
                continue
            part, loop = plan.stages[source]
            if part == ONCE:
                continue
            if dy > 0:
                raise LoweringError(f"{node.path}: looks at a row below the pixel's")
            if dy < 0:
                stage = max(stage, (BEFORE, 0))
            elif dx <= 0:
                stage = max(stage, (part, loop))
            else:
                stage = max(stage, (AFTER, 0) if part == PIXEL else (part, loop + 1))
    return stage


def _phases(node: Node, plan: Plan) -> Tensor:
    # A channel needs what it reads of the pixel itself.
    needed = plan.phases.get(node, torch.zeros(node.width, dtype=torch.long))
    if not plan.in_pixel(node):
        return needed
    if isinstance(node, Pointwise):
        for one in node.operands:
            if (one.dy, one.dx) == CENTRE and plan.in_pixel(one.node):
                needed = torch.maximum(needed, plan.phases[one.node])
    elif isinstance(node, Product | Recurrent):
        for term in node.terms:
            if CENTRE in term.taps and plan.in_pixel(term.node):
                reads = (term.seen[:, term.taps.index(CENTRE)] * plan.phases[term.node]).amax(1)
                # All four gates of a unit come together.
                needed = torch.maximum(needed, reads.view(-1, node.width).amax(0))
    elif isinstance(node, Raised) and plan.in_pixel(node.source):
        needed = needed.clamp(min=int(plan.phases[node.source].max()))
    return needed


def _order(plan: Plan, out: Node, rank: Tensor) -> None:
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


def _store(plan: Plan, out: Node) -> None:
    plan.storage[out] = Storage()
    runs = {node: number for number, run in enumerate(plan.runs()) for node in run}
    for node in plan.nodes:
        own = plan.storage.setdefault(node, Storage())
        own.columns |= isinstance(node, Raised | Recurrent)
        own.rows = max(own.rows, 2 if isinstance(node, Recurrent) else 0)
        for source, taps in node.reads:
            kept = plan.storage.setdefault(source, Storage())
            if isinstance(source, Given | Ones) or plan.stages[source][0] == ONCE:
                continue
            scaled = max(source.scale, node.scale) > 1 or isinstance(node, Raised)
            for dy, dx in taps:
                kept.rows = max(kept.rows, 1 - dy if dy < 0 else 0)
                # A `when` closes over what is not kept: planes of another scale are computed in one of their own.
                apart = plan.stages[source] != plan.stages[node] or (scaled and runs.get(source) != runs[node])
                kept.columns = kept.columns or dx != 0 or apart
                if isinstance(node, Pointwise):
                    kept.down, kept.right = max(kept.down, -dy), max(kept.right, -dx)
