"""How a program is given to a card's blocks: the schedules, what each would take, and which is chosen and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastar import native
from fastar.sampling.cost import Cost, cost
from fastar.sampling.index import Ref
from fastar.sampling.program import Program

SCHEDULES = ("auto", "row", "cluster", "grid")

# What the prediction supposes, in microseconds and bytes per microsecond. None of it was measured by this project: the
# first three are cycles counted in the kernel at 1.7 GHz, the fourth is one way through the wires between
# multiprocessors, which others measured at 180 cycles, with the wait's own, the fifth what others report of barriers
# through global memory, the sixth a write to the second cache level and a read behind it, the seventh a miss of the
# first level; the rest are the published widths of an SM's paths, of the second cache level and of HBM3e.
_COMMAND = 0.06
_BLOCK_MEETING = 0.02
_CLUSTER_MEETING = 0.25
_EDGE = 0.15
_GRID_MEETING = 1.0
_FLAG = 0.7
_STREAM = 0.2
_BYTES_OF_A_MULTIPROCESSOR = 100e3
_BYTES_OF_LEVEL_2 = 5.5e6
_BYTES_OF_MEMORY = 4.0e6

# At which an open program is counted: long enough that what happens once does not count.
_OPEN_POSITIONS = 1024

# Of a warp's ring, through which weights come that no shared memory keeps.
STAGES = (0, 8, 16, 24, 32)

# Of a matrix that every block of a cluster multiplies for itself, rather than to meet for it.
_LOCAL_BYTES = (4096, 16384)


@dataclass(frozen=True)
class Schedule:
    """How rows are given to blocks. `predicted_us` is of one position for the planned rows, and no measurement."""

    name: str
    rows_per_team: int
    blocks_per_team: int
    threads: int
    shared_bytes: int
    predicted_us: float
    reason: str


@dataclass(frozen=True)
class Room:
    """What a packed program may take of a block's shared memory, and how many blocks make a team."""

    schedule: str
    numbers: int  # of a row
    blocks: int
    caches_far: bool = False  # whether rings and caches leave their room to weights
    resident_bytes: int = 0  # of weights
    local_bytes: int = 0  # of a matrix that every block of a cluster multiplies for itself
    stages: int = 0  # of each warp's ring for weights that are not resident
    contents: bool = False  # whether the weights are packed, or only counted


Pack = Callable[[Room], Any]
# How many blocks of a schedule the card holds at once.
Resident = Callable[[Schedule], int]


class DoesNotFitError(RuntimeError):
    """A schedule that the card has no room for; the message says for what."""


@dataclass(frozen=True)
class Wishes:
    """What the caller fixed of a plan."""

    schedule: str = "auto"
    rows: int = 1
    shared_bytes: int | None = None
    blocks: int | None = None
    stages: int | None = None


def packer(program: Program, precision: str) -> tuple[dict[str, Tensor], Pack]:
    """A program's weights as the kernels take them, which have to live as long as the function that packs them."""
    held = {
        name: t.detach().to("cpu", torch.int32 if t.dtype == torch.int32 else torch.float32).contiguous()
        for name, t in program.weights.items()
    }
    records = {name: (t.data_ptr(), tuple(t.shape), t.dtype == torch.int32) for name, t in held.items()}

    def pack(room: Room) -> Any:
        return native.core().CudaProgram(
            program,
            records,
            precision,
            schedule=room.schedule,
            fast_numbers=room.numbers,
            caches_far=room.caches_far,
            resident_bytes=room.resident_bytes,
            local_bytes=room.local_bytes,
            stages=room.stages,
            blocks=room.blocks,
            contents=room.contents,
        )

    return held, pack


def choose(
    program: Program, pack: Pack, card: Any, wishes: Wishes, resident: Resident, contents: bool = True
) -> tuple[Any, Schedule, list[str]]:
    """The packed program, its schedule, and the schedules not taken with the reason.

    `pack` packs the program into the room that it is given; without `contents` the weights themselves are left out.
    DoesNotFitError where no schedule fits.
    """
    names = SCHEDULES[1:] if wishes.schedule == "auto" else (wishes.schedule,)
    work = cost(program, None if program.limit else _OPEN_POSITIONS)
    found: list[tuple[Room, Schedule]] = []
    declined = []
    for name in names:
        try:
            found.append(_plan(name, program, pack, card, wishes, work, resident))
        except DoesNotFitError as error:
            declined.append(f"{name}: {error}")
    if not found:
        raise DoesNotFitError(f"schedule: {program.name}: {'; '.join(declined)}")
    found.sort(key=lambda one: one[1].predicted_us)
    declined += [f"{plan.name}: predicted {plan.predicted_us:.2f} us a position" for _, plan in found[1:]]
    room, plan = found[0]
    return pack(replace(room, contents=contents)), plan, declined


def why_not_resident(plan: Schedule, rows: int, card: Any, resident: Resident) -> str | None:
    """Why blocks that wait for one another would not all be there, or None where they would."""
    teams = -(-rows // plan.rows_per_team) if plan.name == "grid" else 1
    needed, there = teams * plan.blocks_per_team, resident(plan)
    if needed <= there:
        return None
    return (
        f"{rows} rows need {needed} blocks of {plan.threads} threads and {plan.shared_bytes} bytes of shared memory at"
        f" once, and {card.name} holds {there}"
    )


def rows_per_team(rows: int, teams: int) -> int:
    """Rows share a pass over the weights once every team has one."""
    most: int = native.core().CUDA_MOST_ROWS
    return min(most, 1 << (-(-rows // max(1, teams)) - 1).bit_length())


def _plan(
    name: str, program: Program, pack: Pack, card: Any, wishes: Wishes, work: Cost, resident: Resident
) -> tuple[Room, Schedule]:
    if name == "cluster" and card.max_cluster < 2:
        raise DoesNotFitError(f"{card.name} has no clusters")
    threads = _threads(program)
    limit = min(wishes.shared_bytes or card.shared_per_block, card.shared_per_block)
    found: list[tuple[Room, Room, Schedule]] = []  # with the room as it was before it was filled
    refused = ""

    def consider(empty: Room, rows: int) -> None:
        nonlocal refused
        try:
            room, packed, shared = _fill(program, pack, empty, rows, threads, limit, card)
        except DoesNotFitError as error:
            refused = str(error)
            return
        reason = (
            f"{rows} rows for {room.blocks} blocks of {threads} threads, {4 * packed.fast} bytes of a row in shared"
            f" memory, {4 * packed.slow} in global memory"
        )
        if packed.stages > 0:
            reason += f", weights through rings of {packed.stages} stages a warp"
        us = _predict(name, packed, work, rows, wishes.rows, threads, room.blocks, card)
        plan = Schedule(name, rows, room.blocks, threads, shared, us, reason)
        refused = why_not_resident(plan, wishes.rows, card, resident) or ""
        if not refused:
            found.append((empty, room, plan))

    for blocks in _team_sizes(name, card, wishes):
        teams = 1 if name == "grid" else card.multiprocessors // blocks
        rows = rows_per_team(wishes.rows, teams)
        for empty in _rooms(name, blocks, max(0, limit // (4 * rows) - 32)):
            consider(replace(empty, stages=wishes.stages or 0), rows)
    if not found:
        raise DoesNotFitError(refused)
    if wishes.stages is None:
        empty, _, plan = min(found, key=lambda one: one[2].predicted_us)
        for stages in STAGES[1:]:
            consider(replace(empty, stages=stages), plan.rows_per_team)
    _, room, plan = min(found, key=lambda one: one[2].predicted_us)
    return room, plan


def _rooms(name: str, blocks: int, numbers: int) -> list[Room]:
    if name == "grid":
        return [Room(name, numbers, blocks, caches_far=True)]
    # A long ring is read at a few places only: its room may be worth more to the matrices.
    local = _LOCAL_BYTES if name == "cluster" else (0,)
    return [Room(name, numbers, blocks, far, local_bytes=size) for far in (False, True) for size in local]


def _team_sizes(name: str, card: Any, wishes: Wishes) -> tuple[int, ...]:
    if name == "row":
        return (1,)
    if wishes.blocks is not None:
        return (wishes.blocks,)
    if name == "cluster":
        return tuple(n for n in (2, 4, 8, 16) if n <= card.max_cluster)
    # Blocks of a grid see the same memory only outside of them, and have to be resident together.
    most: int = native.core().CUDA_MOST_ROWS
    return (max(1, card.multiprocessors // -(-wishes.rows // most)),)


def _threads(program: Program) -> int:
    # A warp for every 16 outputs of the largest matrix, or for every 128 channels of anything else.
    warps = 1
    for step in program.code:
        out = getattr(step, "out", None)
        if isinstance(out, Ref):
            warps = max(warps, out.width // (16 if hasattr(step, "weight") else 128))
    most: int = native.core().CUDA_MOST_THREADS
    return min(most, 32 * (1 << (warps - 1).bit_length()))


def _fill(
    program: Program, pack: Pack, room: Room, rows: int, threads: int, limit: int, card: Any
) -> tuple[Room, Any, int]:
    # As many of a row's numbers in shared memory as there is room for, then matrices; what else lies there is known
    # after counting.
    while True:
        packed = pack(room)
        shared: int = packed.shared_bytes(rows=rows, threads=threads)
        if shared <= limit:
            break
        if room.numbers == 0:
            raise DoesNotFitError(f"a block needs {shared} bytes of shared memory and has {limit} on {card.name}")
        over = (shared - limit) // (4 * rows)
        room = replace(room, numbers=max(0, min(room.numbers, packed.fast) - over - 32))
    room = replace(room, numbers=packed.fast, resident_bytes=max(0, limit - shared - 128))
    packed = pack(room)
    return room, packed, packed.shared_bytes(rows=rows, threads=threads)


def _predict(
    name: str, packed: Any, work: Cost, rows: int, all_rows: int, threads: int, blocks: int, card: Any
) -> float:
    tally = packed.tally
    share = work.instructions / max(1, tally["commands"])
    team = {"row": _BLOCK_MEETING, "cluster": _CLUSTER_MEETING, "grid": _GRID_MEETING}[name]
    edge = _FLAG if name == "grid" else _EDGE
    meetings = tally["block_meetings"] * _BLOCK_MEETING + tally["team_meetings"] * team + tally["edges"] * edge
    between = tally["commands"] * _COMMAND + meetings + tally["streams"] * _STREAM
    teams = -(-all_rows // rows)
    at_once = max(1, min(teams, card.multiprocessors // blocks))
    level_2 = _BYTES_OF_LEVEL_2 if packed.bytes <= card.l2_bytes or not card.l2_bytes else _BYTES_OF_MEMORY
    fair = level_2 / (at_once * blocks)
    from_outside = sum(tile * tiles / among for tile, tiles, _, among, _ in packed.shares)
    banked = (tally["weight_bytes"] - tally["resident_bytes"] - from_outside) / min(_BYTES_OF_A_MULTIPROCESSOR, fair)
    # From shared memory at twice the width of the path to level 2.
    kept = tally["resident_bytes"] / (2 * _BYTES_OF_A_MULTIPROCESSOR)
    streamed = _streaming(packed, between, tally["team_meetings"] + tally["edges"], threads, fair)
    return float(share * (between + banked + kept + streamed) * -(-teams // at_once))


def _streaming(packed: Any, between: float, waits: int, threads: int, fair: float) -> float:
    # How long blocks wait for matrices from outside. Memory goes on while a team meets and does what is no matrix, as
    # long as a block's rings have room for what it will read next: `lead` is how much it has done beforehand.
    warps = threads // 32
    ring = warps * packed.stages * packed.stage_bytes
    needed, taken, read, gaps = [], [], [], []
    for tile, tiles, parts, blocks, waited in packed.shares:
        most = -(-tiles // blocks) * tile
        needed.append(max(tile * tiles / blocks / fair, most / _BYTES_OF_A_MULTIPROCESSOR))
        # The warps without a part of a tile do not lend their rings.
        taken.append(most * max(1.0, warps / (most // tile * parts)))
        read.append(most / (2 * _BYTES_OF_A_MULTIPROCESSOR) if ring else 0.0)
        gaps.append(between * (waited / waits if waits else 1 / len(packed.shares)))

    def limit(first: int) -> float:
        us, room, k = 0.0, float(ring), first
        while room > 0 and k < first + len(needed):
            part = min(1.0, room / taken[k % len(needed)])
            us += part * needed[k % len(needed)]
            room -= part * taken[k % len(needed)]
            k += 1
        return us

    us = lead = 0.0
    # The second of two positions counts: its beginning was asked for in the first.
    for k in range(2 * len(needed)):
        k %= len(needed)
        us = 0.0 if k == 0 else us
        lead = min(limit(k), lead + gaps[k])
        took = max(needed[k] - lead, read[k])
        us += took
        lead += took - needed[k]
    return us
