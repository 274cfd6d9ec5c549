"""What the implementations in native code share: where they can be used, and how tensors are handed to them."""

from __future__ import annotations

import torch
from torch import Tensor

from fastar.native import why_missing

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def declines(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why native code on the CPU cannot be used, or None."""
    if device.type != "cpu":
        return f"runs on cpu tensors, not {device.type}"
    if dtype not in DTYPES:
        return f"no {name(dtype)} (float32, bfloat16, float16)"
    return why_missing()


def name(dtype: torch.dtype) -> str:
    """The dtype as native code is told it."""
    return str(dtype).removeprefix("torch.")


def address(t: Tensor | None) -> int:
    """Where the tensor's memory begins, 0 for none; the caller keeps the tensor."""
    return 0 if t is None else t.data_ptr()
