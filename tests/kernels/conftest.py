"""What the compiled kernels need, shown at the end of a run; the interpreter's tests are kept out of this process."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

# One process can either interpret Triton's kernels or compile them: test_interpreted.py starts another for these.
collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]

COMPILED = "compiled kernel"


@pytest.fixture
def report_compiled(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Enter a line for the end of the run; as a property of the test it also comes back from a worker process."""
    return lambda line: record_property(COMPILED, line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = [
        str(value)
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for name, value in report.user_properties
        if name == COMPILED
    ]
    if lines:
        terminalreporter.section("compiled kernels: most registers per thread, most shared memory per block")
        for line in sorted(lines):
            terminalreporter.line(line)
