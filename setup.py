"""Build of the native part. Needs setuptools and pybind11 only: no torch header is included, so none is needed."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
WITH_CUDA = os.environ.get("FASTAR_CUDA", "0") not in {"", "0"}

# Files under csrc/cpu/isa are compiled once per level, into namespaces of that name; csrc/cpu/dispatch.cpp picks one at
# run time.
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
X86_LEVELS = {
    "baseline": [],
    "avx2": AVX2,
    "avx512": AVX512,
    "avx512_bf16": [*AVX512, "-mavx512bf16", "-mavx512vnni"],
}


def levels_to_build() -> dict[str, list[str]]:
    """The machine's levels up to FASTAR_HIGHEST_LEVEL, or all: most of the build's time goes into the higher ones."""
    levels = X86_LEVELS if platform.machine().lower() in {"x86_64", "amd64"} else {"baseline": []}
    highest = os.environ.get("FASTAR_HIGHEST_LEVEL") or list(levels)[-1]
    if highest not in levels:
        raise ValueError(f"FASTAR_HIGHEST_LEVEL: expected one of {', '.join(levels)}, got {highest!r}")
    return dict(list(levels.items())[: list(levels).index(highest) + 1])


LEVELS = levels_to_build()


def relative(paths: list[Path]) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for p in paths)


def load_cuda_build() -> ModuleType:
    """fastar/native/cuda_build.py by path: importing it as part of fastar would import torch."""
    spec = importlib.util.spec_from_file_location("fastar_cuda_build", ROOT / "fastar/native/cuda_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class BuildNative(build_ext):
    """Compiles csrc/cpu/isa once per vector level, everything else once, several files at a time."""

    def build_extension(self, ext: Extension) -> None:
        per_level = relative(list((ROOT / "csrc/cpu/isa").glob("*.cpp")))
        jobs = [(source, level, flags) for source in per_level for level, flags in LEVELS.items()]
        # The longest first, so that none is left alone at the end. The bindings are templates around calls that are
        # never hot: read as one file, pybind11's headers cost their four seconds once, and optimising gains nothing.
        jobs.sort(key=lambda job: -os.path.getsize(ROOT / job[0]))
        bindings = [source for source in ext.sources if "bindings" in source]
        together = Path(self.build_temp) / "bindings.cpp"
        together.parent.mkdir(parents=True, exist_ok=True)
        together.write_text("".join(f'#include "{ROOT / source}"\n' for source in bindings))
        once = [str(together), *(source for source in ext.sources if source not in bindings)]
        jobs = [(source, "", ["-O1"] if source == str(together) else []) for source in once] + jobs

        def compile_one(job: tuple[str, str, list[str]]) -> str:
            source, level, flags = job
            folder = os.path.join(self.build_temp, level or "once")
            macros = [("FASTAR_ISA", level)] if level else [(f"FASTAR_HAS_{name.upper()}", "1") for name in LEVELS]
            return self.compiler.compile(
                [source],
                output_dir=folder,
                macros=macros,
                include_dirs=ext.include_dirs,
                extra_postargs=[*ext.extra_compile_args, *flags],
                depends=ext.depends,
            )[0]

        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            objects = list(pool.map(compile_one, jobs))
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            libraries=ext.libraries,
            extra_postargs=ext.extra_link_args,
            target_lang="c++",
        )

    def run(self) -> None:
        super().run()
        if WITH_CUDA:
            folder = ROOT / "fastar" if self.inplace else Path(self.build_lib) / "fastar"
            load_cuda_build().build_ahead_of_time(ROOT / "csrc", folder)


core = Extension(
    "fastar._core",
    sources=relative(
        [
            p
            for folder in ("common", "cpu", "cpu/executor", "cuda", "bindings")
            for p in ROOT.glob(f"csrc/{folder}/*.cpp")
        ]
    ),
    depends=relative(list(ROOT.glob("csrc/**/*.h"))),
    include_dirs=[pybind11.get_include(), "csrc"],
    extra_compile_args=[
        "-std=c++20",
        "-O3",
        "-g0",
        "-Wall",
        "-Wextra",
        # GCC 12 warns so about the undefined pass-through operand inside its own AVX-512 header.
        "-Wno-maybe-uninitialized",
        "-Wno-uninitialized",
        "-fvisibility=hidden",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-ffp-contract=off",
        "-pthread",
    ],
    extra_link_args=["-pthread"],
    language="c++",
)

csrc_folders = {"fastar.csrc": "csrc"}
csrc_folders |= {f"fastar.csrc.{p.name}": f"csrc/{p.name}" for p in sorted((ROOT / "csrc").iterdir()) if p.is_dir()}
csrc_folders |= {f"fastar.csrc.cpu.{name}": f"csrc/cpu/{name}" for name in ("executor", "isa")}

setup(
    ext_modules=[core],
    cmdclass={"build_ext": BuildNative},
    packages=[
        *find_packages(include=["fastar", "fastar.*"]),
        "fastar.kernels",
        "fastar.bench",
        "fastar.bench.cases",
        "fastar.bench.cases.sampling",
        *csrc_folders,
    ],
    package_dir={
        "fastar.kernels": "kernels",
        "fastar.bench": "bench",
        "fastar.bench.cases": "bench/cases",
        **csrc_folders,
    },
    package_data={
        "fastar": ["py.typed", "_cuda.*"],
        **{name: ["*.h", "*.cpp", "*.cu", "*.cuh"] for name in csrc_folders},
        # Headers of the standard library have no suffix.
        "fastar.csrc.freestanding": ["*"],
    },
    zip_safe=False,
)
