"""The command: what it writes, and its errors."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("rich")
pytest.importorskip("typer")

from rich.console import Console

import fastar.cli
from fastar.bench import machine, registry, timing
from fastar.bench.machine import Probes
from fastar.bench.registry import Case
from fastar.cli import bench

MakeCase = Callable[..., Case]


def _broken(x: torch.Tensor) -> Callable[[], object]:
    def call() -> object:
        raise RuntimeError("out of order")

    return call


def _interrupting(x: torch.Tensor) -> Callable[[], object]:
    def call() -> object:
        raise KeyboardInterrupt

    return call


@pytest.fixture(autouse=True)
def _toys(make_case: MakeCase, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = (
        make_case("toy.a"),
        make_case("toy.b"),
        make_case("broken.a", ours=_broken),
        make_case("interrupting.a", ours=_interrupting),
        make_case("toy.far", devices=("cuda",)),
    )
    brief = timing.Effort(rounds=3, least=2, seconds=0.01, warm_up_seconds=0.0, sample_seconds=1e-5)
    monkeypatch.setattr(registry, "cases", lambda: cases)
    monkeypatch.setattr(timing, "FULL", brief)
    monkeypatch.setattr(machine, "probe", lambda device, dtype, quick: Probes(1e9, 1e9, 1e9))
    monkeypatch.setattr(machine, "neighbours", lambda: "other programs run")


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=120)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_run_prints_and_writes(console: Console, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    objects = bench.run(["toy"], json_file=file, console=console)
    assert [one["case"] for one in objects] == ["toy.a", "toy.b"]
    assert json.loads(file.read_text()) == objects
    assert "toy.b" in text(console)
    assert "note: other programs run" in text(console)


def test_run_draws(console: Console, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    bench.run(["toy.a"], plot_file=tmp_path / "times.png", console=console)
    assert (tmp_path / "times.png").read_bytes().startswith(b"\x89PNG")


def test_threads_hold_for_the_run_only(console: Console) -> None:
    before = torch.get_num_threads()
    (result,) = bench.run(["toy.a"], threads=1, console=console)
    assert result["threads"] == 1
    assert torch.get_num_threads() == before


def test_a_failing_case_does_not_lose_the_others(console: Console, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    with pytest.raises(RuntimeError, match=r"broken.a failed: RuntimeError: out of order"):
        bench.run(["broken", "toy.a"], json_file=file, console=console)
    assert [one["case"] for one in json.loads(file.read_text())] == ["toy.a"]


def test_an_interruption_keeps_what_was_measured(console: Console, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    with pytest.raises(RuntimeError, match=r"interrupted in interrupting.a: 2 cases were not measured"):
        bench.run(["toy.a", "interrupting", "toy.b"], json_file=file, console=console)
    assert [one["case"] for one in json.loads(file.read_text())] == ["toy.a"]


def test_wrong_arguments_are_named_before_anything_is_measured(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_measure", lambda *arguments: pytest.fail("measured"))
    with pytest.raises(ValueError, match="nothing is called 'nope'"):
        bench.run(["nope"], console=console)
    with pytest.raises(ValueError, match="device: expected one of cpu, cuda, got 'gpu'"):
        bench.run([], device="gpu", console=console)
    with pytest.raises(ValueError, match="threads: expected a positive integer, got 0"):
        bench.run(["toy"], threads=0, console=console)
    with pytest.raises(ValueError, match=r"json: expected a file in a folder that exists, got nowhere/results.json"):
        bench.run(["toy"], json_file=Path("nowhere/results.json"), console=console)
    with pytest.raises(ValueError, match=r"plot: expected a file name that ends in .png, got times.jpg"):
        bench.run(["toy"], plot_file=Path("times.jpg"), console=console)


def test_cuda_where_there_is_none(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"got cuda, but torch .* finds no CUDA device; use --device cpu"):
        bench.run(["toy.far"], device="cuda", console=console)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["nope"], 2, "fastar bench: case: nothing is called 'nope'; ops: broken, interrupting, toy; cases:"),
        (["--device", "gpu"], 2, "fastar bench: device: expected one of cpu, cuda, got 'gpu'"),
        (["broken"], 1, "fastar bench: broken.a failed: RuntimeError: out of order"),
    ],
)
def test_command_ends_in_one_plain_message(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        fastar.cli.run(["bench", *arguments])
    assert ended.value.code == status
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert "Traceback" not in error


def test_list_measures_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        fastar.cli.run(["bench", "--list"])
    assert ended.value.code == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "toy.a", "toy.b", "broken.a", "interrupting.a", "toy.far"
    ]  # fmt: skip


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_a_missing_extra_is_named(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "fastar.cli.bench")
    monkeypatch.delattr(fastar.cli, "bench")
    assert fastar.cli.run(["bench"]) == 1
    assert "pip install 'fastar-kernels[cli]'" in capsys.readouterr().err


def test_a_missing_plotter_is_missed_before_measuring(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(bench, "_measure", lambda *arguments: pytest.fail("measured"))
    assert fastar.cli.run(["bench", "toy", "--plot", str(tmp_path / "times.png")]) == 1
    assert "pip install 'fastar-kernels[cli]'" in capsys.readouterr().err
