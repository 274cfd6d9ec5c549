"""Measuring one case: who is absent, who disagrees, and where the floor lies."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from fastar.bench import machine, report, runner
from fastar.bench.machine import Probes
from fastar.bench.registry import Absent, Case, Contenders, Part
from fastar.bench.runner import DisagreementError, Result, explain, measure
from fastar.bench.timing import Effort

CPU = torch.device("cpu")
BRIEF = Effort(rounds=3, least=2, seconds=0.01, warm_up_seconds=0.0, sample_seconds=1e-5)

MakeCase = Callable[..., Case]
MakeResult = Callable[..., Result]


@pytest.fixture(autouse=True)
def _known_roofs(monkeypatch: pytest.MonkeyPatch) -> None:
    roofs = iter([Probes(2e9, 1e9, 5e9), Probes(1e9, 3e9, 4e9)])
    monkeypatch.setattr(machine, "probe", lambda device, dtype, quick: next(roofs))


def _mean(x: torch.Tensor) -> Callable[[], object]:
    return lambda: x.mean(0) * len(x)


def _failing(x: torch.Tensor) -> Callable[[], object]:
    def call() -> object:
        raise RuntimeError("\n  no compiler found\nand a long explanation")

    return call


def test_measures_everyone(make_case: MakeCase) -> None:
    result = measure(make_case(alternatives={"mean": _mean, "again": _mean}), CPU, BRIEF)
    assert set(result.alternatives) == {"mean", "again"}
    assert result.absent == {}
    assert 2 <= len(result.ours.seconds) <= 3
    assert result.threads == torch.get_num_threads()
    assert result.ratio_to_best == min(result.alternatives_us.values()) / result.ours_us


def test_roofs_are_the_best_of_before_and_after(make_case: MakeCase) -> None:
    assert measure(make_case(), CPU, BRIEF).probes == Probes(2e9, 3e9, 5e9)


def test_an_alternative_that_fails_is_absent_with_its_reason(make_case: MakeCase) -> None:
    case = make_case(alternatives={"mean": _mean, "compiled": _failing, "other": lambda x: Absent("not installed")})
    result = measure(case, CPU, BRIEF)
    assert set(result.alternatives) == {"mean"}
    assert result.absent == {"compiled": "RuntimeError: no compiler found", "other": "not installed"}


def test_without_any_alternative_there_is_no_ratio(make_case: MakeCase) -> None:
    assert measure(make_case(alternatives={"compiled": _failing}), CPU, BRIEF).ratio_to_best is None


def test_an_error_of_ours_is_raised(make_case: MakeCase) -> None:
    with pytest.raises(RuntimeError, match="no compiler found"):
        measure(make_case(ours=_failing), CPU, BRIEF)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda x: lambda: x.sum(0) * 1.1, "differs from ours"),
        (lambda x: lambda: x.sum(0) * float("nan"), "differs from ours"),
        (lambda x: lambda: x.sum(1), r"shapes \[\[8\]\] and \[\[4\]\]"),
        (lambda x: lambda: (x.sum(0), x), r"shapes \[\[4\], \[8, 4\]\] and \[\[4\]\]"),
    ],
)
def test_an_alternative_that_computes_something_else_is_an_error(
    make_case: MakeCase, other: Callable[[torch.Tensor], Callable[[], object]], message: str
) -> None:
    with pytest.raises(DisagreementError, match=message):
        measure(make_case(alternatives={"other": other}), CPU, BRIEF)


def test_rounding_is_no_disagreement_and_none_is_not_compared(make_case: MakeCase) -> None:
    others = {"rounded": lambda x: lambda: x.sum(0).bfloat16(), "draws": lambda x: lambda: None}
    assert set(measure(make_case(alternatives=others), CPU, BRIEF).alternatives) == {"rounded", "draws"}


def test_input_sets_are_gone_through_in_turn() -> None:
    seen: list[int] = []
    made = 0

    def build(device: torch.device) -> Contenders:
        nonlocal made
        mine = made = made + 1
        return Contenders(lambda: seen.append(mine), {})

    case = Case("a.b", "a", ("cpu",), torch.float32, "", "forward", bytes=1.0, flops=1.0, build=build)
    ours, *_ = runner._prepare(case, CPU, 3)
    assert seen == [1, 2, 3]
    for _ in range(6):
        ours()
    assert seen[3:] == [1, 2, 3, 1, 2, 3]


def test_a_part_is_multiplied_and_said_to_be_one() -> None:
    def build(device: torch.device) -> Contenders:
        return Contenders(lambda: time.sleep(1e-3), {"slow": Part(lambda: time.sleep(1e-3), 50)})

    case = Case("a.b", "a", ("cpu",), torch.float32, "", "forward", bytes=1.0, flops=1.0, build=build)
    result = measure(case, CPU, BRIEF)
    assert 10 < result.alternatives_us["slow"] / result.ours_us < 250
    assert "a.b: slow: one of 50 equal parts was timed, and its time multiplied" in report.notes([result])


def test_ratios_and_rates(make_result: MakeResult) -> None:
    result = make_result({"fastar": (2e-3, 1e-3, 3e-3), "a": (8e-3,), "b": (5e-3,)}, bytes=4e6, flops=6e6)
    assert result.ours_us == pytest.approx(2000)
    assert result.alternatives_us == pytest.approx({"a": 8000, "b": 5000})
    assert result.ratio_to_best == pytest.approx(2.5)
    assert result.bytes_per_s == pytest.approx(2e9)
    assert result.flops_per_s == pytest.approx(3e9)


def test_floor_is_the_slower_of_memory_and_arithmetic(make_result: MakeResult) -> None:
    one = {"fastar": (1e-3,)}
    roofs = Probes(read_bytes_per_s=1e9, copy_bytes_per_s=2e9, matrix_flops_per_s=1e10)
    memory = make_result(one, probes=roofs, bytes=1e6, flops=1e6)
    assert memory.floor_us == pytest.approx(500)
    assert memory.ratio_to_floor == pytest.approx(0.5)
    assert make_result(one, probes=roofs, bytes=1e5, flops=8e6).floor_us == pytest.approx(800)


def test_what_fits_a_processors_cache_is_not_charged(make_result: MakeResult) -> None:
    one = {"fastar": (1e-3,)}
    sizes = {"bytes": 1e6, "flops": 1e4, "cache_bytes": 2_000_000}
    assert make_result(one, **sizes).floor_us == pytest.approx(10)
    assert make_result(one, **sizes, device="cuda").floor_us == pytest.approx(1000)


def test_reading_takes_its_turn_where_memory_bounds_a_case(
    make_case: MakeCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cache_bytes", lambda device: 100)
    monkeypatch.setattr(machine, "reading", lambda device, quick: (lambda: time.sleep(1e-3), 1000))
    result = measure(make_case(bytes=101.0), CPU, BRIEF)
    assert set(result.alternatives) == {"mean"}
    assert result.read_in_turn is not None
    assert 1e5 < result.read_in_turn <= 1e6
    assert result.floor_us == pytest.approx(101 / result.read_in_turn * 1e6)
    assert "read in turn" in report.rates_text(result)


def test_reading_takes_no_turn_where_the_cache_holds_all(make_case: MakeCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cache_bytes", lambda device: 100)
    assert measure(make_case(bytes=100.0), CPU, BRIEF).read_in_turn is None


def test_figures_are_per_unit(make_result: MakeResult) -> None:
    samples = {"fastar": (1.0,), "loop": (4.0,)}
    whole = make_result(samples, bytes=1e9, flops=1e6)
    each = make_result(samples, bytes=1e9, flops=1e6, per=100, unit="symbol")
    assert each.ours_us == pytest.approx(whole.ours_us / 100)
    assert each.floor_us == pytest.approx(whole.floor_us / 100)
    assert (each.ratio_to_best, each.ratio_to_floor) == pytest.approx((4.0, whole.ratio_to_floor))
    assert each.bytes_per_s == pytest.approx(whole.bytes_per_s)


def test_noise_is_named(make_result: MakeResult) -> None:
    result = make_result({"fastar": (1.0, 1.0, 1.01, 1.0), "wild": (1.0, 2.0, 1.0, 2.0)})
    assert result.noisy == ["wild"]


def test_explain_is_one_line() -> None:
    assert explain(ValueError("\n\n  first \nsecond")) == "ValueError: first"
    assert explain(KeyError()) == "KeyError"
