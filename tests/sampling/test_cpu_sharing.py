"""How the cpu executor shares work out: by a model of what steps and meetings cost, and on cores of their own."""

from __future__ import annotations

import os
import sys

import pytest

from fastar import native
from fastar.sampling.cpu import Cpu
from fastar.sampling.request import make
from tests.sampling.consumers_more import recurrent

pytestmark = pytest.mark.skipif(native.why_missing() is not None, reason=str(native.why_missing()))


@pytest.mark.parametrize(
    ("width", "rows", "ns_to_hear", "sharing"),
    [
        (256, 1, 60.0, "steps"),
        (256, 1, 1e5, "rows"),  # threads too far apart for any matrix of this size
        (4, 1, 60.0, "rows"),  # steps shorter than hearing of one another
        (4, 64, 60.0, "rows"),
    ],
)
def test_threads_share_steps_where_that_saves_more_than_hearing_costs(
    width: int, rows: int, ns_to_hear: float, sharing: str
) -> None:
    program = recurrent("lstm", H=width).program
    plan = Cpu(program, threads=2, rows=rows, ns_to_hear=ns_to_hear).plan
    assert (plan.sharing, plan.threads) == (sharing, 1 if sharing == "rows" and rows == 1 else 2)
    if sharing == "steps":
        assert plan.predicted_ns < Cpu(program, threads=1).plan.predicted_ns


def test_how_far_threads_are_apart_is_measured_and_told() -> None:
    executor = Cpu(recurrent("lstm").program, threads=2)
    assert 1.0 < executor.plan.ns_to_hear < 1e9
    assert f"hears of another in {executor.plan.ns_to_hear:.0f} ns" in executor.describe()
    assert Cpu(recurrent("lstm").program, threads=1).plan.ns_to_hear == 0.0


@pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_workers_keep_off_the_core_of_their_caller() -> None:
    cores = os.sched_getaffinity(0)
    before = set(os.listdir("/proc/self/task"))
    executor = Cpu(recurrent("lstm").program, threads=2, sharing="steps")
    executor.start(make(executor.program, 1, seed=0, length=3)).advance()
    started = set(os.listdir("/proc/self/task")) - before
    assert [len(cores - own) for task in started if (own := os.sched_getaffinity(int(task))) != cores] == [1]
    assert os.sched_getaffinity(0) == cores
