"""What people install: the sdist, the wheel made from it, and an editable checkout, each in an environment of its own.

The builds are isolated and without torch: pip gives them what pyproject.toml asks for, setuptools and pybind11.
"""

from __future__ import annotations

import json
import tarfile
import zipfile
from pathlib import Path

import pytest
from environments import ROOT, Environment, copy_tree, run

import fastar
from fastar.native import cuda_build

pytestmark = pytest.mark.slow

HAS_NVCC = cuda_build.find_nvcc() is not None
# Imports the parts that live beside fastar/ in a checkout, and computes something through the native part.
USE = """
import importlib, json, torch, fastar, fastar.nn, fastar._dispatch as dispatch, fastar.native as native
assert native.why_missing() is None, native.why_missing()
layer = fastar.nn.MaskedLinear(5, 3, in_degrees=torch.arange(5), out_degrees=torch.arange(3))
assert layer(torch.ones(2, 5)).shape == (2, 3)
beside = ("fastar.kernels", "fastar.bench", "fastar.csrc")
places = {name: list(importlib.import_module(name).__path__)[0] for name in beside}
print(json.dumps({"fastar": fastar.__file__, "core": native.core().__file__, **places}))
"""


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A machine on which nobody has torch."""
    environment = Environment.create(tmp_path_factory.mktemp("builder") / "venv")
    environment.pip("install", "setuptools>=77", "pybind11>=2.13")
    environment.runs("import importlib.util; assert importlib.util.find_spec('torch') is None", cwd=environment.folder)
    return environment


@pytest.fixture(scope="module")
def sdist(builder: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    tree = copy_tree(folder / "tree")
    builder.runs(f"import setuptools.build_meta as backend; backend.build_sdist({str(folder)!r})", cwd=tree)
    (found,) = folder.glob("*.tar.gz")
    return found


@pytest.fixture(scope="module")
def wheel(builder: Environment, sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, for the lowest level alone; with the CUDA kernels in it where there is an nvcc."""
    folder = tmp_path_factory.mktemp("wheel")
    # What is tested is what it holds: optimising the kernels is most of the time that nvcc takes.
    cuda = {"FASTAR_CUDA": "1", "FASTAR_CUDA_ARCHS": "80", "NVCC_APPEND_FLAGS": "-Xcicc -O0 -Xptxas -O0"}
    options = {"FASTAR_HIGHEST_LEVEL": "baseline"} | (cuda if HAS_NVCC else {})
    builder.pip("wheel", "--no-deps", "--wheel-dir", folder, sdist, **options)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment.create(tmp_path / "venv")


def test_sdist_holds_sources_alone(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    for name in (
        "setup.py",
        "csrc/bindings/core.cpp",
        "csrc/cuda/kernels.cu",
        "kernels/masked_linear.py",
        "bench/registry.py",
    ):
        assert name in names
    assert [name for name in names if name.endswith((".so", ".o", ".pyc"))] == []


def test_wheel_holds_one_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(f"fastar_kernels-{fastar.__version__}.dist-info/METADATA").decode()
    assert {name.split("/")[0] for name in names} == {"fastar", f"fastar_kernels-{fastar.__version__}.dist-info"}
    sources = [
        *(f"fastar/kernels/{path.name}" for path in (ROOT / "kernels").glob("*.py")),
        *(f"fastar/{path.relative_to(ROOT)}" for path in (ROOT / "bench").rglob("*.py")),
        *(f"fastar/{path.relative_to(ROOT)}" for path in (ROOT / "csrc").rglob("*") if path.is_file()),
        *(str(path.relative_to(ROOT)) for path in (ROOT / "fastar").rglob("*.py")),
    ]
    assert sorted(set(sources) - set(names)) == []
    assert "fastar/py.typed" in names
    assert ("fastar/_cuda.fatbin" in names) == HAS_NVCC
    assert "Requires-Dist: torch>=2.11\n" in metadata
    # Unpinned: whatever version torch brought stays.
    assert 'Requires-Dist: triton; platform_system == "Linux"\n' in metadata


def test_installed_wheel(wheel: Path, environment: Environment, tmp_path: Path) -> None:
    environment.pip("install", "--no-deps", wheel)
    assert {path.name.split("-")[0] for path in environment.site.iterdir()} == {"fastar", "fastar_kernels"}
    environment.borrow_packages()

    places = json.loads(environment.runs(USE, cwd=tmp_path))
    assert all(Path(place).is_relative_to(environment.site) for place in places.values())
    script = run(environment.folder / "bin" / "fastar", "--version", cwd=tmp_path)
    assert script == f"fastar-kernels {fastar.__version__}\n"
    report = json.loads(run(environment.folder / "bin" / "fastar", "doctor", "--json", cwd=tmp_path))
    assert report["problems"] == []
    assert report["cuda_library"]["origin"] == ("package" if HAS_NVCC else None)

    # From the repository's root, where the checkout's own folders come first, everything is still found.
    tree = copy_tree(tmp_path / "tree")
    program = "import fastar.kernels, fastar.bench, fastar.csrc; print(fastar.__file__)"
    assert Path(environment.runs(program, cwd=tree).strip()).is_relative_to(tree)


def test_editable_install(environment: Environment, tmp_path: Path) -> None:
    tree = copy_tree(tmp_path / "tree")
    environment.pip("install", "--no-deps", "-e", tree, FASTAR_HIGHEST_LEVEL="baseline")
    environment.borrow_packages()
    built = environment.runs("import fastar.native; print(fastar.native.core().levels_built())", cwd=tmp_path)
    assert built == "['baseline']\n"
    places = json.loads(environment.runs(USE, cwd=tmp_path))
    assert all(Path(place).is_relative_to(tree) for place in places.values())
    assert run(environment.folder / "bin" / "fastar", "--version", cwd=tmp_path).startswith("fastar-kernels ")


def test_name_clash_and_its_remedy_with_pip(
    wheel: Path, tar_wheel: Path, environment: Environment, tmp_path: Path
) -> None:
    def ask(program: str) -> str:
        return environment.runs(f"import warnings; warnings.simplefilter('error')\n{program}", cwd=tmp_path)

    caught = "try:\n    {}\nexcept (RuntimeWarning, ImportError) as error:\n    print(type(error).__name__, error)"
    environment.pip("install", "--no-deps", tar_wheel)
    environment.pip("install", "--no-deps", wheel)
    assert "RuntimeWarning the tar library 'fastar' 0.12.0" in ask(caught.format("import fastar"))

    environment.pip("uninstall", "-y", "fastar")
    environment.pip("install", "--no-deps", "--force-reinstall", wheel)
    assert ask("import fastar, fastar.native; print(fastar.native.why_missing())").strip() == "None"

    environment.pip("install", "--no-deps", tar_wheel)
    assert "ImportError 'import fastar' found the tar library" in ask(caught.format("import fastar.native"))
