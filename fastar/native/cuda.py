"""The CUDA library: found or compiled once, opened through fastar._core.

Looked for, in this order: beside this package (built ahead of time with FASTAR_CUDA=1), in the user's cache folder, and
else compiled there with nvcc and ninja. Nothing of it happens at import. A library counts only where it was built from
the sources in fastar.csrc and covers the cards of this machine, so an edited checkout or a new card means a new one.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastar import native
from fastar.native import cuda_build

if TYPE_CHECKING:
    # `fastar doctor` reads this file where torch is missing.
    from torch import Tensor

PACKAGE = Path(__file__).resolve().parent.parent
PACKAGED = PACKAGE / cuda_build.PACKAGED
# In a checkout csrc/ stands beside the package.
CSRC = next((path for path in (PACKAGE / "csrc", PACKAGE.parent / "csrc") if path.is_dir()), PACKAGE / "csrc")


@dataclass(frozen=True)
class Found:
    """A library that lies ready: its file, and whether it came with the package or from the cache."""

    path: Path
    origin: str


def cache_folder() -> Path:
    """Where compiled libraries are kept: the platform's cache folder of this user."""
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


def _archs(cards: Sequence[tuple[int, int]]) -> list[str]:
    return [cuda_build.arch_of(card) for card in cards]


def _open(path: Path) -> Any:
    return native.core().CudaLibrary(str(path))


def packaged_declines(cards: Sequence[tuple[int, int]]) -> str | None:
    """Why the library beside this package cannot be used, or None where it can."""
    if not PACKAGED.exists():
        return "not built with FASTAR_CUDA=1"
    try:
        library = _open(PACKAGED)
    except RuntimeError as error:
        return str(error)
    if library.fingerprint != cuda_build.fingerprint(CSRC):
        return "built from other sources than those in fastar.csrc"
    missing = [card for card in cards if not cuda_build.covers(library.archs.split(";"), card)]
    if missing:
        return f"built for {library.archs}, which does not run on sm_{missing[0][0]}{missing[0][1]}"
    return None


def _intact(entry: Path) -> bool:
    """Whether a cache entry holds what was once written: opening half a library can kill the process."""
    try:
        return hashlib.sha256((entry / "library.so").read_bytes()).hexdigest() == (entry / "sha256").read_text()
    except OSError:
        return False


def _cached(recipe: cuda_build.Recipe | cuda_build.TwinRecipe) -> Path:
    return cache_folder() / recipe.key()


def find() -> Found | None:
    """The library that `library` would open without compiling anything, or None."""
    cards = capabilities()
    if packaged_declines(cards) is None:
        return Found(PACKAGED, "package")
    with contextlib.suppress(cuda_build.BuildError):
        entry = _cached(cuda_build.recipe(CSRC, _archs(cards)))
        if _intact(entry):
            return Found(entry / "library.so", "cache")
    return None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    # The system lets go of the lock when its holder dies, so a killed build blocks nobody.
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(recipe: cuda_build.Recipe | cuda_build.TwinRecipe) -> Path:
    """The library of this recipe in the cache, compiled where it is missing or damaged."""
    entry = _cached(recipe)
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with _locked(entry.with_suffix(".lock")):
            if not _intact(entry):
                _fill(entry, recipe)
    except OSError as error:
        raise RuntimeError(
            f"the CUDA library cannot be kept in {entry.parent} ({error}): set XDG_CACHE_HOME"
        ) from error
    return entry / "library.so"


def _fill(entry: Path, recipe: cuda_build.Recipe | cuda_build.TwinRecipe) -> None:
    print(f"fastar: compiling {recipe.describe()}, once ...", file=sys.stderr, flush=True)
    begin = time.monotonic()
    shutil.rmtree(entry, ignore_errors=True)
    recipe.build(entry / "library.so")
    # Written last: an entry without it counts as damaged.
    (entry / "sha256").write_text(hashlib.sha256((entry / "library.so").read_bytes()).hexdigest())
    print(f"fastar: done in {time.monotonic() - begin:.0f} s, kept in {entry}", file=sys.stderr, flush=True)


@functools.cache
def library() -> Any:
    """The opened library (`fastar._core.CudaLibrary`), compiled on first use where there is none.

    RuntimeError that says what would help where it can be neither found nor compiled.
    """
    cards = capabilities()
    if packaged_declines(cards) is None:
        return _open(PACKAGED)
    return _open(_compile(cuda_build.recipe(CSRC, _archs(cards))))


@functools.cache
def twin() -> Any:
    """The kernels on the CPU, a block's threads as fibres: to develop and to test them without a card.

    Compiled on first use, like `library`. Tensors that it works on are the CPU's.
    """
    return _open(_compile(cuda_build.TwinRecipe(CSRC)))


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
        library().fill_uniforms(
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
