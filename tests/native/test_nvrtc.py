"""NVRTC compiles the same sources where there is no nvcc."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from fastar.native import cuda, cuda_build, nvrtc


def _nvrtc() -> nvrtc.Nvrtc:
    try:
        return nvrtc.require()
    except cuda_build.BuildError as error:
        pytest.skip(str(error))


def _architecture(image: bytes) -> int:
    # In the low byte of a cubin's ELF flags, since CUDA 13 in the one above.
    flags = int.from_bytes(image[48:52], "little")
    return max(flags & 0xFF, flags >> 8 & 0xFF)


def test_a_kernel_is_compiled_for_the_card_that_was_asked_for(tmp_path: Path) -> None:
    csrc = tmp_path / "csrc"
    shutil.copytree(cuda.CSRC / "freestanding", csrc / "freestanding")
    shutil.copytree(cuda.CSRC / "common", csrc / "common")
    (csrc / "cuda").mkdir()
    (csrc / "cuda" / "kernels.cu").write_text(
        '#include "common/philox.h"\n#include "common/mixture.h"\n'
        'extern "C" __global__ void draw(double* out) {\n'
        "    *out = fastar::continuous_uniform(fastar::philox(1, 2, 3, 4));\n}\n"
    )
    recipe = nvrtc.NvrtcRecipe(csrc, _nvrtc(), "90a")
    target = tmp_path / "out" / recipe.file
    recipe.build(target)
    image = target.read_bytes()
    assert image.startswith(b"\x7fELF")
    assert _architecture(image) == 90
    assert b"draw" in image
    assert [one.name for one in target.parent.iterdir()] == [recipe.file]


def test_what_the_compiler_says_is_shown(tmp_path: Path) -> None:
    (tmp_path / "cuda").mkdir()
    (tmp_path / "cuda" / "kernels.cu").write_text("#error planted\n")
    target = tmp_path / "out" / "kernels.cubin"
    with pytest.raises(
        cuda_build.BuildError, match=r"compiling the CUDA kernels for sm_80 with NVRTC.*failed:(.|\n)*planted"
    ):
        nvrtc.NvrtcRecipe(tmp_path, _nvrtc(), "80").build(target)
    assert not target.exists()


@pytest.mark.slow
def test_every_kernel_compiles(tmp_path: Path) -> None:
    recipe = nvrtc.NvrtcRecipe(cuda.CSRC, _nvrtc(), "90a")
    recipe.build(tmp_path / recipe.file)
    image = (tmp_path / recipe.file).read_bytes()
    assert b"fastar_run" in image
    assert b"fastar_uniforms" in image


def test_the_key_depends_on_sources_card_and_compiler(tmp_path: Path) -> None:
    (tmp_path / "cuda").mkdir()
    (tmp_path / "cuda" / "kernels.cu").write_text("")
    one = nvrtc.Nvrtc("", None, (12, 8))  # type: ignore[arg-type]
    other = nvrtc.Nvrtc("", None, (13, 0))  # type: ignore[arg-type]
    keys = [nvrtc.NvrtcRecipe(tmp_path, which, arch).key() for which in (one, other) for arch in ("80", "90a")]
    (tmp_path / "cuda" / "kernels.cu").write_text("int a;")
    keys.append(nvrtc.NvrtcRecipe(tmp_path, one, "80").key())
    assert len(set(keys)) == 5


def test_the_library_is_looked_for_in_wheels_and_toolkits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = tmp_path / "site" / "nvidia" / "cu13" / "lib"
    toolkit = tmp_path / "toolkit" / "lib64"
    for folder, name in ((wheels, "libnvrtc.so.13"), (toolkit, "libnvrtc.so.12")):
        folder.mkdir(parents=True)
        (folder / name).write_text("")
        (folder / name.replace("nvrtc", "nvrtc-builtins")).write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    found = nvrtc.candidates()
    assert found[:1] == [str(wheels / "libnvrtc.so.13")]
    assert str(toolkit / "libnvrtc.so.12") in found
    assert not any("builtins" in os.path.basename(one) for one in found)


def test_what_does_not_open_or_is_too_new_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "libnvrtc.so.13"
    broken.write_text("not a library")
    monkeypatch.setattr(nvrtc, "candidates", lambda: [str(broken)])
    with pytest.raises(
        cuda_build.BuildError, match=rf"there is no NVRTC .*\({broken}: .*run 'pip install nvidia-cuda-nvrtc'"
    ):
        nvrtc.require(13)
    monkeypatch.setattr(nvrtc, "_open", lambda path: nvrtc.Nvrtc(path, None, (13, 0)))  # type: ignore[arg-type]
    assert nvrtc.require().version == (13, 0)
    with pytest.raises(cuda_build.BuildError, match=rf"{broken} is version 13\.0"):
        nvrtc.require(12)
