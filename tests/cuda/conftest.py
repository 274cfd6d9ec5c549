"""The host twin of the CUDA kernels, compiled once for all tests."""

from __future__ import annotations

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
