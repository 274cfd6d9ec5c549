"""Compiling the kernels of csrc/cuda with NVRTC, the compiler that comes as a library with torch's CUDA wheels.

Where there is a GPU but no toolkit. NVRTC brings no standard library: csrc/freestanding holds what the kernels use of
it.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastar.native import cuda_build
from fastar.native.cuda_build import BuildError

# Functions without a mark are the device's: those of csrc/common have none.
OPTIONS = ("--std=c++20", "--device-as-default-execution-space")
OLDEST = (12, 0)


def candidates() -> list[str]:
    """Where NVRTC may be: in torch's wheels, in a toolkit, and where the system finds libraries. Paths, or a name."""
    folders: list[Path] = []
    wheels = importlib.util.find_spec("nvidia")
    for place in (wheels.submodule_search_locations or []) if wheels is not None else []:
        folders += sorted(Path(place).glob("*/lib"), reverse=True)
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    folders += [Path(home) / "lib64", Path(home) / "targets" / "x86_64-linux" / "lib"]
    found = [str(file) for folder in folders for file in sorted(folder.glob("libnvrtc.so.[0-9]*"), reverse=True)]
    system = ctypes.util.find_library("nvrtc")
    return [*found, *([system] if system else [])]


@dataclass(frozen=True)
class Nvrtc:
    """The library, opened."""

    path: str
    calls: ctypes.CDLL
    version: tuple[int, int]

    def check(self, status: int, what: str) -> None:
        """BuildError for a status that is none of success."""
        if status:
            self.calls.nvrtcGetErrorString.restype = ctypes.c_char_p
            raise BuildError(f"{self.path}: {what} failed: {self.calls.nvrtcGetErrorString(status).decode()}")


def _open(path: str) -> Nvrtc:
    # NVRTC looks for its second half by name alone, which finds it where it is loaded already.
    for builtins in sorted(Path(path).parent.glob("libnvrtc-builtins.so*")) if "/" in path else []:
        ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
    calls = ctypes.CDLL(path)
    major, minor = ctypes.c_int(), ctypes.c_int()
    calls.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return Nvrtc(path, calls, (major.value, minor.value))


def require(newest_major: int | None = None) -> Nvrtc:
    """The first NVRTC that opens, is new enough, and no newer than a major version; else BuildError says what to do."""
    declined = []
    for path in candidates():
        try:
            found = _open(path)
        except (OSError, AttributeError) as error:
            declined.append(f"{path}: {error}")
            continue
        if found.version >= OLDEST and (newest_major is None or found.version[0] <= newest_major):
            return found
        declined.append(f"{path} is version {found.version[0]}.{found.version[1]}")
    looked = "; ".join(declined) or "no libnvrtc in torch's wheels, in CUDA_HOME or in the system's folders"
    raise BuildError(f"there is no NVRTC to compile the CUDA kernels ({looked}): run 'pip install nvidia-cuda-nvrtc'")


@dataclass(frozen=True)
class NvrtcRecipe:
    """All that determines the bytes of an image."""

    csrc: Path
    nvrtc: Nvrtc
    arch: str
    file = "kernels.cubin"

    @property
    def archs(self) -> tuple[str, ...]:
        """The cards that the image is for."""
        return (self.arch,)

    def _version(self) -> str:
        return ".".join(map(str, self.nvrtc.version))

    def key(self) -> str:
        """Hash of the sources, the options, the compiler and the arch: the image's name in a cache."""
        parts = ["nvrtc", self._version(), cuda_build.fingerprint(self.csrc), *OPTIONS, self.arch]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]

    def describe(self) -> str:
        """What is built and by what, for the message on first use."""
        return f"the CUDA kernels for sm_{self.arch} with NVRTC {self._version()}"

    def build(self, target: Path) -> None:
        """Compile into `target`, which appears whole or not at all; BuildError with what the compiler printed."""
        image = self._compile()
        with cuda_build.beside(target) as made:
            made.write_bytes(image)

    def _compile(self) -> bytes:
        nvrtc, calls = self.nvrtc, self.nvrtc.calls
        source = cuda_build.kernels(self.csrc)
        program = ctypes.c_void_p()
        nvrtc.check(
            calls.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), str(source).encode(), 0, None, None),
            "making a program",
        )
        try:
            folders = [f"-I{self.csrc}", f"-I{self.csrc / 'freestanding'}"]
            options = [one.encode() for one in (*OPTIONS, f"--gpu-architecture=sm_{self.arch}", *folders)]
            status = calls.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
            if status:
                log = self._text(program, calls.nvrtcGetProgramLogSize, calls.nvrtcGetProgramLog)
                raise BuildError(f"compiling {self.describe()} failed:\n{log.decode(errors='replace')[-8000:]}")
            return self._text(program, calls.nvrtcGetCUBINSize, calls.nvrtcGetCUBIN)
        finally:
            calls.nvrtcDestroyProgram(ctypes.byref(program))

    def _text(self, program: ctypes.c_void_p, size: Callable[..., int], get: Callable[..., int]) -> bytes:
        count = ctypes.c_size_t()
        self.nvrtc.check(size(program, ctypes.byref(count)), "asking for a result")
        result = ctypes.create_string_buffer(count.value)
        self.nvrtc.check(get(program, result), "taking a result")
        return result.raw


def recipe(csrc: Path, arch: str, newest_major: int | None = None) -> NvrtcRecipe:
    """How NVRTC compiles here for one card."""
    return NvrtcRecipe(csrc, require(newest_major), arch)
