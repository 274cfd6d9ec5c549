"""Torch's own setting of the precision of float32 matrix products on the GPU."""

from __future__ import annotations

import torch


def allow_tf32() -> bool:
    """Whether float32 products may round their operands to tf32.

    Both of torch's ways to say so, `allow_tf32` (also through `set_float32_matmul_precision`) and the newer
    `fp32_precision`, show in `fp32_precision`; reading `allow_tf32` raises once the newer one was used.
    """
    return torch.backends.cuda.matmul.fp32_precision == "tf32"
