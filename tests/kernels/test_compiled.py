"""Every kernel compiles for every supported card, without spills and within its shared memory; no GPU is needed.

A file of kernels/ takes part by having `compile_cases`; one without it fails here.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import SITE

import fastar

pytest.importorskip("triton")

HERE = Path(__file__).parent


def kernel_folder() -> Path:
    return next(path for path in (Path(entry) / "kernels" for entry in fastar.__path__) if path.is_dir())


KERNELS = sorted(file.stem for file in kernel_folder().glob("*.py") if not file.stem.startswith("_"))
CAPABILITIES = [80, 90, 100]
MATRIX_UNITS = {80: "mma", 90: "wgmma", 100: "tcgen05"}
# For these the plain run compiles each kernel once per dtype; all their variants take minutes.
BOUNDED = [80, 100]


@functools.cache
def compiled(module: str, capability: int, candidate: int = 0, few: bool = False) -> list[dict[str, Any]]:
    """What a process of its own says about each variant: this one may have Triton's interpreter loaded."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, str(HERE / "compile_kernels.py"), module, str(capability), str(candidate)]
    command += ["few"] * few
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{module} for sm_{capability}:\n{done.stderr[-6000:]}"
    return [json.loads(line) for line in done.stdout.splitlines()]


def complaints(variants: list[dict[str, Any]]) -> list[str]:
    found = []
    for one in variants:
        if one["spilled"]:
            found.append(f"spills {one['spilled']} bytes per thread: {one}")
        if one["shared"] > one["shared_limit"]:
            found.append(f"needs {one['shared']} bytes of shared memory of {one['shared_limit']}: {one}")
    return found


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("module", KERNELS)
def test_compiles_without_spills(module: str, capability: int, report_compiled: Callable[[str], None]) -> None:
    variants = compiled(module, capability, few=capability in BOUNDED)
    assert variants, f"kernels/{module}.py: compile_cases launches nothing"
    for kernel in sorted({one["kernel"] for one in variants}):
        own = [one for one in variants if one["kernel"] == kernel]
        registers, shared = (max(one[what] for one in own) for what in ("registers", "shared"))
        report_compiled(
            f"{module} {kernel} sm_{capability}: {len(own)} variants, {registers} registers, {shared} bytes"
        )
    assert not complaints(variants), "\n".join(complaints(variants))
    if module == "masked_linear":
        check_matrix_units(variants, MATRIX_UNITS[capability])


def check_matrix_units(variants: list[dict[str, Any]], instruction: str) -> None:
    products = [one for one in variants if one["dots"] and "float32, " not in one["case"]]
    assert {one["kernel"] for one in products} == {"forward_kernel", "input_gradient_kernel", "weight_gradient_kernel"}
    assert any("bfloat16" in one["case"] for one in products)
    for one in products:
        assert one[instruction] > 0, f"no {instruction} in {one}"


@pytest.mark.exhaustive
@pytest.mark.parametrize("capability", BOUNDED)
@pytest.mark.parametrize("module", KERNELS)
def test_every_variant_compiles_without_spills(module: str, capability: int) -> None:
    found = complaints(compiled(module, capability))
    assert not found, "\n".join(found)


@pytest.mark.exhaustive
@pytest.mark.parametrize("candidate", [1, 2])
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("module", KERNELS)
def test_what_tuning_may_choose_compiles_too(module: str, capability: int, candidate: int) -> None:
    found = complaints(compiled(module, capability, candidate))
    assert not found, "\n".join(found)


def test_a_kernel_file_without_cases_is_found(tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text("")
    program = (
        "import sys, fastar.kernels\n"
        "fastar.kernels.__path__.append(sys.argv[1])\n"
        "import compile_kernels\n"
        "compile_kernels.main('bare', 90, 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=SITE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *(path for path in sys.path if path)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "kernels/bare.py has no compile_cases" in done.stderr
