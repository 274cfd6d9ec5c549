"""Fresh virtual environments and copies of the source tree, for the tests of what people install."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
LEFT_BEHIND = shutil.ignore_patterns(
    ".*", "build", "dist", "*.so", "*.o", "*.egg-info", "__pycache__", "venv", "tests", "results"
)


def copy_tree(target: Path) -> Path:
    """Copy what a fresh clone holds, tests apart."""
    shutil.copytree(ROOT, target, ignore=LEFT_BEHIND)
    return target


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Output of a command that has to succeed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-6000:]}"
    return done.stdout


@dataclass(frozen=True)
class Environment:
    """A virtual environment. pip works on it from outside, so it holds nothing but what was asked for."""

    folder: Path

    @classmethod
    def create(cls, folder: Path) -> Environment:
        """A fresh one."""
        run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
        return cls(folder)

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def site(self) -> Path:
        """Its site-packages."""
        return next(self.folder.glob("lib/python3.*/site-packages"))

    def pip(self, *arguments: str | Path, **environment: str) -> None:
        """Run pip on it."""
        run(sys.executable, "-m", "pip", "--python", self.python, *arguments, cwd=self.folder, **environment)

    def runs(self, program: str, cwd: Path) -> str:
        """Output of a Python program that has to succeed in it."""
        return run(self.python, "-c", program, cwd=cwd)

    def borrow_packages(self) -> None:
        """Let it see the packages of the running interpreter, torch among them, behind its own."""
        (self.site / "borrowed.pth").write_text(str(Path(torch.__file__).resolve().parent.parent))
