"""The text of ``fastar doctor``, from the data that fastar/cli/doctor.py gathered. Standard library only."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

from fastar.cli.doctor import ABSENT

Report = dict[str, Any]

MARGIN = 2
LABEL = 9
COMMAND = re.compile(r"'(?:pip|python) [^']+'|(?<=run: )pip .+")
BOLD, RED, GREEN, YELLOW = "1", "1;31", "1;32", "1;33"


def render(report: Report) -> str:
    """The whole screen, at most 100 columns wide."""
    width = min(shutil.get_terminal_size().columns, 100)
    blocks = [_versions(report, width), _machine(report, width), _ops(report["ops"], width), _verdict(report, width)]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _style(text: str, code: str) -> str:
    plain = not sys.stdout.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return text if plain else f"\033[{code}m{text}\033[0m"


def _row(label: str, text: str, width: int, code: str = BOLD) -> list[str]:
    """A label and its text, wrapped beside it; a command to type stays on one line."""
    indent = MARGIN + LABEL
    whole = COMMAND.sub(lambda found: found.group().replace(" ", "\N{NO-BREAK SPACE}"), text)
    lines = textwrap.wrap(whole, width - indent, break_long_words=False, break_on_hyphens=False) or [""]
    lines = [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]
    head = " " * MARGIN + (_style(label, code) if label else "") + " " * (LABEL - len(label))
    return [head + lines[0], *(" " * indent + line for line in lines[1:])]


def _told(section: Report, text: Callable[[Report], str]) -> str:
    """The section's text, or the error that stands in its place."""
    return str(section["error"]) if section.get("error") else text(section)


def _versions(report: Report, width: int) -> list[str]:
    def own(section: Report) -> str:
        return f"{section['version']}, {'checkout' if section['checkout'] else 'installed'} in {section['folder']}"

    def interpreter(section: Report) -> str:
        return f"{section['version']}, {section['system']}, {section['executable']}"

    def versions(section: Report) -> str:
        present = [f"{name} {one['version']}" for name, one in section.items() if one["version"]]
        broken = [f"{name} {one['error']}" for name, one in section.items() if one["error"] not in (None, ABSENT)]
        absent = [name for name, one in section.items() if one["error"] == ABSENT]
        return ", ".join([*present, *broken]) + (f"; not installed: {', '.join(absent)}" if absent else "")

    return [
        *_row("fastar", _told(report["fastar"], own), width),
        *_row("python", _told(report["python"], interpreter), width),
        *_row("with", _told(report["packages"], versions), width),
    ]


def _machine(report: Report, width: int) -> list[str]:
    def cpu(section: Report) -> str:
        return f"{section['model']}, {section['cores']} cores: {' '.join(section['vector_units'])}"

    def core(section: Report) -> str:
        return f"built for {', '.join(section['levels_built'])}; {section['level']} in use"

    lines = [*_row("cpu", _told(report["cpu"], cpu), width), *_row("_core", _told(report["core"], core), width)]
    if report["gpus"].get("error"):
        lines += _row("gpu", str(report["gpus"]["error"]), width)
    else:
        for device in report["gpus"]["devices"]:
            lines += _row(device["device"], _gpu(device), width)
    return [*lines, *_row("cuda", _told(report["cuda_library"], _cuda), width)]


def _gpu(device: Report) -> str:
    def shown(name: str, unit: int, text: str) -> list[str]:
        return [] if device[name] is None else [text.format(device[name] / unit)]

    clusters = {1: "no clusters", None: "clusters"}
    parts = [
        f"{device['name']}, compute capability {device['capability']}",
        *shown("memory_bytes", 2**30, "{:.0f} GiB"),
        *shown("l2_bytes", 2**20, "{:.0f} MiB L2"),
        *shown("multiprocessors", 1, "{:.0f} multiprocessors"),
        *shown("registers_per_multiprocessor", 1, "{:.0f} registers each"),
        *shown("shared_per_multiprocessor", 2**10, "{:.0f} KiB shared memory each"),
        *shown("shared_per_block", 2**10, "{:.0f} KiB for one block"),
        clusters.get(device["max_cluster"], f"clusters of up to {device['max_cluster']} blocks"),
    ]
    if device.get("kernel_registers"):
        parts.append(f"the sampling kernel takes {device['kernel_registers']} registers a thread")
    return ", ".join(parts)


def _cuda(section: Report) -> str:
    if section["file"] is not None:
        origin = "built ahead of time" if section["origin"] == "package" else "compiled on first use"
        cards = ", ".join(f"sm_{arch}" for arch in section["archs"])
        return f"kernels {origin} for {cards}: {section['file']}"
    if section["cannot_compile"]:
        return f"kernels {section['packaged']}; {section['cannot_compile']}"
    return f"kernels {section['packaged']}; on first use {section['compiler']} compiles them into {section['cache']}"


def _ops(section: Report, width: int) -> list[str]:
    if section.get("error"):
        return _row("ops", str(section["error"]), width)
    choices: dict[tuple[str, str], dict[str, str]] = {}
    for one in section["choices"]:
        choices.setdefault((one["op"], one["device"]), {})[one["dtype"]] = one["uses"] or "none"
    dtypes = list(next(iter(choices.values()), {}))
    cells = [["op", "device", *dtypes], *([op, device, *by.values()] for (op, device), by in choices.items())]
    widths = [max(map(len, column)) + 2 for column in zip(*cells, strict=True)]
    table = ["".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip() for row in cells]
    lines = [" " * MARGIN + _style(table[0], BOLD), *(" " * MARGIN + row for row in table[1:])]
    reasons = [
        line
        for index, text in enumerate(_reasons(section["choices"]))
        for line in _row("declined" if index == 0 else "", text, width)
    ]
    return [*lines, "", *reasons] if reasons else lines


def _reasons(choices: Iterable[Report]) -> list[str]:
    """Why better implementations than the chosen ones declined, each reason once."""
    concerned: dict[tuple[str, str, str], dict[str, None]] = {}
    for one in choices:
        for name, reason in one["declined"].items():
            concerned.setdefault((name, one["device"], reason), {})[one["op"]] = None
    everywhere = len({one["op"] for one in choices})
    return [
        f"{name} on {device}: {reason}" + ("" if len(ops) == everywhere else f" ({', '.join(ops)})")
        for (name, device, reason), ops in concerned.items()
    ]


def _verdict(report: Report, width: int) -> list[str]:
    lines = [line for text in report["notes"] for line in _row("note", text, width, YELLOW)]
    lines += [line for text in report["problems"] for line in _row("problem", text, width, RED)]
    return lines if report["problems"] else [*lines, *_row("ok", "nothing essential is missing", width, GREEN)]
