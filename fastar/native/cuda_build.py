"""Compiling csrc/cuda into one shared library with nvcc and ninja.

Standard library only and no import of fastar: setup.py loads this file by its path in an environment without torch.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DEFAULT_ARCHS = ("80", "90a", "100")
# --expt-relaxed-constexpr: device code calls the constexpr functions of csrc/common, which need no CUDA macro then.
OPTIONS = (
    "-std=c++20",
    "-O3",
    "--expt-relaxed-constexpr",
    "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra",
)
# The CUDA runtime is linked in and its symbols are hidden: the library loads without a toolkit or a driver, and never
# meets the runtime that torch brings.
LINK_OPTIONS = ("-shared", "-cudart=static", "-Xlinker=--exclude-libs,ALL")
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
)
OLDEST_NVCC = (12, 0)
PACKAGED = "_cuda.so"


class BuildError(RuntimeError):
    """The CUDA library cannot be built here; the message says why and what would help."""


def fingerprint(csrc: Path) -> str:
    """Hash of every source that goes into the library."""
    digest = hashlib.sha256()
    for path in [*_units(csrc), *_headers(csrc)]:
        digest.update(f"{path.relative_to(csrc).as_posix()}\0".encode())
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def _units(csrc: Path) -> list[Path]:
    return sorted((csrc / "cuda").glob("*.cu"))


def _headers(csrc: Path) -> list[Path]:
    # A program's plain structs are those of the cpu executor.
    folders = [csrc / name for name in ("cuda", "common", "cpu/executor")]
    return sorted(path for folder in folders for path in [*folder.glob("*.cuh"), *folder.glob("*.h")])


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
    """Whether a library built for `archs` runs on a card of this compute capability."""
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
            f"the CUDA library has to be compiled, and {looked}: install a CUDA toolkit (12.0 or newer), set CUDA_HOME"
            " to one, or install a fastar-kernels that was built with FASTAR_CUDA=1"
        )
    version = nvcc_version(nvcc)
    if _numbers(version) < OLDEST_NVCC:
        raise BuildError(f"{nvcc} is version {version}; the CUDA library needs C++20, so 12.0 or newer: set CUDA_HOME")
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


def find_ninja() -> str:
    """The ninja of this interpreter's environment, else the one on PATH."""
    found = shutil.which("ninja", path=os.path.dirname(sys.executable)) or shutil.which("ninja")
    if found is None:
        with contextlib.suppress(ImportError):
            import ninja

            found = shutil.which("ninja", path=ninja.BIN_DIR)
    if found is None:
        raise BuildError("the CUDA library has to be compiled and there is no ninja: run 'pip install ninja'")
    return found


@dataclass(frozen=True)
class Recipe:
    """All that determines the library's bytes."""

    csrc: Path
    nvcc: Path
    archs: tuple[str, ...]

    def key(self) -> str:
        """Hash of the sources, the options, the compiler and the archs: the library's name in a cache."""
        # nvcc reads further options from these two variables; a home folder may be shared by machines of several kinds.
        extra = [os.environ.get(name, "") for name in ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS")]
        extra += [platform.machine(), *platform.libc_ver()]
        parts = [fingerprint(self.csrc), *OPTIONS, *LINK_OPTIONS, *extra, nvcc_version(self.nvcc), *self.archs]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]

    def describe(self) -> str:
        """What is built and by what, for the message on first use."""
        cards = ", ".join(f"sm_{arch}" for arch in self.archs)
        return f"the CUDA library for {cards} with nvcc {nvcc_version(self.nvcc)}"

    def _script(self) -> str:
        nvcc = shlex.quote(str(self.nvcc))
        defines = [f'-DFASTAR_FINGERPRINT="{fingerprint(self.csrc)}"', f'-DFASTAR_ARCHS="{";".join(self.archs)}"']
        options = shlex.join([*OPTIONS, *_gencode(self.archs), *defines, f"-I{self.csrc}"])
        lines = [
            f"rule compile\n  command = {_escape(f'{nvcc} {options}')} -c $in -o $out\n  description = nvcc $in",
            f"rule link\n  command = {_escape(f'{nvcc} {shlex.join(LINK_OPTIONS)}')} -o $out $in",
        ]
        objects = [f"{unit.stem}.o" for unit in _units(self.csrc)]
        lines += [
            f"build {_path(name)}: compile {_path(str(unit))}"
            for name, unit in zip(objects, _units(self.csrc), strict=True)
        ]
        lines.append(f"build {PACKAGED}: link {' '.join(map(_path, objects))}")
        return "\n".join(lines) + "\n"

    def build(self, target: Path) -> None:
        """Compile into `target`, which appears whole or not at all; BuildError with the command and what it printed."""
        ninja = find_ninja()
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=target.parent) as name:
            folder = Path(name)
            (folder / "build.ninja").write_text(self._script())
            done = subprocess.run(
                [ninja, "-C", name],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            if done.returncode != 0:
                raise BuildError(f"compiling the CUDA library failed:\n{done.stdout[-8000:]}")
            os.replace(folder / PACKAGED, target)


@dataclass(frozen=True)
class TwinRecipe:
    """The host twin: the kernels' own sources, compiled for the CPU against csrc/twin."""

    csrc: Path

    @staticmethod
    def compiler() -> list[str]:
        """The C++ compiler, with what CXX adds to it."""
        return shlex.split(os.environ.get("CXX", "")) or ["g++"]

    def _files(self) -> list[Path]:
        # What device.cu asks of a card, the twin's own file answers.
        kernels = [path for path in _units(self.csrc) if path.name != "device.cu"]
        return [*kernels, *sorted((self.csrc / "twin").glob("*.cpp"))]

    def key(self) -> str:
        """Hash of the sources and options: the twin's name in a cache."""
        digest = hashlib.sha256("\0".join([*TWIN_OPTIONS, *self.compiler(), platform.machine()]).encode())
        for path in [*self._files(), *_headers(self.csrc), *sorted((self.csrc / "twin").glob("*.h"))]:
            digest.update(f"{path.relative_to(self.csrc).as_posix()}\0".encode())
            digest.update(path.read_bytes() + b"\0")
        return "twin-" + digest.hexdigest()[:32]

    def describe(self) -> str:
        """What is built and by what, for the message on first use."""
        return f"the host twin of the CUDA kernels with {shlex.join(self.compiler())}"

    def build(self, target: Path) -> None:
        """Compile into `target`, which appears whole or not at all; BuildError with what the compiler printed."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=target.parent) as name:
            library = Path(name) / target.name
            command = [*self.compiler(), *TWIN_OPTIONS, f'-DFASTAR_FINGERPRINT="{fingerprint(self.csrc)}"']
            command += [f"-I{self.csrc}", "-x", "c++", *map(str, self._files()), "-o", str(library)]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if done.returncode != 0:
                raise BuildError(f"compiling the host twin failed:\n{done.stderr[-8000:]}")
            os.replace(library, target)


def _escape(text: str) -> str:
    return text.replace("$", "$$")


def _path(text: str) -> str:
    return re.sub(r"[$ :]", r"$\g<0>", text)


def recipe(csrc: Path, archs: Sequence[str] | None = None) -> Recipe:
    """How the library is built here: FASTAR_CUDA_ARCHS decides the cards, else `archs`, else the default ones."""
    nvcc = require_nvcc()
    return Recipe(csrc, nvcc, archs_from_environment() or tuple(archs or default_archs(nvcc)))


def build_ahead_of_time(csrc: Path, package_folder: Path) -> None:
    """Put the library into the package that is being built (FASTAR_CUDA=1)."""
    plan = recipe(csrc)
    print(f"fastar: compiling the CUDA library for {', '.join(f'sm_{arch}' for arch in plan.archs)} with {plan.nvcc}")
    plan.build(package_folder / PACKAGED)
