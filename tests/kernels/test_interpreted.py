"""Triton's kernels run by its interpreter, on the CPU: each file of interpreted/ in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

triton = pytest.importorskip("triton")

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FILES = sorted(file.name for file in (HERE / "interpreted").glob("test_*.py"))


def release(version: str) -> tuple[int, int]:
    """Major and minor number."""
    major, minor, *_ = version.split(".")
    return int(major), int(minor)


# The interpreter of triton 3.6 (torch 2.11) turns arrays of one element into numbers, which numpy 2.4 no longer does.
MISMATCH = release(triton.__version__) == (3, 6) and release(numpy.__version__) >= (2, 4)


@pytest.mark.skipif(MISMATCH, reason="triton 3.6's interpreter needs numpy < 2.4")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this process interprets by itself")
@pytest.mark.parametrize("file", FILES)
def test_interpreted(file: str) -> None:
    # The fastar of this process, installed or not, is the one to test.
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=short"]
    done = subprocess.run(
        [*command, f"--rootdir={ROOT}", f"--config-file={ROOT / 'pyproject.toml'}", str(HERE / "interpreted" / file)],
        cwd=HERE,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    print(done.stdout)
    assert done.returncode == 0, f"pytest {file} under TRITON_INTERPRET=1:\n{done.stdout[-8000:]}"
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout
