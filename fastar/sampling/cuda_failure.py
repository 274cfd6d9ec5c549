"""What went wrong in a kernel, in the program's words."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from fastar.sampling import draws
from fastar.sampling.cpu import REASONS
from fastar.sampling.index import Ref
from fastar.sampling.program import Program

# Of each team: (place in the code, positions complete, variables, (kind, row, position, place) of a failure or None).
Reached = list[tuple[int, int, list[int], tuple[str, int, int, int] | None]]


def raise_first(
    program: Program, reached: Reached, variables: Mapping[str, int], buffer: Callable[[int], Tensor]
) -> None:
    """Raise the earliest failure, if there is one. `variables` numbers the loop variables; `buffer` gives a buffer's
    numbers, by row."""
    failed = [(failure, numbers) for _, _, numbers, failure in reached if failure is not None]
    if not failed:
        return
    (kind, row, position, place), numbers = min(failed, key=lambda one: (one[0][2], one[0][1]))
    where = f"position {position}, code[{place}] {program.code[place].op}"
    if kind in ("not_a_number", "not_finite"):
        values = {name: numbers[number] for name, number in variables.items()}
        culprit = _first_not_finite(program, row, place, values, buffer)
        if culprit is not None:
            where = f"position {position}, code[{culprit}] {program.code[culprit].op}"
            raise draws.SamplingError(f"{where}: row {row}: the result is not finite, so the draw after it has no law")
    if kind == "stuck":
        raise RuntimeError(f"{program.name}: blocks of the grid waited ten seconds for one another in vain")
    raise draws.SamplingError(f"{where}: row {row}: {REASONS[kind]}")


def _first_not_finite(
    program: Program, row: int, place: int, values: Mapping[str, int], buffer: Callable[[int], Tensor]
) -> int | None:
    # Of the instructions between the last control flow and the draw at `place`, those whose results are still there:
    # scratch may have been written again, and buffers that are not needed at the same time share a place.
    numbers = {one.name: number for number, one in enumerate(program.buffers)}
    first = place
    while first > 0 and hasattr(program.code[first - 1], "out"):
        first -= 1
    results: list[tuple[int, Tensor]] = []
    for at in range(first, place):
        for ref in (getattr(program.code[at], name, None) for name in ("out", "cell_out")):
            if isinstance(ref, Ref):
                found = buffer(numbers[ref.buffer])[row]
                for axis, index in enumerate(ref.at):
                    found = found[index.at(values) % program.buffer(ref.buffer).shape[axis]]
                begin = ref.offset.at(values)
                results.append((at, found[begin : begin + ref.width]))
    last = {found.data_ptr(): at for at, found in results}
    for at, found in results:
        if last[found.data_ptr()] == at and not bool(found.isfinite().all()):
            return at
    return None
