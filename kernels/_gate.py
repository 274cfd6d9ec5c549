"""The gradient of y = tanh(a) sigmoid(b), where the rows of one matrix hold a and b one after the other.

In PyTorch: fastar.reference.activation.tanh_gate_backward. One pass, bound by memory, that also sums over the rows.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, float32

from fastar.kernels import _activation, _columns, _launch


@triton.jit
def gradient_kernel(
    grad,
    z,
    out,
    sums,
    M,
    N,
    stride_gm,
    stride_gn,
    stride_zm,
    stride_zn,
    stride_om,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[m, n] and out[m, N + n] are the gradients of z[m, n] and z[m, N + n] from grad[m, n].

    sums[p, :] is the sum of `out` over the rows of strip p.
    """
    across = tl.cdiv(N, BLOCK)
    strip = tl.program_id(0) // across
    n = tl.program_id(0) % across * BLOCK + tl.arange(0, BLOCK)
    at = n.to(tl.int64)[None, :]
    total_a = tl.zeros((ROWS, BLOCK), tl.float32)
    total_b = tl.zeros((ROWS, BLOCK), tl.float32)
    for step in range(STEPS):
        m = (strip * STEPS + step) * ROWS + tl.arange(0, ROWS)
        inside = (m < M)[:, None] & (n < N)[None, :]
        rows = m.to(tl.int64)[:, None]
        a = tl.load(z + rows * stride_zm + at * stride_zn, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(z + rows * stride_zm + (at + N) * stride_zn, mask=inside, other=0.0).to(tl.float32)
        values = tl.load(grad + rows * stride_gm + at * stride_gn, mask=inside, other=0.0).to(tl.float32)
        grad_a, grad_b = _activation.gate_gradients(values, a, b)
        total_a += grad_a
        total_b += grad_b
        if out is not None:
            tl.store(out + rows * stride_om + at, grad_a.to(out.dtype.element_ty), mask=inside)
            tl.store(out + rows * stride_om + at + N, grad_b.to(out.dtype.element_ty), mask=inside)
    if sums is not None:
        row = sums + strip.to(tl.int64) * 2 * N + n
        tl.store(row, tl.sum(total_a, 0), mask=n < N)
        tl.store(row + N, tl.sum(total_b, 0), mask=n < N)


def gradient(grad: Tensor, z: Tensor, *, need_values: bool, need_sums: bool) -> tuple[Tensor, Tensor | None]:
    """The gradient of z [M, 2 N] from that of its gate [M, N], and its sums over the rows; `grad` where not needed."""
    M, N = grad.shape
    sums = grad.new_empty(2 * N) if need_sums else None
    if not need_values and not need_sums:
        return grad, None
    constants, blocks, warps, strips = _columns.shape_of_pass(M, N, _columns.DIFFERENTIATED // 2, grad.device)
    out = grad.new_empty(M, triton.cdiv(2 * N, 64) * 64)[:, : 2 * N] if need_values else None
    partial = grad.new_empty(strips, 2 * N, dtype=float32) if need_sums else None
    arguments = {
        "grad": grad,
        "z": z,
        "out": out,
        "sums": partial,
        "M": M,
        "N": N,
        "stride_gm": grad.stride(0),
        "stride_gn": grad.stride(1),
        "stride_zm": z.stride(0),
        "stride_zn": z.stride(1),
        "stride_om": 0 if out is None else out.stride(0),
        **constants,
    }
    # Two derivatives and two sums a position: with as few threads as other passes have, they would not fit registers.
    _launch.launch(gradient_kernel, (blocks,), grad.device, arguments, num_warps=2 * warps)
    if sums is not None and partial is not None:
        _columns.add_strips(partial, sums)
    return grad if out is None else out, sums
