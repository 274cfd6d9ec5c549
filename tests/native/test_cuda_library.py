"""The CUDA kernels' image: compiled for every card, cached, and clear about what is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import philox_oracle
import pytest
import torch

from fastar import native
from fastar.native import cuda, cuda_build, nvrtc

needs_nvcc = pytest.mark.skipif(cuda_build.find_nvcc() is None, reason="no nvcc here")
needs_core = pytest.mark.skipif(native.why_missing() is not None, reason="fastar._core is not built")
# What a fresh process does on first use; the last line is the image's file.
FIRST_USE = """
import sys, pathlib
from fastar.native import cuda
cuda.CSRC = pathlib.Path(sys.argv[1])
print(cuda.compiled(cuda.recipe((8, 0))))
"""
# The sampling kernel takes the compiler longest; what is around it can be tested without.
NO_KERNEL = 'extern "C" __global__ void fastar_run() {}\n'


@pytest.fixture(scope="module")
def csrc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources, the kernels left out."""
    folder = tmp_path_factory.mktemp("sources") / "csrc"
    (folder / "cuda").mkdir(parents=True)
    (folder / "cuda" / "kernels.cu").write_text(NO_KERNEL)
    return folder


@pytest.fixture(scope="module")
def ahead(csrc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package folder with the kernels for the default cards in it, as setup.py leaves it under FASTAR_CUDA=1."""
    folder = tmp_path_factory.mktemp("package")
    cuda_build.build_ahead_of_time(csrc, folder)
    return folder


def fake_nvcc(folder: Path, compile_command: str, version: str = "13.0.88") -> Path:
    """A toolkit whose nvcc answers questions like the real one and compiles by `compile_command`."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(
        "#!/bin/sh\n"
        f'case "$1" in --version) echo "release 13.0, V{version}";;\n'
        f'--list-gpu-code) echo "sm_80 sm_90 sm_100";;\n*) {compile_command};; esac\n'
    )
    nvcc.chmod(0o755)
    return folder


def start(csrc: Path, cache: Path) -> subprocess.Popen[str]:
    """A fresh process that uses the library."""
    return subprocess.Popen(
        [sys.executable, "-c", FIRST_USE, str(csrc)],
        env={**os.environ, "XDG_CACHE_HOME": str(cache), "FASTAR_CUDA_ARCHS": "80"},
        # So that an uninstalled checkout is found as well.
        cwd=cuda.PACKAGE.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What it printed and what it told the user; it has to succeed."""
    printed, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    return printed, told


@needs_nvcc
@pytest.mark.exhaustive
def test_the_kernels_compile_for_the_default_cards(tmp_path: Path) -> None:
    cuda_build.build_ahead_of_time(cuda.CSRC, tmp_path)
    about = json.loads((tmp_path / cuda_build.PACKAGED_ABOUT).read_text())
    assert about["archs"] == list(cuda_build.default_archs(cuda_build.require_nvcc()))
    assert (tmp_path / cuda_build.PACKAGED).stat().st_size > 100_000


@needs_core
@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="there is a driver here")
def test_no_driver_is_said_before_anything_is_compiled() -> None:
    cuda.library.cache_clear()
    with pytest.raises(RuntimeError, match=r"CUDA driver: libcuda\.so\.1: .*install NVIDIA's driver"):
        cuda.library((9, 0))


@needs_nvcc
def test_packaged_kernels_count_only_for_their_sources_and_cards(
    csrc: Path, ahead: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cuda, "CSRC", csrc)
    monkeypatch.setattr(cuda, "PACKAGED_ABOUT", ahead / cuda_build.PACKAGED_ABOUT)
    assert cuda.packaged_declines([]) is None
    assert cuda.packaged_declines([(8, 0), (8, 9), (9, 0)]) is None
    assert "does not run on sm_75" in str(cuda.packaged_declines([(7, 5)]))
    edited = tmp_path / "csrc"
    shutil.copytree(csrc, edited)
    (edited / "cuda" / "other.h").write_text("")
    monkeypatch.setattr(cuda, "CSRC", edited)
    assert "built from other sources" in str(cuda.packaged_declines([]))


@needs_core
def test_a_file_that_is_no_driver_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "libcuda.so"
    path.write_text("not a library")
    with pytest.raises(RuntimeError, match=r"CUDA driver: .*libcuda\.so"):
        native.core().CudaLibrary(str(path), b"")


@needs_nvcc
def test_first_use_compiles_once_and_a_damaged_entry_is_rebuilt(csrc: Path, tmp_path: Path) -> None:
    first, second = [finish(process) for process in [start(csrc, tmp_path), start(csrc, tmp_path)]]
    assert first[0] == second[0]
    assert sorted("compiling the CUDA kernels for sm_80" in told for _, told in (first, second)) == [False, True]
    path = Path(first[0].strip())
    assert path.is_relative_to(tmp_path)
    assert sorted(one.name for one in path.parent.iterdir()) == ["kernels.fatbin", "sha256"]

    path.write_bytes(path.read_bytes()[:500])
    third = finish(start(csrc, tmp_path))
    assert third[0] == first[0]
    assert "compiling the CUDA kernels for sm_80" in third[1]


def test_a_failing_compiler_is_shown_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toolkit = fake_nvcc(tmp_path / "toolkit", 'echo "kernels.cu(1): error: planted" >&2; exit 2')
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    target = tmp_path / "out" / "kernels.fatbin"
    with pytest.raises(cuda_build.BuildError, match="error: planted") as caught:
        cuda_build.nvcc_recipe(cuda.CSRC).build(target)
    assert f"{toolkit}/bin/nvcc -fatbin -std=c++20" in str(caught.value)
    assert list(target.parent.iterdir()) == []


def test_no_nvcc_is_said_with_what_would_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(
        cuda_build.BuildError, match=r"no bin/nvcc in CUDA_HOME=.*install a CUDA toolkit.*FASTAR_CUDA=1"
    ):
        cuda_build.nvcc_recipe(cuda.CSRC)
    assert cuda.find() is None


def test_no_compiler_at_all_is_said_with_what_would_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    (tmp_path / "libnvrtc.so.12").write_text("not a library")
    monkeypatch.setattr(nvrtc, "candidates", lambda: [str(tmp_path / "libnvrtc.so.12")])
    with pytest.raises(
        cuda_build.BuildError, match=r"no bin/nvcc in .*; and there is no NVRTC .*libnvrtc\.so\.12: .*pip"
    ):
        cuda.recipe((9, 0))


def test_an_old_nvcc_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(fake_nvcc(tmp_path, "exit 1", version="11.8.89")))
    with pytest.raises(cuda_build.BuildError, match=r"version 11\.8\.89.*12\.0 or newer"):
        cuda_build.nvcc_recipe(cuda.CSRC)


def test_kernels_that_would_not_run_on_the_card_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(fake_nvcc(tmp_path, "exit 1")))
    monkeypatch.setenv("FASTAR_CUDA_ARCHS", "90a")
    assert cuda.recipe((9, 0)).archs == ("90a",)
    with pytest.raises(ValueError, match="FASTAR_CUDA_ARCHS: kernels for 90a do not run on this card, sm_80"):
        cuda.recipe((8, 0))


def test_an_nvcc_that_is_newer_than_torch_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(fake_nvcc(tmp_path, "exit 1", version="13.0.88")))
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(nvrtc, "candidates", lambda: ["one"])
    monkeypatch.setattr(nvrtc, "_open", lambda path: nvrtc.Nvrtc(path, None, (12, 8)))  # type: ignore[arg-type]
    assert isinstance(cuda.recipe((9, 0)), nvrtc.NvrtcRecipe)
    monkeypatch.setattr(nvrtc, "candidates", list)
    with pytest.raises(cuda_build.BuildError, match=r"nvcc is newer than torch's CUDA 12\.8; and there is no NVRTC"):
        cuda.recipe((9, 0))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert isinstance(cuda.recipe((9, 0)), cuda_build.NvccRecipe)


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(fake_nvcc(tmp_path / "toolkit", "exit 1")))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(RuntimeError, match="set XDG_CACHE_HOME"):
        cuda.compiled(cuda.recipe((9, 0)))


def test_the_key_depends_on_sources_cards_and_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    csrc = tmp_path / "csrc"
    for name in ("cuda", "common"):
        (csrc / name).mkdir(parents=True)
    (csrc / "cuda" / "kernels.cu").write_text("")
    (csrc / "common" / "shared.h").write_text("int a;")
    old = fake_nvcc(tmp_path / "old", "exit 1", version="12.8.61") / "bin" / "nvcc"
    new = fake_nvcc(tmp_path / "new", "exit 1") / "bin" / "nvcc"
    keys = [cuda_build.NvccRecipe(csrc, nvcc, archs).key() for nvcc in (old, new) for archs in (("80",), ("80", "90a"))]
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "-lineinfo")
    keys.append(cuda_build.NvccRecipe(csrc, new, ("80",)).key())
    (csrc / "common" / "shared.h").write_text("int b;")
    keys.append(cuda_build.NvccRecipe(csrc, new, ("80",)).key())
    assert len(set(keys)) == 6


@pytest.mark.parametrize("text", ["hopper", "80;9x", "8", "80;;sm_90", "80-real"])
def test_wrong_archs_are_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTAR_CUDA_ARCHS", text)
    with pytest.raises(ValueError, match="FASTAR_CUDA_ARCHS: expected a list such as '80;90a;100', got "):
        cuda_build.archs_from_environment()


def test_archs_are_read_in_any_common_form(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("90a;80;100", "80, 90a, 100", "100 90a 80;"):
        monkeypatch.setenv("FASTAR_CUDA_ARCHS", text)
        assert cuda_build.archs_from_environment() == ("80", "90a", "100")
    monkeypatch.setenv("FASTAR_CUDA_ARCHS", " ")
    assert cuda_build.archs_from_environment() is None


@pytest.mark.parametrize(
    ("archs", "card", "runs"),
    [
        ("80;90a;100", (8, 0), True),
        ("80;90a;100", (8, 9), True),
        ("80;90a;100", (9, 0), True),
        ("80;90a;100", (7, 5), False),
        ("80;90a;100", (12, 0), True),
        ("90a", (8, 0), False),
        ("90a", (10, 0), False),
        ("86", (8, 0), False),
        ("80", (9, 0), True),
        ("100f", (10, 3), True),
        ("100a", (10, 3), False),
    ],
)
def test_which_cards_a_library_covers(archs: str, card: tuple[int, int], runs: bool) -> None:
    assert cuda_build.covers(archs.split(";"), card) is runs


def test_hopper_is_compiled_with_its_own_instructions() -> None:
    assert cuda_build.arch_of((9, 0)) == "90a"
    assert cuda_build.arch_of((8, 6)) == "86"


def test_bad_arguments_of_uniforms_are_refused() -> None:
    with pytest.raises(ValueError, match="positions: expected a positive integer, got 0"):
        cuda.uniforms(1, 0, 1, seed=0)
    with pytest.raises(ValueError, match=r"seed: expected 0 <= seed < 2\^64, got -1"):
        cuda.uniforms(1, 1, 1, seed=-1)
    with pytest.raises(ValueError, match="device: expected a CUDA device, got cpu"):
        cuda.uniforms(1, 1, 1, seed=0, device="cpu")


@pytest.mark.gpu
def test_device_description_agrees_with_torch() -> None:
    library = cuda.library(torch.cuda.get_device_capability(0))
    assert library.driver_version >= 12000
    assert library.device_count() == torch.cuda.device_count()
    described, properties = library.describe(0), torch.cuda.get_device_properties(0)
    assert described.name == properties.name
    assert (described.major, described.minor) == (properties.major, properties.minor)
    assert described.multiprocessors == properties.multi_processor_count
    assert described.max_cluster >= (8 if properties.major >= 9 else 1)


@pytest.mark.gpu
@pytest.mark.parametrize("continuous", [False, True])
def test_device_uniforms_agree_with_the_oracle(continuous: bool) -> None:
    seed, row_offset = 2**63 + 12345, 2**32 - 2
    found = cuda.uniforms(4, 5, 3, seed=seed, row_offset=row_offset, continuous=continuous).cpu()
    oracle = philox_oracle.continuous if continuous else philox_oracle.discrete
    for row in range(4):
        for position in range(5):
            for draw in range(3):
                assert found[row, position, draw].item() == oracle(seed, row_offset + row, position, draw)
