"""Results as a table for the terminal, as JSON, and as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastar.bench.runner import Result
from fastar.bench.timing import Samples

OURS = "fastar"
ACCENT, GREY, DARK, LIGHT = "#0b7285", "#ced4da", "#343a40", "#868e96"


def to_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One object per case; what could not be measured is absent from it."""
    return [
        {
            "case": result.case.name,
            "device": result.device,
            "machine": {**asdict(result.machine), **asdict(result.probes)},
            "dtype": dtype_text(result),
            "threads": result.threads,
            "ours_us": result.ours_us,
            "alternatives": result.alternatives_us,
            "ratio_to_best": result.ratio_to_best,
            "floor_us": result.floor_us,
            "ratio_to_floor": result.ratio_to_floor,
            "samples": len(result.ours.seconds),
            "read_in_turn_bytes_per_s": result.read_in_turn,
            "bytes_per_s": result.bytes_per_s,
            "flops_per_s": result.flops_per_s,
        }
        for result in results
    ]


def write_json(results: Sequence[Result], path: Path) -> None:
    """Write the objects of `to_json` as one list."""
    path.write_text(json.dumps(to_json(results), indent=2) + "\n", encoding="utf-8")


def time_text(us: float) -> str:
    """Microseconds in the unit that suits them, to three digits."""
    # What rounds to 1000 of a unit is written as 1 of the next.
    for limit, scale, unit in ((1e3, 1.0, "us"), (1e6, 1e3, "ms")):
        if us < 0.9995 * limit:
            return f"{_three_digits(us / scale)} {unit}"
    return f"{_three_digits(us / 1e6)} s"


def rate_text(per_second: float, unit: str) -> str:
    """A rate with the prefix that suits it, to three digits."""
    for prefix, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if per_second >= 0.9995 * scale:
            return f"{_three_digits(per_second / scale)} {prefix}{unit}/s"
    return f"{_three_digits(per_second)} {unit}/s"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def dtype_text(result: Result) -> str:
    """The dtype's plain name."""
    return str(result.case.dtype).removeprefix("torch.")


def machine_text(result: Result) -> str:
    """The machine in one line."""
    machine = result.machine
    where = machine.gpu or f"{machine.processor}, {machine.cores} cores, {result.threads} threads"
    return f"{where}; torch {machine.torch}, fastar {machine.fastar}, python {machine.python}, {machine.system}"


def rates_text(result: Result) -> str:
    """What ours reaches, beside what this machine did in the probes."""
    probes = result.probes
    in_turn = "" if result.read_in_turn is None else f", read in turn {rate_text(result.read_in_turn, 'B')}"
    return (
        f"{OURS}: {rate_text(result.flops_per_s, 'FLOP')} of {rate_text(probes.matrix_flops_per_s, 'FLOP')};"
        f" {rate_text(result.bytes_per_s, 'B')} of {rate_text(probes.read_bytes_per_s, 'B')}"
        f" (copy {rate_text(probes.copy_bytes_per_s, 'B')}"
        f"{in_turn})"
    )


def tables(results: Sequence[Result]) -> RenderableType:
    """The machine, then a table per case."""
    parts: list[RenderableType] = [Text(machine_text(results[0]), style="bold")] if results else []
    for result in results:
        parts += [Text(), _table(result)]
    return Group(*parts)


def _table(result: Result) -> Table:
    case = result.case
    table = Table(
        title=f"{case.name}\n[not bold]{case.shapes}{_per(result)}[/]",
        title_justify="left",
        title_style="bold",
        caption=rates_text(result),
        caption_justify="left",
        min_width=78,
    )
    table.add_column("")
    for heading in ("median", "quartiles", f"over {OURS}"):
        table.add_column(heading, justify="right")

    def row(name: str, samples: Samples, style: str) -> None:
        low, high = (time_text(edge * 1e6 / case.per) for edge in samples.quartiles)
        us = result.us(samples)
        table.add_row(name, time_text(us), f"{low} - {high}", f"{us / result.ours_us:.2f}x", style=style)

    row(OURS, result.ours, "bold cyan")
    best = min(result.alternatives_us.values(), default=0.0)
    for name, samples in result.alternatives.items():
        row(name, samples, "bold" if result.us(samples) == best else "")
    for name in result.absent:
        table.add_row(name, "absent", "", "", style="dim")
    table.add_row("floor", time_text(result.floor_us), "", f"{result.ratio_to_floor:.2f}x", style="dim")
    return table


def _per(result: Result) -> str:
    return "" if result.case.unit == "call" else f", per {result.case.unit}"


def notes(results: Sequence[Result]) -> list[str]:
    """What a reader of the figures has to know: who is absent and why, and what is too noisy to trust."""
    absent = [f"{r.case.name}: {name} is absent: {reason}" for r in results for name, reason in r.absent.items()]
    noisy = [
        f"{r.case.name}: noisy, measure again: quartiles over 10% of the median apart for {', '.join(r.noisy)}"
        for r in results
        if r.noisy
    ]
    parts = [
        f"{r.case.name}: {name}: one of {count:,} equal parts was timed, and its time multiplied"
        for r in results
        for name, count in r.parts.items()
    ]
    return absent + parts + noisy


def plot(results: Sequence[Result], path: Path) -> None:
    """A picture with a panel of bars per case, ours on top; shorter is better."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bars = [1 + len(result.alternatives) for result in results]
    # Inches: a footer, and for each panel a title and its bars.
    figure = Figure(figsize=(9, 0.55 + sum(0.7 + 0.3 * count for count in bars)), dpi=150)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", h_pad=0.12)
    panels = figure.subplots(len(results), 1, squeeze=False, height_ratios=bars)[:, 0]
    for axes, result in zip(panels, results, strict=True):
        _panel(axes, result)
    footer = f"median times, shorter is better, and how many times fastar's\n{machine_text(results[0])}"
    figure.supxlabel(footer, fontsize=7.5, color=LIGHT, x=0.01, ha="left")
    figure.savefig(path)


def _panel(axes: Any, result: Result) -> None:
    fastest_first = sorted(result.alternatives_us.items(), key=lambda one: one[1])
    names = [OURS, *(name for name, _ in fastest_first)]
    times = [result.ours_us, *(us for _, us in fastest_first)]
    axes.barh(range(len(times)), times, height=0.7, color=[ACCENT, *[GREY] * (len(times) - 1)])
    for index, us in enumerate(times):
        label = time_text(us) if index == 0 else f"{time_text(us)}   {us / result.ours_us:.2f}x"
        weight = "bold" if index == 0 else "normal"
        axes.text(us, index, f"  {label}", va="center", fontsize=9, color=DARK, weight=weight)
    axes.axvline(result.floor_us, color=DARK, linewidth=1, linestyle=(0, (2, 2)))
    axes.text(
        result.floor_us,
        1.01,
        f"floor {time_text(result.floor_us)}",
        transform=axes.get_xaxis_transform(),
        ha="center",
        va="bottom",
        fontsize=7.5,
        color=DARK,
    )
    axes.set_yticks(range(len(names)), names, fontsize=9, color=DARK)
    axes.get_yticklabels()[0].set_weight("bold")
    axes.invert_yaxis()
    # Room for the label behind the longest bar.
    axes.set_xlim(0, max(times) * 1.2)
    axes.set_xticks([])
    axes.tick_params(left=False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    case = result.case
    title = f"{case.op}, {case.direction}{_per(result)}: {case.shapes}, {dtype_text(result)}"
    axes.set_title(title, fontsize=10, loc="left", pad=15)
