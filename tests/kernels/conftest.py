"""What the compiled kernels need, shown at the end of a run; the interpreter's tests are kept out of this process."""

from __future__ import annotations

import os

import pytest

# One process can either interpret Triton's kernels or compile them: test_interpreted.py starts another for these.
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]

COMPILED: list[str] = []


@pytest.fixture
def compiled_report() -> list[str]:
    """Lines for the end of the run."""
    return COMPILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if COMPILED:
        terminalreporter.section("compiled kernels: most registers per thread, most shared memory per block")
        for line in sorted(COMPILED):
            terminalreporter.line(line)
