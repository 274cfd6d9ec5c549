"""The table of sampling in docs/cpu-executor.md, made of what `fastar bench` measured.

    python -m fastar bench 'sampling.gpt2-124m.1.*' --json run.json
    python -m fastar.bench.sampling_table run.json

takes the run's cases into bench/results/sampling_cpu.json, in the place of older figures, and writes the table anew.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastar.bench.pages import with_section
from fastar.bench.report import time_text

START, END = "<!-- measured: bench/results/sampling_cpu.json -->\n", "<!-- end of measured -->\n"


def merged(kept: Sequence[dict[str, Any]], run: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Both, each case as it was measured last, with the command that measures it."""
    cases = {one["case"]: one for one in kept}
    for one in run:
        command = f"fastar bench {one['case']} --device {one['device']} --threads {one['threads']}"
        cases[one["case"]] = {"command": command, **one}
    return sorted(cases.values(), key=_order)


def _order(one: dict[str, Any]) -> tuple[str, int, int]:
    _, name, rows, dtype = one["case"].split(".")
    return name, int(rows), ("float32", "bfloat16", "int8").index(dtype)


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """The section, markers included."""
    lines = [
        "| case, rows, weights | fastar | of plain reading | others, and how many times slower |",
        "|---|---|---|---|",
    ]
    for one in results:
        _, name, rows, dtype = one["case"].split(".")
        ours, reading = one["ours_us"], one["read_in_turn_bytes_per_s"]
        share = "" if reading is None else f"{one['bytes_per_s'] / reading:.0%}"
        others = sorted((us, who) for who, us in one["alternatives"].items())
        theirs = ", ".join(f"{who} {time_text(us)} ({us / ours:.1f}x)" for us, who in others)
        lines.append(f"| {name}, {rows}, {dtype} | **{time_text(ours)}** | {share} | {theirs} |")
    threads = sorted({one["threads"] for one in results})
    processors = sorted({one["machine"]["processor"] for one in results})
    where = f"{' and '.join(processors)}, {' or '.join(map(str, threads))} threads for everyone"
    note = f"Medians, per step or image; {where}."
    return START + "\n".join(lines) + f"\n\n{note}\n" + END


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m fastar.bench.sampling_table", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="*", help="what `fastar bench --json` wrote")
    parser.add_argument("--results", type=Path, default=Path("bench/results/sampling_cpu.json"))
    parser.add_argument("--docs", type=Path, default=Path("docs/cpu-executor.md"))
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text()) if arguments.results.exists() else []
    for run in arguments.run:
        results = merged(results, json.loads(run.read_text()))
    try:
        page = with_section(arguments.docs, START, END, markdown(results))
    except (OSError, ValueError) as error:
        parser.error(f"--docs: {error}")
    arguments.results.write_text(json.dumps(results, indent=2) + "\n")
    arguments.docs.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
