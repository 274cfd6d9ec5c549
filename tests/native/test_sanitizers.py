"""The executor under the address, undefined-behaviour and thread sanitizers, in a binary without Python and torch.

    python -m pytest -m slow tests/native/test_sanitizers.py

builds it and runs every consumer of tests/sampling through it. The thread sanitizer understands how the workers meet:
by acquire and release alone. That it would notice were they weaker is tried with a weakened copy of the run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fastar.native import core, why_missing
from tests.native.flat import words
from tests.sampling.test_cpu_programs import LARGE

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
COMPILER = os.environ.get("CXX", "g++").split()
SANITIZERS = {"address": "address,undefined", "thread": "thread"}
FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
}
FLAGS["avx512_bf16"] = [*FLAGS["avx512"], "-mavx512bf16", "-mavx512vnni"]
# What the executor needs of its own level; the ops have kernels of their own.
KERNELS = ("matrix", "odds", "pointwise", "softmax")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which(COMPILER[-1]) is None, reason="no C++ compiler"),
]


def options_of(sanitizer: str, level: str) -> list[str]:
    options = ["-std=c++20", "-O1", "-I", str(CSRC), f"-DFASTAR_ISA={level}", "-ffp-contract=off", "-pthread"]
    return [*options, f"-fsanitize={SANITIZERS[sanitizer]}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


def compile_one(folder: Path, source: Path, options: list[str]) -> Path:
    out = folder / f"{source.parent.name}-{source.stem}.o"
    subprocess.run([*COMPILER, *options, "-c", str(source), "-o", str(out)], check=True)
    return out


def compile_all(folder: Path, sanitizer: str, level: str) -> list[Path]:
    """The binary's objects, files side by side."""
    options = options_of(sanitizer, level)
    sources = [
        HERE / "executor_programs.cpp",
        *sorted((CSRC / "cpu/executor").glob("*.cpp")),
        CSRC / "common/memory.cpp",
    ]
    jobs = [(one, options) for one in sources]
    jobs += [(CSRC / f"cpu/isa/{name}.cpp", [*options, *FLAGS[level]]) for name in KERNELS]

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(lambda job: compile_one(folder, *job), jobs))


def run(objects: list[Path], sanitizer: str, programs: Path) -> subprocess.CompletedProcess[str]:
    """The binary of these objects, with the programs of a file."""
    binary = programs.with_name("executor_programs")
    flags = ["-pthread", f"-fsanitize={SANITIZERS[sanitizer]}", "-o", str(binary)]
    subprocess.run([*COMPILER, *map(str, objects), *flags], check=True)
    return subprocess.run([str(binary), str(programs)], capture_output=True, text=True, timeout=300, check=False)


def weakened(folder: Path, level: str) -> Path:
    """The run's object, publishing a thread's progress without its results."""
    source = (CSRC / "cpu/executor/run.cpp").read_text(encoding="utf-8")
    published = "own.store(++signalled, std::memory_order_release)"
    assert published in source
    copy = folder / "executor" / "run.cpp"
    copy.parent.mkdir()
    copy.write_text(source.replace(published, published.replace("release", "relaxed")), encoding="utf-8")
    return compile_one(copy.parent, copy, options_of("thread", level))


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_programs_run_clean(tmp_path: Path, sanitizer: str) -> None:
    usable = core().levels_usable() if why_missing() is None else ["baseline"]
    # Threads meet outside of the kernels, so that their level is all the same to the thread sanitizer.
    level = usable[-1] if sanitizer == "address" else "baseline"
    objects = compile_all(tmp_path, sanitizer, level)
    lines = [
        words(make(), precision, rows=5, length=make().positions or 8)
        for make in LARGE.values()
        for precision in ("float32", "bfloat16", "int8")
    ]
    programs = tmp_path / "programs"
    programs.write_text("\n".join(lines) + "\n")
    ran = run(objects, sanitizer, programs)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-6000:]
    assert f"{len(lines)} programs" in ran.stdout
    if sanitizer == "thread":
        programs.write_text(words(LARGE["wavenet"](), "float32", rows=5, length=24) + "\n")
        planted = weakened(tmp_path, level)
        ran = run([planted if one.name == planted.name else one for one in objects], sanitizer, programs)
        assert ran.returncode != 0
        assert "data race" in ran.stderr
