"""The CUDA kernels: their image found or compiled once, and loaded through fastar._core.

Looked for, in this order: beside this package (built ahead of time with FASTAR_CUDA=1), in the user's cache folder, and
else compiled there, with nvcc or, where there is none, with NVRTC. Nothing of it happens at import. An image counts
only where it was made from the sources in fastar.csrc and runs on the card, so an edited checkout or a new card means a
new one.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastar import native
from fastar.native import cuda_build, nvrtc

if TYPE_CHECKING:
    # `fastar doctor` reads this file where torch is missing.
    from torch import Tensor

PACKAGE = Path(__file__).resolve().parent.parent
PACKAGED = PACKAGE / cuda_build.PACKAGED
PACKAGED_ABOUT = PACKAGE / cuda_build.PACKAGED_ABOUT
# In a checkout csrc/ stands beside the package.
CSRC = next((path for path in (PACKAGE / "csrc", PACKAGE.parent / "csrc") if path.is_dir()), PACKAGE / "csrc")
# NVIDIA's driver, where the system finds it.
DRIVER = "libcuda.so.1"

Recipe = cuda_build.NvccRecipe | nvrtc.NvrtcRecipe | cuda_build.TwinRecipe


@dataclass(frozen=True)
class Found:
    """Kernels that lie ready: their file, whether it came with the package or from the cache, and for which cards."""

    path: Path
    origin: str
    archs: tuple[str, ...]


def cache_folder() -> Path:
    """Where compiled kernels are kept: the platform's cache folder of this user."""
    if os.environ.get("XDG_CACHE_HOME"):
        base = Path(os.environ["XDG_CACHE_HOME"])
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path.home() / ".cache"
    return base / "fastar" / "cuda"


def capabilities() -> list[tuple[int, int]]:
    """The compute capabilities of the NVIDIA cards that torch sees, each once; takes no CUDA context."""
    import torch

    if torch.version.hip is not None or not torch.cuda.is_available():
        return []
    return sorted({torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())})


def packaged_declines(cards: Sequence[tuple[int, int]]) -> str | None:
    """Why the kernels beside this package cannot be used, or None where they can."""
    try:
        about = json.loads(PACKAGED_ABOUT.read_text())
    except OSError:
        return "not built with FASTAR_CUDA=1"
    if about["fingerprint"] != cuda_build.fingerprint(CSRC):
        return "built from other sources than those in fastar.csrc"
    missing = [card for card in cards if not cuda_build.covers(about["archs"], card)]
    if missing:
        return f"built for {';'.join(about['archs'])}, which does not run on sm_{missing[0][0]}{missing[0][1]}"
    return None


def _intact(entry: Path, file: str) -> bool:
    """Whether a cache entry holds what was once written: opening half a library can kill the process."""
    try:
        return hashlib.sha256((entry / file).read_bytes()).hexdigest() == (entry / "sha256").read_text()
    except OSError:
        return False


def _cached(recipe: Recipe) -> Path:
    return cache_folder() / recipe.key()


def recipe(card: tuple[int, int]) -> cuda_build.NvccRecipe | nvrtc.NvrtcRecipe:
    """How the kernels for a card are compiled here: with nvcc, else with NVRTC; BuildError where neither can.

    A compiler of a newer major version than torch's CUDA may make what the driver does not read.
    """
    import torch

    arch = cuda_build.arch_of(card)
    newest = int(torch.version.cuda.split(".")[0]) if torch.version.cuda else None
    try:
        with_nvcc = cuda_build.nvcc_recipe(CSRC, [arch])
        if not cuda_build.covers(with_nvcc.archs, card):
            archs = ";".join(with_nvcc.archs)
            raise ValueError(f"FASTAR_CUDA_ARCHS: kernels for {archs} do not run on this card, sm_{card[0]}{card[1]}")
        if newest is None or int(cuda_build.nvcc_version(with_nvcc.nvcc).split(".")[0]) <= newest:
            return with_nvcc
        reason = f"nvcc is newer than torch's CUDA {torch.version.cuda}"
    except cuda_build.BuildError as error:
        reason = str(error)
    try:
        return nvrtc.recipe(CSRC, arch, newest)
    except cuda_build.BuildError as error:
        raise cuda_build.BuildError(f"{reason}; and {error}") from None


def compiler() -> str:
    """What would compile the kernels here, for `fastar doctor`; BuildError where nothing can."""
    try:
        nvcc = cuda_build.require_nvcc()
        return f"nvcc {cuda_build.nvcc_version(nvcc)} ({nvcc})"
    except cuda_build.BuildError as error:
        try:
            found = nvrtc.require()
        except cuda_build.BuildError as other:
            raise cuda_build.BuildError(f"{error}; and {other}") from None
        return f"NVRTC {found.version[0]}.{found.version[1]} ({found.path})"


def find() -> Found | None:
    """The kernels that `library` would load without compiling anything, or None."""
    cards = capabilities()
    if packaged_declines(cards) is None:
        return Found(PACKAGED, "package", tuple(json.loads(PACKAGED_ABOUT.read_text())["archs"]))
    for card in cards:
        with contextlib.suppress(cuda_build.BuildError, ValueError):
            one = recipe(card)
            if _intact(_cached(one), one.file):
                return Found(_cached(one) / one.file, "cache", one.archs)
    return None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    # The system lets go of the lock when its holder dies, so a killed build blocks nobody.
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def compiled(recipe: Recipe) -> Path:
    """The file of this recipe in the cache, compiled where it is missing or damaged."""
    entry = _cached(recipe)
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with _locked(entry.with_suffix(".lock")):
            if not _intact(entry, recipe.file):
                _fill(entry, recipe)
    except OSError as error:
        raise RuntimeError(
            f"the CUDA kernels cannot be kept in {entry.parent} ({error}): set XDG_CACHE_HOME"
        ) from error
    return entry / recipe.file


def _fill(entry: Path, recipe: Recipe) -> None:
    print(f"fastar: compiling {recipe.describe()}, once ...", file=sys.stderr, flush=True)
    begin = time.monotonic()
    shutil.rmtree(entry, ignore_errors=True)
    recipe.build(entry / recipe.file)
    # Written last: an entry without it counts as damaged.
    (entry / "sha256").write_text(hashlib.sha256((entry / recipe.file).read_bytes()).hexdigest())
    print(f"fastar: done in {time.monotonic() - begin:.0f} s, kept in {entry}", file=sys.stderr, flush=True)


@functools.cache
def library(card: tuple[int, int]) -> Any:
    """The kernels for cards of a compute capability (`fastar._core.CudaLibrary`), compiled on first use.

    RuntimeError that says what would help where there is no driver, or nothing to compile them with.
    """
    core = native.core()
    version = core.cuda_driver_version(DRIVER)
    image = PACKAGED if packaged_declines([card]) is None else compiled(recipe(card))
    try:
        return core.CudaLibrary(DRIVER, image.read_bytes())
    except RuntimeError as error:
        raise RuntimeError(
            f"{error}; the driver, of CUDA {version // 1000}.{version % 1000 // 10}, does not load {image}: update it,"
            " or set CUDA_HOME to an older toolkit"
        ) from error


@functools.cache
def twin() -> Any:
    """The kernels on the CPU, a block's threads as fibres: to develop and to test them without a card.

    Compiled on first use, like `library`. Tensors that it works on are the CPU's.
    """
    return native.core().CudaLibrary(str(compiled(cuda_build.TwinRecipe(CSRC))), b"")


def uniforms(
    rows: int,
    positions: int,
    draws: int,
    *,
    seed: int,
    row_offset: int = 0,
    continuous: bool = False,
    device: str = "cuda",
) -> Tensor:
    """u[row, position, draw] of the library's random numbers (float64), computed on the device.

    The draw at (row, position, draw) depends on the seed and on these three alone.
    """
    import torch

    from fastar import _checks

    for name, size in (("rows", rows), ("positions", positions), ("draws", draws)):
        _checks.positive(name, size)
    for name, value in (("seed", seed), ("row_offset", row_offset)):
        if not 0 <= value < 2**64:
            raise ValueError(f"{name}: expected 0 <= {name} < 2^64, got {value}")
    if torch.device(device).type != "cuda":
        raise ValueError(f"device: expected a CUDA device, got {device}")
    out = torch.empty(rows, positions, draws, dtype=torch.float64, device=device)
    with torch.cuda.device(out.device):
        library(torch.cuda.get_device_capability(out.device)).fill_uniforms(
            device=out.device.index,
            uniforms=out.data_ptr(),
            seed=seed,
            row_offset=row_offset,
            rows=rows,
            positions=positions,
            draws=draws,
            continuous=continuous,
            stream=torch.cuda.current_stream().cuda_stream,
        )
    return out
