"""What ptxas says of the kernels: registers within the launch's bounds, and nothing spilled."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from fastar.native import cuda, cuda_build

pytestmark = pytest.mark.skipif(cuda_build.find_nvcc() is None, reason="no nvcc here")

# Registers that a thread may have in a block of 384.
MOST_REGISTERS = 168


def _report(arch: str, folder: Path) -> str:
    command = [str(cuda_build.require_nvcc()), *cuda_build.OPTIONS, "-Xptxas=-v", f"-arch=sm_{arch}", f"-I{cuda.CSRC}"]
    command += ["-cubin", "-o", str(folder / "kernels.cubin"), str(cuda_build.kernels(cuda.CSRC))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    "arch", ["90a", pytest.param("80", marks=pytest.mark.slow), pytest.param("100", marks=pytest.mark.exhaustive)]
)
def test_the_kernel_fits_its_registers_without_spills(arch: str, tmp_path: Path) -> None:
    if arch not in cuda_build.default_archs(cuda_build.require_nvcc()):
        pytest.skip(f"this nvcc does not know sm_{arch}")
    report = _report(arch, tmp_path)
    assert re.search(r"entry function 'fastar_run'", report)
    used = [int(n) for n in re.findall(r"Used (\d+) registers", report)]
    assert used
    assert max(used) <= MOST_REGISTERS
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(spills) >= 2
    assert all(one == ("0", "0") for one in spills), report
