"""Finding cases, and the errors where there are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastar.bench import machine, registry, runner, timing
from fastar.bench.registry import Case, select

MakeCase = Callable[..., Case]


@pytest.fixture
def known(make_case: MakeCase) -> list[Case]:
    return [
        make_case("one.a.forward"),
        make_case("one.a.backward", devices=("cuda",)),
        make_case("one.tiny", small=True),
        make_case("two.a.forward", devices=("cpu", "cuda")),
        make_case("three.tiny", small=True),
    ]


def names(cases: list[Case]) -> list[str]:
    return [case.name for case in cases]


def test_no_pattern_means_all_of_full_size(known: list[Case]) -> None:
    assert names(select([], "cpu", among=known)) == ["one.a.forward", "two.a.forward"]
    assert names(select([], "cuda", among=known)) == ["one.a.backward", "two.a.forward"]
    assert names(select([], "cpu", small=True, among=known)) == ["one.tiny", "three.tiny"]


def test_by_op_by_name_and_by_glob(known: list[Case]) -> None:
    assert names(select(["one"], "cpu", among=known)) == ["one.a.forward"]
    assert names(select(["one.a.forward"], "cpu", among=known)) == ["one.a.forward"]
    assert names(select(["*.forward"], "cpu", among=known)) == ["one.a.forward", "two.a.forward"]
    assert names(select(["t*", "two", "one"], "cpu", among=known)) == ["two.a.forward", "one.a.forward"]


def test_a_full_name_is_meant_whatever_its_size(known: list[Case]) -> None:
    assert names(select(["one.tiny"], "cpu", among=known)) == ["one.tiny"]
    assert names(select(["one.a.forward"], "cpu", small=True, among=known)) == ["one.a.forward"]
    assert names(select(["three"], "cpu", among=known)) == ["three.tiny"]


def test_unknown_case_lists_what_there_is(known: list[Case]) -> None:
    with pytest.raises(ValueError, match="nothing is called 'four'") as caught:
        select(["one", "four"], "cpu", among=known)
    assert "ops: one, three, two" in str(caught.value)
    assert all(case.name in str(caught.value) for case in known)


def test_unknown_device(known: list[Case]) -> None:
    with pytest.raises(ValueError, match="device: expected one of cpu, cuda, got 'tpu'"):
        select([], "tpu", among=known)


def test_a_case_of_another_device(known: list[Case]) -> None:
    with pytest.raises(ValueError, match=r"'one.a.backward' does not run on cpu, only on cuda"):
        select(["one.a.backward"], "cpu", among=known)
    with pytest.raises(ValueError, match="there is none for cuda"):
        select([], "cuda", among=known[:1])


def test_a_case_checks_itself(make_case: MakeCase) -> None:
    with pytest.raises(ValueError, match="devices: expected some of"):
        make_case(devices=("gpu",))
    with pytest.raises(ValueError, match="devices: expected some of"):
        make_case(devices=())
    with pytest.raises(ValueError, match="per: expected a positive integer, got 0"):
        make_case(per=0)


def test_repeated_names_are_refused(make_case: MakeCase, monkeypatch: pytest.MonkeyPatch) -> None:
    module = type("module", (), {"CASES": (make_case("a.b"), make_case("a.b")), "__path__": []})
    monkeypatch.setattr(registry.importlib, "import_module", lambda name: module)
    monkeypatch.setattr(registry.pkgutil, "iter_modules", lambda path: [type("found", (), {"name": "a"})])
    with pytest.raises(ValueError, match=r"unique names, got \['a.b'\]"):
        registry.cases.__wrapped__()


def test_every_file_under_cases_is_found_and_names_its_op() -> None:
    cases = registry.cases()
    assert "masked_linear" in {case.op for case in cases}
    for case in cases:
        assert case.name.startswith(f"{case.op}.")
        assert case.bytes > 0
        assert case.flops > 0


def test_every_op_on_the_cpu_has_a_small_case() -> None:
    cases = [case for case in registry.cases() if "cpu" in case.devices]
    assert {case.op for case in cases if case.small} == {case.op for case in cases}


@pytest.mark.parametrize(
    "case", [case for case in registry.cases() if case.small and "cpu" in case.devices], ids=lambda case: case.name
)
def test_small_cases_agree_with_their_alternatives(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "probe", lambda device, dtype, quick: machine.Probes(1e9, 1e9, 1e9))
    # Disagreement raises; the compiler is left out, it takes seconds and is measured by `pytest bench`.
    contenders = case.build(torch.device("cpu"))
    plain = {name: call for name, call in contenders.alternatives.items() if "compile" not in name}
    assert plain
    leaner = Case(
        **{**vars(case), "build": lambda device: registry.Contenders(contenders.ours, plain)},
    )
    result = runner.measure(leaner, torch.device("cpu"), timing.QUICK)
    assert set(result.alternatives) | set(result.absent) == set(plain)
    assert result.ours_us > 0


def test_the_documented_case_works() -> None:
    text = (Path(__file__).parents[2] / "docs" / "benchmarking.md").read_text()
    names: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], names)
    (case,) = names["CASES"]
    contenders = case.build(torch.device("cpu"))
    torch.testing.assert_close(contenders.alternatives["eager"](), contenders.ours())
    assert {key for key, value in contenders.alternatives.items() if callable(value)} == {"eager", "torch.compile"}
