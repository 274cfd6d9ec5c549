"""The host twin of the CUDA kernels, compiled once for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fastar import native
from fastar.native import cuda


@pytest.fixture(scope="session")
def twin() -> Any:
    """The twin's library; tests that need it are skipped where the native part is not built."""
    missing = native.why_missing()
    if missing is not None:
        pytest.skip(missing)
    return cuda.twin()


@pytest.fixture
def card(twin: Any) -> Iterator[Any]:
    """The twin, which a test may make another card."""
    changed: dict[str, int] = {}

    class Card:
        def __getattr__(self, name: str) -> Any:
            return getattr(twin, name)

        def pretend(self, what: str, value: int, otherwise: int) -> None:
            changed.setdefault(what, otherwise)
            twin.pretend(what, value)

    yield Card()
    for what, value in changed.items():
        twin.pretend(what, value)
