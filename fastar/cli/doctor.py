"""``fastar doctor``: one screen about this machine and this installation.

People run it when something is missing, so this file needs the standard library only, and every section that fails says
so in its place instead of ending the report.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastar import _identity

OLDEST_TORCH = (2, 11)
DTYPES = ("float32", "bfloat16", "float16", "float64")
# Import names and what to install for them: the library's own needs, and those of the other commands.
NEEDED = {"torch": "'torch>=2.11'", "numpy": "numpy", "safetensors": "safetensors"}
CLI_PACKAGES = {"rich": "rich", "typer": "typer", "matplotlib": "matplotlib", "sklearn": "scikit-learn"}
ABSENT = "not installed"
VECTOR_UNITS = (
    *("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl"),
    *("avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2"),
)
# Names here and in the CUDA library, and torch's.
GPU_PROPERTIES = {
    "multiprocessors": "multi_processor_count",
    "registers_per_multiprocessor": "regs_per_multiprocessor",
    "shared_per_multiprocessor": "shared_memory_per_multiprocessor",
    "shared_per_block": "shared_memory_per_block_optin",
    "l2_bytes": "L2_cache_size",
    "memory_bytes": "total_memory",
}

Report = dict[str, Any]


def run(arguments: Sequence[str]) -> int:
    """The command: print the report, 1 where something essential is broken."""
    parser = argparse.ArgumentParser(prog="fastar doctor", description="What works on this machine, and why not.")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(arguments)
    report = examine()
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        from fastar.cli import _screen

        print(_screen.render(report))
    return 1 if report["problems"] else 0


def examine() -> Report:
    """Everything that the report says, as plain data."""
    report: Report = {"problems": [], "notes": []}
    for name, section in SECTIONS.items():
        try:
            report[name] = section(report)
        # Whatever is broken in a section, the other sections are what the reader needs to mend it.
        except Exception as error:
            report[name] = {"error": f"{type(error).__name__}: {error}"}
            report["problems"].append(f"{name} could not be examined: {report[name]['error']}")
    return report


def _fastar(report: Report) -> Report:
    folder = Path(__file__).resolve().parent.parent
    clash = _identity.problem()
    if clash is not None:
        report["problems"].append(clash)
    return {
        "version": _identity.version(),
        "folder": str(folder),
        "checkout": (folder.parent / "pyproject.toml").exists(),
        "name_clash": clash,
    }


def _python(report: Report) -> Report:
    return {
        "version": platform.python_version(),
        "executable": sys.executable,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _package(name: str) -> Report:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        return {"version": None, "error": ABSENT if error.name == name else f"does not import: {error}"}
    # A package may fail to load in any way: a missing shared library, an ABI that does not fit.
    except Exception as error:
        return {"version": None, "error": f"does not import: {type(error).__name__}: {error}"}
    return {"version": str(getattr(module, "__version__", "of unknown version")), "error": None}


def _packages(report: Report) -> Report:
    found = {name: _package(name) for name in (*NEEDED, "triton")}
    # Only a look: importing matplotlib takes longer than the rest of the report.
    found |= {
        name: {"version": None, "error": None if importlib.util.find_spec(name) else ABSENT} for name in CLI_PACKAGES
    }
    absent = [name for name, one in found.items() if one["error"] == ABSENT]
    needed = [requirement for name, requirement in NEEDED.items() if name in absent]
    if needed:
        names = ", ".join(name for name in NEEDED if name in absent)
        report["problems"].append(f"{names} not installed; run: pip install {' '.join(needed)}")
    for name in NEEDED:
        if found[name]["error"] not in (None, ABSENT):
            report["problems"].append(
                f"{name} {found[name]['error']}; run: pip install --force-reinstall {NEEDED[name]}"
            )
    version = found["torch"]["version"]
    if version is not None and _numbers(version) < OLDEST_TORCH:
        report["problems"].append(f"torch {version} is too old; run: pip install --upgrade {NEEDED['torch']}")
    extra = [requirement for name, requirement in CLI_PACKAGES.items() if name in absent]
    if extra:
        report["notes"].append(
            f"fastar bench and fastar demo need {', '.join(extra)}; run: pip install 'fastar-kernels[cli]'"
        )
    return found


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split("+")[0].split(".")[:2]
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in parts)


def _cpu(report: Report) -> Report:
    model, flags = platform.processor() or platform.machine(), set[str]()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name":
            model = value
        elif key in {"flags", "Features"}:
            flags |= set(value.split())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"model": model, "cores": usable, "vector_units": [name for name in VECTOR_UNITS if name in flags]}


def _core(report: Report) -> Report:
    if _identity.is_shadowed():
        return {"error": "not examined: 'import fastar' gives the tar library"}
    native = importlib.import_module("fastar.native")
    reason = native.why_missing()
    if reason is not None:
        report["problems"].append(reason)
        return {"error": reason}
    core = native.core()
    return {
        "error": None,
        "file": core.__file__,
        "levels_built": core.levels_built(),
        "levels_usable": core.levels_usable(),
        "level": core.level(),
    }


def _gpus(report: Report) -> Report:
    torch = sys.modules.get("torch")
    if torch is None:
        return {"error": "unknown without torch", "devices": []}
    if not torch.cuda.is_available():
        if torch.version.cuda is None:
            reason, remedy = f"torch {torch.__version__} is built without CUDA", "install a build of torch with CUDA"
        else:
            reason, remedy = f"torch, built for CUDA {torch.version.cuda}, finds none", "is the driver recent enough?"
        # Either file shows that the system's driver found a card; the second one is that of WSL.
        if any(os.path.exists(path) for path in ("/dev/nvidia0", "/dev/dxg")):
            report["notes"].append(f"there seems to be a GPU here, but {reason}; {remedy}")
        return {"error": f"none: {reason}", "devices": []}
    return {"error": None, "devices": [_gpu(torch, index) for index in range(torch.cuda.device_count())]}


def _gpu(torch: Any, index: int) -> Report:
    properties = torch.cuda.get_device_properties(index)
    return {
        "device": f"cuda:{index}",
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        # What this version of torch does not tell, and the largest cluster, the CUDA library does.
        **{name: getattr(properties, told, None) for name, told in GPU_PROPERTIES.items()},
        "max_cluster": None if properties.major >= 9 else 1,
    }


def _cuda_library(report: Report) -> Report:
    if _identity.is_shadowed():
        return {"error": "not examined: 'import fastar' gives the tar library"}
    cuda = importlib.import_module("fastar.native.cuda")
    build = importlib.import_module("fastar.native.cuda_build")
    section: Report = {
        "error": None,
        "file": None,
        "origin": None,
        "archs": None,
        "packaged": None,
        "compiler": None,
        "cannot_compile": None,
        "cache": str(cuda.cache_folder()),
    }
    try:
        section["compiler"] = cuda.compiler()
    except build.BuildError as error:
        section["cannot_compile"] = str(error)
    if sys.modules.get("torch") is None or report["core"]["error"] is not None:
        section["error"] = "not examined without torch and fastar._core"
        return section
    section["packaged"] = cuda.packaged_declines(cuda.capabilities())
    devices = report["gpus"].get("devices", [])
    found = cuda.find()
    if found is None:
        if devices and section["cannot_compile"]:
            report["notes"].append(f"there is a GPU here, but {section['cannot_compile']}")
        return section
    section |= {"file": str(found.path), "origin": found.origin, "archs": list(found.archs)}
    for index, device in enumerate(devices):
        card = tuple(int(part) for part in device["capability"].split("."))
        described = cuda.library(card).describe(index)
        told = (*GPU_PROPERTIES, "max_cluster", "kernel_registers")
        device.update({name: getattr(described, name) for name in told})
    return section


def _ops(report: Report) -> Report:
    if _identity.is_shadowed():
        return {"error": "not examined: 'import fastar' gives the tar library"}
    if sys.modules.get("torch") is None:
        return {"error": "not examined without torch"}
    torch = sys.modules["torch"]
    importlib.import_module("fastar.ops")
    dispatch = importlib.import_module("fastar._dispatch")
    rows = []
    for op in dispatch.ops():
        for device in ["cpu", *_distinct(report["gpus"].get("devices", []))]:
            for dtype in DTYPES:
                verdicts = dispatch.verdicts(op, torch.device(device), getattr(torch, dtype))
                usable = [one.implementation for one in verdicts if one.reason is None]
                rows.append(
                    {
                        "op": op,
                        "device": device,
                        "dtype": dtype,
                        "uses": usable[0] if usable else None,
                        "declined": {one.implementation: one.reason for one in verdicts if one.reason is not None},
                    }
                )
                if not usable:
                    report["problems"].append(f"{op} cannot run in {dtype} on {device}")
    return {"error": None, "choices": rows}


def _distinct(devices: Sequence[Report]) -> list[str]:
    """One device of each model of card."""
    first: dict[str, str] = {}
    for device in devices:
        first.setdefault(device["name"], device["device"])
    return list(first.values())


# In this order: later sections read what earlier ones found.
SECTIONS: dict[str, Callable[[Report], Any]] = {
    "fastar": _fastar,
    "python": _python,
    "packages": _packages,
    "cpu": _cpu,
    "core": _core,
    "gpus": _gpus,
    "cuda_library": _cuda_library,
    "ops": _ops,
}
