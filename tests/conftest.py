"""What all tests share."""

from __future__ import annotations

import os

# Tests that run side by side share the cores: torch's threads, which spin between its calls, would take them from each
# other. Set before torch is loaded, and inherited by the processes that tests start; a test about threads sets its own.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    """The same random numbers in every run and order of tests."""
    torch.manual_seed(0)
