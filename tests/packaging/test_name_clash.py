"""The tar library `fastar` in the same environment: named plainly, whichever of the two was installed last.

Its files land in the folder of ours, which is what these tests do by hand; test_wheel.py lets pip do it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from environments import ROOT, copy_tree

# The command's own package has to load in any case: it is what tells.
SUBPACKAGES = sorted(one.parent.name for one in (ROOT / "fastar").glob("*/__init__.py") if one.parent.name != "cli")


def ours(site: Path, scratch: Path) -> None:
    tree = copy_tree(scratch / "tree")
    shutil.copytree(tree / "fastar", site / "fastar", dirs_exist_ok=True)
    for name in ("kernels", "bench", "csrc"):
        shutil.copytree(tree / name, site / "fastar" / name)


def theirs(site: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)


@pytest.fixture
def overwritten(tmp_path: Path, tar_wheel: Path) -> Path:
    """A site folder in which the tar library was installed over ours."""
    site = tmp_path / "site"
    ours(site, tmp_path)
    theirs(site, tar_wheel)
    return site


@pytest.fixture
def shared(tmp_path: Path, tar_wheel: Path) -> Path:
    """A site folder in which ours was installed over the tar library."""
    site = tmp_path / "site"
    theirs(site, tar_wheel)
    ours(site, tmp_path)
    return site


def python(site: Path, program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(site)},
        cwd=site.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )


# torch takes a second to load and has no part in this.
def doctor(site: Path) -> subprocess.CompletedProcess[str]:
    done = python(
        site,
        "import sys; sys.modules['torch'] = None; sys.argv[1:] = ['doctor']; from fastar.cli import main; main()",
    )
    # Unwrapped, so that whole sentences can be looked for.
    done.stdout = " ".join(done.stdout.split())
    return done


@pytest.mark.parametrize("name", SUBPACKAGES)
def test_overwritten_packages_say_so(overwritten: Path, name: str) -> None:
    done = python(overwritten, f"import fastar.{name}")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: 'import fastar' found the tar library of the same name")
    assert "0.12.0" in last
    assert "pip uninstall fastar" in last


def test_overwritten_doctor_says_so(overwritten: Path) -> None:
    done = doctor(overwritten)
    assert done.returncode == 1, done.stderr
    assert "'import fastar' found the tar library of the same name (distribution 'fastar' 0.12.0)" in done.stdout
    assert "'pip uninstall fastar'" in done.stdout
    assert "python" in done.stdout


def test_overwritten_commands_say_so(overwritten: Path) -> None:
    done = python(overwritten, "import sys; sys.argv[1:] = ['demo']; from fastar.cli import main; main()")
    assert done.returncode == 1
    assert done.stderr.startswith("fastar demo: 'import fastar' found the tar library")
    assert "Traceback" not in done.stderr


def test_shared_import_warns_and_works(shared: Path) -> None:
    done = python(shared, "import fastar; print(fastar.DISTRIBUTION)")
    assert done.returncode == 0
    assert done.stdout.strip() == "fastar-kernels"
    assert "RuntimeWarning: the tar library 'fastar' 0.12.0 and fastar-kernels are installed in one" in done.stderr
    assert "the tar library cannot be imported" in done.stderr


def test_shared_doctor_says_so(shared: Path) -> None:
    done = doctor(shared)
    assert done.returncode == 1, done.stderr
    assert "problem the tar library 'fastar' 0.12.0 and fastar-kernels" in done.stdout
    assert "'pip uninstall fastar'" in done.stdout


def test_a_tar_library_behind_a_checkout_is_named(tmp_path: Path, tar_wheel: Path) -> None:
    tree = copy_tree(tmp_path / "tree")
    theirs(tmp_path / "site", tar_wheel)
    done = subprocess.run(
        [sys.executable, "-c", "import fastar; print(fastar.DISTRIBUTION)"],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "fastar-kernels"
    assert "the tar library 'fastar' 0.12.0 is installed in this environment" in done.stderr
    assert str(tree / "fastar") in done.stderr


def test_alone_nothing_is_said(tmp_path: Path) -> None:
    site = tmp_path / "site"
    ours(site, tmp_path)
    done = python(site, "import fastar; print(fastar.DISTRIBUTION)")
    assert done.stdout.strip() == "fastar-kernels"
    assert done.stderr == ""
    assert "tar library" not in doctor(site).stdout
