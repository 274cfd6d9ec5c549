"""Ten million steps: memory holds the state and the output of a run, and nothing is left behind by either."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastar import native
from fastar.sampling import Sampler
from tests.sampling.consumers import nade, wavenet

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(native.why_missing() is not None, reason=str(native.why_missing())),
    pytest.mark.skipif(
        not Path("/proc/self/statm").exists(), reason="the system does not tell how much memory is used"
    ),
]


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_long_runs_leave_nothing_behind() -> None:
    sampler = Sampler(wavenet().program, 1, threads=1)
    length, runs = 1_000_000, 10
    after = []
    for seed in range(runs):
        sampler.sample(length=length, seed=seed)
        after.append(_resident())
    # A run's output is 16 MB; a byte a step left behind would be 8 MB by the end.
    assert max(after[2:]) - after[1] < 2 << 20, [one >> 10 for one in after]


def test_many_short_runs_leave_nothing_behind() -> None:
    sampler = Sampler(nade(D=50).program, 2, threads=2)
    for seed in range(3000):
        sampler.sample(seed=seed)
    before = _resident()
    for seed in range(12_000):
        sampler.sample(seed=seed)
    assert _resident() - before < 2 << 20
