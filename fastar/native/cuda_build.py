"""Compiling the kernels of csrc/cuda into an image that the driver loads, with nvcc; and their twin for the CPU.

Standard library only and no import of fastar: setup.py loads this file by its path in an environment without torch.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

DEFAULT_ARCHS = ("80", "90a", "100")
# --expt-relaxed-constexpr: device code calls the constexpr functions of csrc/common, which need no CUDA macro then.
OPTIONS = ("-std=c++20", "-O3", "--expt-relaxed-constexpr")
# Fibres change by longjmp, which the fortified one takes for an error.
TWIN_OPTIONS = (
    "-std=c++20",
    "-O2",
    "-g1",
    "-shared",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-U_FORTIFY_SOURCE",
    "-DFASTAR_TWIN",
    "-pthread",
)
OLDEST_NVCC = (12, 0)
# The kernels for several cards in one file, and beside it for which, and from which sources.
PACKAGED = "_cuda.fatbin"
PACKAGED_ABOUT = "_cuda.json"


class BuildError(RuntimeError):
    """The kernels cannot be compiled here; the message says why and what would help."""


def kernels(csrc: Path) -> Path:
    """The one translation unit that holds all kernels: nothing is left to compile side by side."""
    return csrc / "cuda" / "kernels.cu"


def fingerprint(csrc: Path) -> str:
    """Hash of every source that goes into the kernels."""
    return _digest(csrc, [kernels(csrc), *_headers(csrc)])


def _digest(csrc: Path, files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(csrc).as_posix()}\0".encode())
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def _headers(csrc: Path) -> list[Path]:
    # A program's plain structs are those of the cpu executor.
    folders = [csrc / name for name in ("cuda", "common", "cpu/executor")]
    found = [path for folder in folders for path in [*folder.glob("*.cuh"), *folder.glob("*.h")]]
    return sorted([*found, *(csrc / "freestanding").glob("*")])


def archs_from_environment() -> tuple[str, ...] | None:
    """What FASTAR_CUDA_ARCHS asks for (such as "80;90a;100"), or None where it is not set."""
    text = os.environ.get("FASTAR_CUDA_ARCHS", "").strip()
    return parse_archs(text) if text else None


def parse_archs(text: str) -> tuple[str, ...]:
    """The archs in a list such as "80;90a;100", in ascending order."""
    archs = {one.strip() for one in re.split(r"[;,\s]+", text) if one.strip()}
    wrong = sorted(one for one in archs if not re.fullmatch(r"\d{2,3}[af]?", one))
    if wrong or not archs:
        raise ValueError(f"FASTAR_CUDA_ARCHS: expected a list such as '80;90a;100', got {text!r}")
    return tuple(sorted(archs, key=_order))


def _order(arch: str) -> tuple[int, str]:
    return int(arch.rstrip("af")), arch


def arch_of(capability: tuple[int, int]) -> str:
    """The arch to compile for, given a card's compute capability; Hopper's wgmma and setmaxnreg need its own 90a."""
    name = f"{capability[0]}{capability[1]}"
    return "90a" if name == "90" else name


def covers(archs: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether kernels compiled for `archs` run on a card of this compute capability."""
    card = capability[0] * 10 + capability[1]
    for arch in archs:
        number = int(arch.rstrip("af"))
        # Plain machine code runs on later cards of its own generation, architecture-specific code on its own card only.
        if number == card or (not arch.endswith("a") and number // 10 == card // 10 and number < card):
            return True
    forward = _forward_arch(archs)
    return forward is not None and int(forward) <= card


def _forward_arch(archs: Sequence[str]) -> str | None:
    """The arch whose PTX travels along for cards newer than all of them; architecture-specific PTX is not portable."""
    plain = [arch for arch in archs if arch.isdigit()]
    return max(plain, key=int) if plain else None


def _gencode(archs: Sequence[str]) -> list[str]:
    forward = _forward_arch(archs)
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    if forward is not None:
        flags.append(f"-gencode=arch=compute_{forward},code=compute_{forward}")
    return flags


def find_nvcc() -> Path | None:
    """nvcc of CUDA_HOME where that is set, else the one on PATH, else the toolkit's usual place."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        nvcc = Path(home) / "bin" / "nvcc"
        return nvcc if os.access(nvcc, os.X_OK) else None
    found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    return Path(found) if found else None


def require_nvcc() -> Path:
    """nvcc; BuildError that says what would help where there is none."""
    nvcc = find_nvcc()
    if nvcc is None:
        home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
        looked = f"no bin/nvcc in CUDA_HOME={home}" if home else "nvcc is neither on PATH nor in /usr/local/cuda/bin"
        raise BuildError(
            f"the CUDA kernels have to be compiled, and {looked}: install a CUDA toolkit (12.0 or newer), set CUDA_HOME"
            " to one, or install a fastar-kernels that was built with FASTAR_CUDA=1"
        )
    version = nvcc_version(nvcc)
    if _numbers(version) < OLDEST_NVCC:
        raise BuildError(f"{nvcc} is version {version}; the CUDA kernels need C++20, so 12.0 or newer: set CUDA_HOME")
    return nvcc


@functools.cache
def nvcc_version(nvcc: Path) -> str:
    """Such as "13.0.88"."""
    text = _output([str(nvcc), "--version"])
    found = re.search(r"\bV(\d+(?:\.\d+)+)", text)
    if found is None:
        raise BuildError(f"{nvcc} --version names no version: {text.strip()!r}")
    return found.group(1)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _output(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", "") or ""
        raise BuildError(f"{shlex.join(command)} failed: {error} {detail}".strip()) from error


@functools.cache
def default_archs(nvcc: Path) -> tuple[str, ...]:
    """Those of DEFAULT_ARCHS that this nvcc knows: sm_100 came with 12.8."""
    # The list names sm_90 but not its variant 90a.
    known = set(re.findall(r"sm_(\d+)", _output([str(nvcc), "--list-gpu-code"])))
    return tuple(arch for arch in DEFAULT_ARCHS if arch.rstrip("a") in known)


@dataclass(frozen=True)
class NvccRecipe:
    """All that determines the bytes of an image."""

    csrc: Path
    nvcc: Path
    archs: tuple[str, ...]
    file = "kernels.fatbin"

    def key(self) -> str:
        """Hash of the sources, the options, the compiler and the archs: the image's name in a cache."""
        # nvcc reads further options from these two variables.
        extra = [os.environ.get(name, "") for name in ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS")]
        parts = ["nvcc", nvcc_version(self.nvcc), fingerprint(self.csrc), *OPTIONS, *extra, *self.archs]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]

    def describe(self) -> str:
        """What is built and by what, for the message on first use."""
        cards = ", ".join(f"sm_{arch}" for arch in self.archs)
        return f"the CUDA kernels for {cards} with nvcc {nvcc_version(self.nvcc)}"

    def build(self, target: Path) -> None:
        """Compile into `target`, which appears whole or not at all; BuildError with the command and what it printed."""
        with beside(target) as made:
            # --threads 0: the archs side by side.
            command = [str(self.nvcc), "-fatbin", *OPTIONS, *_gencode(self.archs), "--threads=0", f"-I{self.csrc}"]
            _compile("the CUDA kernels", [*command, str(kernels(self.csrc)), "-o", str(made)])


@contextlib.contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A file to write, which takes the place of `target` at the end, or vanishes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=target.parent) as name:
        yield Path(name) / target.name
        os.replace(Path(name) / target.name, target)


def _compile(what: str, command: Sequence[str]) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != 0:
        raise BuildError(f"compiling {what} failed: {shlex.join(command)}\n{done.stdout[-8000:]}")


@dataclass(frozen=True)
class TwinRecipe:
    """The host twin: the kernels' own sources, compiled for the CPU behind the driver of csrc/twin."""

    csrc: Path
    file = "library.so"

    @staticmethod
    def compiler() -> list[str]:
        """The C++ compiler, with what CXX adds to it."""
        return shlex.split(os.environ.get("CXX", "")) or ["g++"]

    @staticmethod
    def options() -> list[str]:
        """Its options; those of CXXFLAGS come last and count."""
        return [*TWIN_OPTIONS, *shlex.split(os.environ.get("CXXFLAGS", ""))]

    def key(self) -> str:
        """Hash of the sources and options: the twin's name in a cache."""
        parts = [*self.compiler(), *self.options(), platform.machine(), fingerprint(self.csrc)]
        parts.append(_digest(self.csrc, sorted((self.csrc / "twin").iterdir())))
        return "twin-" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]

    def describe(self) -> str:
        """What is built and by what, for the message on first use."""
        return f"the host twin of the CUDA kernels with {shlex.join(self.compiler())}"

    def build(self, target: Path) -> None:
        """Compile into `target`, which appears whole or not at all; BuildError with what the compiler printed."""
        with beside(target) as made:
            files = sorted(str(path) for path in (self.csrc / "twin").glob("*.cpp"))
            command = [*self.compiler(), *self.options(), f"-I{self.csrc}", *files, "-o", str(made)]
            _compile("the host twin", command)


def nvcc_recipe(csrc: Path, archs: Sequence[str] | None = None) -> NvccRecipe:
    """How nvcc compiles here: FASTAR_CUDA_ARCHS decides the cards, else `archs`, else the default ones."""
    nvcc = require_nvcc()
    return NvccRecipe(csrc, nvcc, archs_from_environment() or tuple(archs or default_archs(nvcc)))


def build_ahead_of_time(csrc: Path, package_folder: Path) -> None:
    """Put the kernels into the package that is being built (FASTAR_CUDA=1)."""
    plan = nvcc_recipe(csrc)
    print(f"fastar: compiling {plan.describe()}")
    plan.build(package_folder / PACKAGED)
    about = {"fingerprint": fingerprint(csrc), "archs": plan.archs}
    (package_folder / PACKAGED_ABOUT).write_text(json.dumps(about))
