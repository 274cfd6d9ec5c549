"""Whether Triton kernels can run here, and torch's settings that they follow; Triton loads with the first kernel."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

# The matrix instructions and asynchronous copies that the kernels are built from start with this card.
_LEAST_CAPABILITY = (8, 0)


def interpreting() -> bool:
    """Whether Triton's interpreter was asked for, which runs kernels on CPU tensors; read as Triton reads it."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in {"1", "true", "on", "yes", "y"}


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _card_declines(index: int | None) -> str | None:
    if torch.version.hip is not None:
        return "the kernels are tested on NVIDIA cards only, this is a ROCm build of torch"
    if not torch.cuda.is_available():
        return "no CUDA device is available"
    capability = torch.cuda.get_device_capability(index)
    if capability < _LEAST_CAPABILITY:
        return f"needs compute capability 8.0 or newer, this card has {capability[0]}.{capability[1]}"
    return None


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a Triton kernel cannot take tensors of this device and dtype, or None where it can."""
    if not _installed():
        return "triton is not installed"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"takes float32, bfloat16 and float16, got {str(dtype).removeprefix('torch.')}"
    if interpreting():
        if device.type != "cpu":
            return f"TRITON_INTERPRET is set, and the interpreter takes CPU tensors, got {device.type}"
        if dtype == torch.bfloat16:
            return "Triton's interpreter gets bfloat16 products wrong"
        return None
    if device.type != "cuda":
        return f"needs a CUDA device, got {device.type}"
    return _card_declines(device.index)


def allow_tf32() -> bool:
    """Whether torch lets float32 matrix products round their inputs to tf32, through whichever API that was said."""
    # Reading the older flag raises once the newer API was used; the newer one answers for both.
    return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")
