"""What all tests share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    """The same random numbers in every run and order of tests."""
    torch.manual_seed(0)
