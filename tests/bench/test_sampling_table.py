"""The table of sampling: the documentation holds what was measured, and a case's last run replaces the one before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastar.bench import sampling_table as table

ROOT = Path(__file__).resolve().parents[2]


def test_the_documents_table_is_what_was_measured() -> None:
    kept = json.loads((ROOT / "bench/results/sampling_cpu.json").read_text(encoding="utf-8"))
    assert table.markdown(kept) in (ROOT / "docs/cpu-executor.md").read_text(encoding="utf-8")
    assert all(f" {one['case']} " in one["command"] for one in kept)


def test_the_last_run_of_a_case_is_kept() -> None:
    def run(name: str, ours: float) -> dict[str, Any]:
        return {
            "case": f"sampling.{name}.1.int8",
            "device": "cpu",
            "threads": 2,
            "machine": {"processor": "a processor"},
            "ours_us": ours,
            "alternatives": {"a loop": 3000.0, "another": 2500.0},
            "bytes_per_s": 9e9,
            "read_in_turn_bytes_per_s": 10e9,
        }

    results = table.merged(table.merged([], [run("b", 1.0), run("a", 2.0)]), [run("b", 1000.0)])
    assert [(one["case"], one["ours_us"]) for one in results] == [
        ("sampling.a.1.int8", 2.0),
        ("sampling.b.1.int8", 1000.0),
    ]
    assert "| b, 1, int8 | **1.00 ms** | 90% | another 2.50 ms (2.5x), a loop 3.00 ms (3.0x) |" in table.markdown(
        results
    )
