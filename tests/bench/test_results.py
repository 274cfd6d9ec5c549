"""The table of the ops in docs/kernels holds what was measured, and nothing was measured alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench/results/ops_cpu.json"
PAGE = ROOT / "docs/kernels/README.md"


def row(record: dict[str, Any]) -> str:
    others = record["alternatives"]
    best = min(others, key=others.__getitem__)
    ours, theirs = record["ours_us"] / 1e3, others[best] / 1e3
    return f"| {record['case']} | {ours:.3g} ms | {best} | {theirs:.3g} ms | {theirs / ours:.2f} |"


def test_the_page_holds_every_result_and_no_other() -> None:
    records = json.loads(RESULTS.read_text())
    assert all(one["alternatives"] and one["device"] == "cpu" and one["threads"] == 2 for one in records)
    page = PAGE.read_text()
    table = page[page.index("| case | fastar |") :].splitlines()[2:]
    found = table[: next((i for i, line in enumerate(table) if not line.startswith("|")), len(table))]
    assert found == [row(one) for one in records]
