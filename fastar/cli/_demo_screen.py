"""What the demo's parts have in common on the screen and while they train."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fastar.cli import pictures


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread, and afterwards as before."""
    # The products are small: a second thread gains a sixth on an idle machine, and on a busy one the two wait for each
    # other many times as long as they work.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def bar(console: Console, total: int) -> Iterator[Callable[[int, float], None]]:
    """A progress bar; what it gives is called with what is done, and the held-out bits per dimension so far."""
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[bits]}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=total, bits="")

        def advance(done: int, bits: float) -> None:
            progress.update(task, completed=done, bits=f"{bits:.2f} bits/dim")

        yield advance


def table(rows: Sequence[tuple[str, str]]) -> Table:
    """Names and what was measured beside them."""
    grid = Table.grid(padding=(0, 2))
    # Cut words get no ellipsis, which not every terminal's encoding has.
    grid.add_column(overflow="fold")
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, value)
    return grid


def before_and_after(untrained: float, trained: float, levels: int | None) -> str:
    """Bits per dimension, and those of guessing."""
    guess = "" if levels is None else f" ({math.log2(levels):.2f} is guessing)"
    return f"{untrained:.2f} before, [b]{trained:.2f}[/] after{guess}"


def curves(untrained: float, train: Sequence[float], held_out: Sequence[float]) -> list[pictures.Curve]:
    """The two learning curves."""
    return [pictures.Curve("training", train), pictures.Curve("held out", [untrained, *held_out], first=0)]
