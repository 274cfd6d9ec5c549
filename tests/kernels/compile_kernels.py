"""Compile every kernel that one file of kernels/ launches, for one card, without a GPU: a program of its own.

    python compile_kernels.py masked_linear 90 [CANDIDATE [few]]

Writes one JSON object per compiled variant: registers, spilled bytes, shared memory, and which matrix instructions were
used. The variants are the launches that the file's `compile_cases` make, with the arguments that would be launched; of
few, the first of each kernel and types of pointers.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastar.kernels import _launch
from fastar.kernels._launch import Launch

TARGETS = {80: _launch.SM80, 90: _launch.SM90, 100: _launch.SM100}
TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
    torch.int8: "i8",
    torch.bool: "i1",
}
MATRIX = {"mma": r"\bmma\.sync", "wgmma": r"wgmma\.mma_async", "tcgen05": r"tcgen05\.mma"}


def source_of(launch: Launch) -> ASTSource:
    """The kernel specialised as Triton's own launcher does: on None, on 1, and on what 16 divides."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[object]]] = {}
    missing = {parameter.name for parameter in launch.kernel.params} ^ set(launch.arguments)
    assert not missing, f"{launch.kernel.__name__} is launched with other arguments than it takes: {missing}"
    for place, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[parameter.name] = "constexpr"
            constants[(place,)] = value
            continue
        if isinstance(value, torch.Tensor):
            # Memory of torch's allocator starts on 512 bytes.
            signature[parameter.name] = f"*{TYPES[value.dtype]}"
            divisible = True
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
            divisible = False
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            divisible = value % 16 == 0
        if divisible:
            attributes[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attributes)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers per thread and bytes of local memory, which is where spills go, as the assembler left them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", listing)}
    return {"registers": found["REG"], "spilled": found["STACK"] + found["LOCAL"]}


def compile_variant(launch: Launch, source: ASTSource, capability: int) -> dict[str, Any]:
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    tiles = {name: value for name, value in launch.arguments.items() if name.startswith("BLOCK") and name.isupper()}
    return {
        "kernel": launch.kernel.__name__,
        "tiles": tiles,
        "warps": launch.num_warps,
        "stages": launch.num_stages,
        **resources(compiled.asm["cubin"]),
        "shared": compiled.metadata.shared,
        "shared_limit": TARGETS[capability].shared,
        "dots": compiled.asm["ttir"].count("tt.dot "),
        **{name: len(re.findall(pattern, compiled.asm["ptx"])) for name, pattern in MATRIX.items()},
    }


def main(module_name: str, capability: int, candidate: int, few: bool = False) -> None:
    module = importlib.import_module(f"fastar.kernels.{module_name}")
    if not hasattr(module, "compile_cases"):
        raise SystemExit(
            f"kernels/{module_name}.py has no compile_cases, by which its kernels are compiled and checked"
        )
    seen = set()
    for case, call in module.compile_cases():
        with _launch.recording(TARGETS[capability], candidate) as launches:
            call()
        for launch in launches:
            source = source_of(launch)
            identity: tuple[object, ...] = (launch.num_warps, launch.num_stages, source.hash())
            if few:
                identity = tuple(sorted({one for one in source.signature.values() if one.startswith("*")}))
            identity = (launch.kernel.__name__, *identity)
            if identity not in seen:
                seen.add(identity)
                variant = compile_variant(launch, source, capability)
                print(
                    json.dumps({"module": module_name, "capability": capability, "case": case, **variant}), flush=True
                )


if __name__ == "__main__":
    # Compiled anew: a cache could hide that a kernel compiles no more.
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0, sys.argv[4:] == ["few"])
