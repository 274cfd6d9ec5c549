"""The executor under the address, undefined-behaviour and thread sanitizers, in a binary without Python and torch.

    python -m pytest -m slow tests/native/test_sanitizers.py

builds it and runs every consumer of tests/sampling through it. The thread sanitizer understands how the workers meet:
by acquire and release alone.
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


def build(folder: Path, sanitizer: str, level: str) -> Path:
    """The binary, its files compiled side by side."""
    options = ["-std=c++20", "-O1", "-I", str(CSRC), f"-DFASTAR_ISA={level}", "-ffp-contract=off", "-pthread"]
    options += [f"-fsanitize={SANITIZERS[sanitizer]}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    sources = [
        HERE / "executor_programs.cpp",
        *sorted((CSRC / "cpu/executor").glob("*.cpp")),
        CSRC / "common/memory.cpp",
    ]
    jobs = [(one, options) for one in sources]
    jobs += [(CSRC / f"cpu/isa/{name}.cpp", [*options, *FLAGS[level]]) for name in KERNELS]

    def compile_one(job: tuple[Path, list[str]]) -> str:
        source, arguments = job
        out = folder / f"{source.parent.name}-{source.stem}.o"
        subprocess.run([*COMPILER, *arguments, "-c", str(source), "-o", str(out)], check=True)
        return str(out)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        objects = list(pool.map(compile_one, jobs))
    binary = folder / "executor_programs"
    flags = ["-pthread", f"-fsanitize={SANITIZERS[sanitizer]}"]
    subprocess.run([*COMPILER, *objects, *flags, "-o", str(binary)], check=True)
    return binary


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_programs_run_clean(tmp_path: Path, sanitizer: str) -> None:
    usable = core().levels_usable() if why_missing() is None else ["baseline"]
    # Threads meet outside of the kernels, so that their level is all the same to the thread sanitizer.
    level = usable[-1] if sanitizer == "address" else "baseline"
    binary = build(tmp_path, sanitizer, level)
    lines = [
        words(make(), precision, rows=5, length=make().positions or 8)
        for make in LARGE.values()
        for precision in ("float32", "bfloat16", "int8")
    ]
    programs = tmp_path / "programs"
    programs.write_text("\n".join(lines) + "\n")
    ran = subprocess.run([str(binary), str(programs)], capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-6000:]
    assert f"{len(lines)} programs" in ran.stdout
