"""`fastar doctor`: complete where all is well, and useful where half of it is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import SITE

import fastar
from fastar import _dispatch, native
from fastar.cli import _screen, doctor
from fastar.native import nvrtc


def doctor_in_new_process(
    *arguments: str, without: tuple[str, ...] = (), path: str = "/nowhere"
) -> subprocess.CompletedProcess[str]:
    """The command in a process in which the modules named in `without` are not installed, and `path` comes first."""
    program = (
        f"import sys; sys.path[:0] = {[path, str(SITE)]}; sys.modules.update(dict.fromkeys({without!r}));"
        " from fastar.cli import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", program, "doctor", *arguments],
        cwd=SITE.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )


def examined(**situation: Any) -> tuple[int, dict[str, Any]]:
    """Its exit status and its report."""
    done = doctor_in_new_process("--json", **situation)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return doctor.examine()


def test_every_section_is_there_without_an_error(report: dict[str, Any]) -> None:
    assert set(report) == {"problems", "notes", *doctor.SECTIONS}
    assert report["fastar"]["version"] == fastar.__version__
    assert report["packages"]["torch"]["version"] == torch.__version__
    assert not any("could not be examined" in problem for problem in report["problems"])
    json.dumps(report)


def test_native_level_is_what_the_native_part_says(report: dict[str, Any]) -> None:
    if native.why_missing() is not None:
        assert report["core"]["error"] == native.why_missing()
        return
    assert report["core"]["level"] == native.core().level()
    # What it runs with, this CPU has.
    for unit in {"avx2": ["avx2"], "avx512": ["avx2", "avx512f"]}.get(report["core"]["level"], []):
        assert unit in report["cpu"]["vector_units"]


def test_every_op_is_listed_as_the_dispatcher_decides(report: dict[str, Any]) -> None:
    choices = {(one["op"], one["device"], one["dtype"]): one["uses"] for one in report["ops"]["choices"]}
    assert {op for op, _, _ in choices} == set(_dispatch.ops()) != set()
    for (op, device, dtype), uses in choices.items():
        assert uses == _dispatch.choose(op, torch.device(device), getattr(torch, dtype)).name


def test_declined_implementations_are_shown_with_their_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(device: torch.device, dtype: torch.dtype) -> str | None:
        return "has a reason of its own" if dtype == torch.float16 else None

    planted = (
        _dispatch.Implementation("special", never, lambda: None),
        _dispatch.Implementation("plain", lambda device, dtype: None, lambda: None),
    )
    monkeypatch.setitem(_dispatch._REGISTRY, "planted_op", planted)
    doctor.run([])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "planted_op cpu special special plain special" in lines
    assert "special on cpu: has a reason of its own (planted_op)" in lines


def test_an_op_that_cannot_run_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = (_dispatch.Implementation("only", lambda device, dtype: "is broken", lambda: None),)
    monkeypatch.setitem(_dispatch._REGISTRY, "planted_op", broken)
    assert doctor.run([]) == 1
    assert "planted_op cannot run in float32 on cpu" in capsys.readouterr().out


def test_status_says_whether_anything_is_wrong(report: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.run([]) == (1 if report["problems"] else 0)
    assert ("problem" in capsys.readouterr().out) == bool(report["problems"])


@pytest.mark.parametrize("columns", [80, 100])
def test_it_fits_one_screen(columns: int, monkeypatch: pytest.MonkeyPatch, report: dict[str, Any]) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", "40")
    lines = _screen.render(report).splitlines()
    assert len(lines) <= 40
    # A path is never broken, so that it can be copied.
    assert all(len(line) <= columns or os.sep in line for line in lines)


@pytest.mark.parametrize("missing", doctor.CLI_PACKAGES)
def test_packages_of_the_other_commands_may_be_missing(missing: str) -> None:
    _, found = examined(without=(missing, "torch"))
    assert found["packages"][missing]["error"] == "not installed"
    name = doctor.CLI_PACKAGES[missing]
    assert any(name in note and "pip install 'fastar-kernels[cli]'" in note for note in found["notes"])
    assert not any(name in problem for problem in found["problems"])


def test_without_torch() -> None:
    code, found = examined(without=("torch", "triton", "numpy"))
    assert code == 1
    assert "torch, numpy not installed; run: pip install 'torch>=2.11' numpy" in found["problems"]
    assert found["cpu"]["cores"] >= 1
    assert found["ops"]["error"] == "not examined without torch"
    shown = doctor_in_new_process(without=("torch", "triton", "numpy"))
    assert shown.returncode == 1
    assert "problem  torch, numpy not installed" in shown.stdout
    assert shown.stderr == ""


def test_with_a_torch_that_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.99: cannot open shared object file')")
    code, found = examined(path=str(tmp_path))
    assert code == 1
    assert any("torch does not import: OSError: libcudart.so.99" in problem for problem in found["problems"])


def test_with_a_torch_that_is_too_old(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("__version__ = '2.9.1+cpu'")
    code, found = examined(path=str(tmp_path))
    assert code == 1
    assert any(
        "torch 2.9.1+cpu is too old; run: pip install --upgrade 'torch>=2.11'" in problem
        for problem in found["problems"]
    )


def test_without_the_native_part() -> None:
    code, found = examined(without=("fastar._core",))
    assert code == 1
    assert any("fastar._core is not built" in problem and "pip install ." in problem for problem in found["problems"])
    choices = [one for one in found["ops"]["choices"] if one["dtype"] == "float32" and "cpu" in one["declined"]]
    # Attention is torch's own op on every device: nothing native serves it.
    assert {one["op"] for one in choices} == set(_dispatch.ops()) - {"attention"}
    assert all("not built" in one["declined"]["cpu"] for one in choices)


def test_without_triton() -> None:
    _, found = examined(without=("triton",))
    assert found["packages"]["triton"]["error"] == "not installed"
    assert {one["device"] for one in found["ops"]["choices"]} >= {"cpu"}


def test_no_compiler_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(nvrtc, "candidates", list)
    found = doctor.examine()
    assert "install a CUDA toolkit" in found["cuda_library"]["cannot_compile"]
    assert "install a CUDA toolkit" in " ".join(_screen.render(found).split())
    assert list(tmp_path.iterdir()) == []


def test_the_compiler_that_comes_with_torch_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(nvrtc, "candidates", lambda: ["/x/libnvrtc.so.13"])
    monkeypatch.setattr(nvrtc, "_open", lambda path: nvrtc.Nvrtc(path, None, (13, 0)))  # type: ignore[arg-type]
    found: dict[str, Any] = {"core": {"error": None}, "gpus": {"devices": []}, "notes": []}
    section = doctor._cuda_library(found)
    assert section["compiler"] == "NVRTC 13.0 (/x/libnvrtc.so.13)"
    assert "on first use NVRTC 13.0 (/x/libnvrtc.so.13) compiles them into" in _screen._cuda(section)


CARD = {
    "device": "cuda:0",
    "name": "Some Card",
    "capability": "9.0",
    "multiprocessors": 132,
    "registers_per_multiprocessor": 65536,
    "shared_per_multiprocessor": 233472,
    "shared_per_block": 232448,
    "l2_bytes": 50 * 2**20,
    "memory_bytes": 140 * 2**30,
    "max_cluster": 16,
}


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({}, "228 KiB shared memory each, 227 KiB for one block, clusters of up to 16 blocks"),
        ({"kernel_registers": 168}, "of up to 16 blocks, the sampling kernel takes 168 registers a thread"),
        ({"max_cluster": None}, "227 KiB for one block, clusters cuda"),
        ({"max_cluster": 1}, "227 KiB for one block, no clusters cuda"),
        (
            {"shared_per_block": None, "registers_per_multiprocessor": None},
            "132 multiprocessors, 228 KiB shared memory each, clusters of",
        ),
    ],
)
def test_a_card_is_described(report: dict[str, Any], changed: dict[str, Any], text: str) -> None:
    library = {
        **report["cuda_library"],
        "error": None,
        "file": "/x/_cuda.fatbin",
        "origin": "package",
        "archs": ["90a"],
    }
    devices = [{**CARD, **changed}]
    printed = _screen.render({**report, "gpus": {"error": None, "devices": devices}, "cuda_library": library})
    flat = " ".join(printed.split())
    assert "Some Card, compute capability 9.0, 140 GiB, 50 MiB L2, 132 multiprocessors, " in flat
    assert text in flat
    assert "cuda kernels built ahead of time for sm_90a: /x/_cuda.fatbin" in flat


@pytest.mark.gpu
def test_the_card_here_is_described(report: dict[str, Any]) -> None:
    for device in report["gpus"]["devices"]:
        properties = torch.cuda.get_device_properties(device["device"])
        assert device["name"] == properties.name
        assert device["multiprocessors"] == properties.multi_processor_count
