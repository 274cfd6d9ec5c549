"""`fastar bench`: ours against what PyTorch offers, in one run on this machine."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fastar.bench import machine, registry, report, runner, timing

QUICK_NOTE = "--quick measures small sizes for a moment: it shows that everything works, not how fast it is"


def run(
    cases: Sequence[str] = (),
    *,
    device: str = "cpu",
    json_file: Path | None = None,
    plot_file: Path | None = None,
    threads: int | None = None,
    quick: bool = False,
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Measure the cases that the patterns name, and print the tables; returns the objects that `json_file` gets.

    ValueError for a case, device, number of threads or file that cannot be. A case that fails, or an interruption, ends
    in a RuntimeError after what was measured has been printed and written.
    """
    console = console or Console()
    selected = registry.select(cases, device, small=quick)
    _check(device, json_file, plot_file, threads)
    lines = []
    warning = machine.neighbours() if device == "cpu" else None
    if warning:
        lines.append(warning)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        results, failures = _measure(selected, torch.device(device), quick, console)
    finally:
        torch.set_num_threads(before)
    if results:
        console.print(report.tables(results))
        if json_file is not None:
            report.write_json(results, json_file)
        if plot_file is not None:
            report.plot(results, plot_file)
        lines += report.notes(results)
        lines += [QUICK_NOTE] if quick else []
    for line in lines:
        console.print(f"note: {line}", markup=False, highlight=False)
    if failures:
        raise RuntimeError("\n".join(failures))
    objects: list[dict[str, Any]] = report.to_json(results)
    return objects


def _check(device: str, json_file: Path | None, plot_file: Path | None, threads: int | None) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: got cuda, but torch {torch.__version__} finds no CUDA device; use --device cpu")
    for name, file in (("json", json_file), ("plot", plot_file)):
        if file is not None and not file.absolute().parent.is_dir():
            raise ValueError(f"{name}: expected a file in a folder that exists, got {file}")
    if plot_file is not None:
        if plot_file.suffix != ".png":
            raise ValueError(f"plot: expected a file name that ends in .png, got {plot_file}")
        # Where it is missing, that should be said before the measurement and not after.
        importlib.import_module("matplotlib")
    if threads is not None and threads < 1:
        raise ValueError(f"threads: expected a positive integer, got {threads}")


def _measure(
    selected: Sequence[registry.Case], device: torch.device, quick: bool, console: Console
) -> tuple[list[runner.Result], list[str]]:
    results, failures = [], []
    effort = timing.QUICK if quick else timing.FULL
    text = TextColumn("{task.description}"), TextColumn("{task.percentage:>3.0f}%")
    with Progress(text[0], BarColumn(), text[1], TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("", total=len(selected))
        for index, case in enumerate(selected):
            progress.update(task, description=case.name, completed=index)

            def advance(fraction: float, index: int = index) -> None:
                progress.update(task, completed=index + fraction)

            try:
                results.append(runner.measure(case, device, effort, advance))
            except KeyboardInterrupt:
                failures.append(f"interrupted in {case.name}: {len(selected) - index} cases were not measured")
                break
            except Exception as error:
                failures.append(f"{case.name} failed: {runner.explain(error)}")
    return results, failures


def _list(console: Console) -> None:
    known = registry.cases()
    width = max(len(case.name) for case in known)
    for case in known:
        size = "  (small: --quick)" if case.small else ""
        line = f"{case.name:<{width}}  {', '.join(case.devices):<9}  {case.shapes}{size}"
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def bench(
    cases: Annotated[list[str] | None, typer.Argument(metavar="[CASE]...", help="cases, ops or globs; or all")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="write one object per case")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", metavar="FILE.png", help="draw the times as bars")] = None,
    threads: Annotated[int | None, typer.Option(metavar="N", help="CPU threads, for everyone")] = None,
    list_cases: Annotated[bool, typer.Option("--list", help="list the cases and measure nothing")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="small sizes, few rounds: to see that all works")] = False,
) -> None:
    """Measure ops against what PyTorch offers, on this machine."""
    console = Console()
    if list_cases:
        _list(console)
        return
    try:
        run(
            cases or (),
            device=device,
            json_file=json_file,
            plot_file=plot_file,
            threads=threads,
            quick=quick,
            console=console,
        )
    except (ValueError, RuntimeError) as error:
        Console(stderr=True).print(f"fastar bench: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2 if isinstance(error, ValueError) else 1) from None
