"""Timing logic, on a clock that moves only when a contender says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fastar.bench.timing import CudaClock, Effort, HostClock, Samples, clock_for, interleaved, warm_up


class FakeTime:
    """A clock that stands still; `work` makes a call that moves it on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []
        self.clock = HostClock(lambda: self.now)

    def work(self, name: str, *seconds: float) -> Callable[[], None]:
        taken = 0

        def call() -> None:
            nonlocal taken
            self.calls.append(name)
            self.now += seconds[min(taken, len(seconds) - 1)]
            taken += 1

        return call


@pytest.fixture
def fake() -> FakeTime:
    return FakeTime()


def effort(rounds: int = 6, least: int = 2, seconds: float = 1e9) -> Effort:
    return Effort(rounds, least, seconds, warm_up_seconds=0.5, sample_seconds=0.5)


def test_median_and_quartiles() -> None:
    samples = Samples((5.0, 1.0, 2.0, 4.0, 3.0))
    assert samples.median == 3.0
    assert samples.quartiles == (2.0, 4.0)
    assert samples.spread == pytest.approx(2 / 3)
    assert Samples((2.0,)).quartiles == (2.0, 2.0)


def test_one_outlier_does_not_move_the_median() -> None:
    assert Samples((1.0, 1.0, 1.0, 1.0, 100.0)).median == 1.0


def test_contenders_take_turns_and_the_first_turn_moves_on(fake: FakeTime) -> None:
    calls = {name: fake.work(name, 1.0) for name in "abc"}
    interleaved(calls, fake.clock, effort(rounds=3))
    assert "".join(fake.calls[-9:]) == "abcbcacab"


def test_samples_are_seconds_per_call(fake: FakeTime) -> None:
    samples = interleaved({"quick": fake.work("quick", 0.1), "slow": fake.work("slow", 2.0)}, fake.clock, effort())
    assert samples["quick"].seconds == pytest.approx((0.1,) * 6)
    assert samples["slow"].seconds == pytest.approx((2.0,) * 6)


def test_first_slow_calls_are_not_sampled(fake: FakeTime) -> None:
    samples = interleaved({"compiled": fake.work("compiled", 60.0, 1.0)}, fake.clock, effort())
    assert samples["compiled"].seconds == pytest.approx((1.0,) * 6)


def test_warm_up_makes_short_calls_into_long_samples(fake: FakeTime) -> None:
    repeats = warm_up(fake.work("short", 0.01), fake.clock, effort())
    assert repeats * 0.01 >= 0.5
    assert repeats <= 51
    assert warm_up(fake.work("long", 3.0), fake.clock, effort()) == 1


def test_warm_up_goes_on_until_its_time_is_spent(fake: FakeTime) -> None:
    warm_up(fake.work("call", 1.0), fake.clock, Effort(1, 1, 1.0, warm_up_seconds=10.0, sample_seconds=0.5))
    assert len(fake.calls) >= 10


def test_rounds_end_when_the_time_is_spent_but_not_before_the_least(fake: FakeTime) -> None:
    by_time = interleaved({"a": fake.work("a", 1.0)}, fake.clock, effort(rounds=50, least=2, seconds=5.0))
    assert len(by_time["a"].seconds) == 5
    by_least = interleaved({"a": fake.work("a", 100.0)}, fake.clock, effort(rounds=50, least=3, seconds=5.0))
    assert len(by_least["a"].seconds) == 3
    by_rounds = interleaved({"a": fake.work("a", 1.0)}, fake.clock, effort(rounds=4, least=2, seconds=1e9))
    assert len(by_rounds["a"].seconds) == 4


def test_a_slow_minute_falls_on_everyone(fake: FakeTime) -> None:
    # The machine is three times slower during the second half of the run.
    def slowing(name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            fake.now += seconds * (3.0 if fake.now > 60.0 else 1.0)

        return call

    samples = interleaved({"ours": slowing("ours", 1.0), "theirs": slowing("theirs", 2.0)}, fake.clock, effort(50))
    assert samples["theirs"].median / samples["ours"].median == pytest.approx(2.0)


def test_progress_rises_to_one(fake: FakeTime) -> None:
    seen: list[float] = []
    interleaved({"a": fake.work("a", 1.0)}, fake.clock, effort(rounds=50, least=2, seconds=7.0), seen.append)
    assert seen == sorted(seen)
    assert len(seen) == 7
    assert seen[-1] == 1.0


def test_clock_of_a_device() -> None:
    assert isinstance(clock_for(torch.device("cpu")), HostClock)
    assert isinstance(clock_for(torch.device("cuda")), CudaClock)


@pytest.mark.gpu
def test_events_see_the_work_and_not_only_the_launch() -> None:
    x = torch.randn(8192, 8192, device="cuda")
    clock = CudaClock()
    clock.time(lambda: x @ x, 1)
    # 1.1 TFLOP: no GPU does it in the time of a launch.
    assert clock.time(lambda: x @ x, 1) > 1e-4
