"""Passes over the rows of a matrix that permute its columns: the packing and unpacking around products in sorted order.

Bound by memory: a block takes whole rows, so that each of a row's sectors comes from memory once, however its columns
are scattered, and the reads through the permutation hit L1. Writes are whole vectors. `tl.gather`, which would keep the
row in registers and shared memory, turns into a number of shuffles that grows with the square of a row's length.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastar.kernels import _activation, _launch

# Elements that a block has in flight, 16 a thread, and so the widest row that it takes whole. A gradient's sums and
# derivative leave registers for half as many only; neighbouring blocks then read the same sectors, from L2.
_PERMUTED = 8192
DIFFERENTIATED = 4096


@triton.jit
def permute_kernel(
    source,
    out,
    order,
    source_rows,
    out_rows,
    bound,
    M,
    K,
    stride_sm,
    stride_sk,
    stride_om,
    BOUNDED: tl.constexpr,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[out_rows[m], k] = source[source_rows[m], order[k]].

    With a bound per row m, BOUNDED "out" leaves columns at and beyond it (rounded up to 16) unwritten, and BOUNDED
    "source" takes the source's columns from it on as zeros.
    """
    across = tl.cdiv(K, BLOCK)
    strip = tl.program_id(0) // across
    k = tl.program_id(0) % across * BLOCK + tl.arange(0, BLOCK)
    column = tl.load(order + k, mask=k < K, other=0)
    for step in range(STEPS):
        m = (strip * STEPS + step) * ROWS + tl.arange(0, ROWS)
        inside = m < M
        source_m = m
        if source_rows is not None:
            source_m = tl.load(source_rows + m, mask=inside, other=0)
        out_m = m
        if out_rows is not None:
            out_m = tl.load(out_rows + m, mask=inside, other=0)
        keep = inside[:, None] & (k < K)[None, :]
        row = source + source_m.to(tl.int64)[:, None] * stride_sm
        if bound is not None:
            limit = tl.load(bound + m, mask=inside, other=0)
            if BOUNDED == "out":
                # Whole vectors are stored: a mask that cuts one would cost a store per element.
                keep = keep & (k[None, :] < (tl.cdiv(limit, 16) * 16)[:, None])
        seen = keep
        if BOUNDED == "source":
            seen = seen & (column[None, :] < limit[:, None])
        values = tl.load(row + column.to(tl.int64)[None, :] * stride_sk, mask=seen, other=0.0)
        tl.store(out + out_m.to(tl.int64)[:, None] * stride_om + k[None, :], values, mask=keep)


@triton.jit
def gradient_kernel(
    grad,
    saved,
    order,
    out,
    sums,
    M,
    N,
    stride_gm,
    stride_gn,
    stride_sm,
    stride_sn,
    stride_om,
    ACTIVATION: tl.constexpr,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[m, n] = (grad * act'(saved))[m, order[n]], and sums[p, order[n]] = its sum over the rows of strip p."""
    across = tl.cdiv(N, BLOCK)
    strip = tl.program_id(0) // across
    n = tl.program_id(0) % across * BLOCK + tl.arange(0, BLOCK)
    column = n
    if order is not None:
        column = tl.load(order + n, mask=n < N, other=0)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for step in range(STEPS):
        m = (strip * STEPS + step) * ROWS + tl.arange(0, ROWS)
        inside = (m < M)[:, None] & (n < N)[None, :]
        rows = m.to(tl.int64)[:, None]
        at = column.to(tl.int64)[None, :]
        values = tl.load(grad + rows * stride_gm + at * stride_gn, mask=inside, other=0.0).to(tl.float32)
        if saved is not None:
            kept = tl.load(saved + rows * stride_sm + at * stride_sn, mask=inside, other=0.0).to(tl.float32)
            values *= _activation.derivative(kept, ACTIVATION)
        total += values
        if out is not None:
            tl.store(out + rows * stride_om + n[None, :], values.to(out.dtype.element_ty), mask=inside)
    if sums is not None:
        tl.store(sums + strip.to(tl.int64) * N + column, tl.sum(total, 0), mask=n < N)


@triton.jit
def sum_kernel(sums, out, P, N, STEP: tl.constexpr, BLOCK: tl.constexpr):
    """out[n] = sum over p of sums[p, n], in a fixed order."""
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((STEP, BLOCK), tl.float32)
    for start in range(0, P, STEP):
        p = start + tl.arange(0, STEP)
        inside = (p < P)[:, None] & (n < N)[None, :]
        total += tl.load(sums + p.to(tl.int64)[:, None] * N + n[None, :], mask=inside, other=0.0)
    tl.store(out + n, tl.sum(total, 0).to(out.dtype.element_ty), mask=n < N)


def shape_of_pass(rows: int, width: int, elements: int, device: torch.device) -> tuple[dict[str, int], int, int, int]:
    """Constants, blocks and warps of a pass, and its strips of rows: some four blocks per multiprocessor, or fewer."""
    block = min(elements, triton.next_power_of_2(max(width, 16)))
    tile = min(elements // block, triton.next_power_of_2(max(rows, 1)))
    across = triton.cdiv(width, block)
    steps = max(1, min(16, rows * across // (4 * _launch.target_of(device).processors * tile)))
    strips = triton.cdiv(rows, steps * tile)
    return {"STEPS": steps, "ROWS": tile, "BLOCK": block}, across * strips, max(1, tile * block // 512), strips


def add_strips(partial: Tensor, out: Tensor) -> None:
    """out[n] = the sum of partial[p, n] over p, in a fixed order."""
    P, N = partial.shape
    block = 64
    arguments = {"sums": partial, "out": out, "P": P, "N": N, "STEP": 16, "BLOCK": block}
    _launch.launch(sum_kernel, (triton.cdiv(N, block),), out.device, arguments, num_warps=4)


def permuted(
    source: Tensor,
    order: Tensor,
    *,
    out: Tensor | None = None,
    source_rows: Tensor | None = None,
    out_rows: Tensor | None = None,
    bound: Tensor | None = None,
    bounded: str = "none",
) -> Tensor:
    """``out[out_rows] = source[source_rows][:, order]``, rows of `out` padded; for the bound see `permute_kernel`."""
    M, K = source.shape
    if out is None:
        # Rows start on 128 bytes whatever their width, so that the product's loads stay whole vectors.
        out = source.new_empty(M, triton.cdiv(K, 64) * 64)[:, :K]
    constants, blocks, warps, _ = shape_of_pass(M, K, _PERMUTED, source.device)
    arguments = {
        "source": source,
        "out": out,
        "order": order,
        "source_rows": source_rows,
        "out_rows": out_rows,
        "bound": bound,
        "M": M,
        "K": K,
        "stride_sm": source.stride(0),
        "stride_sk": source.stride(1),
        "stride_om": out.stride(0),
        "BOUNDED": bounded,
        **constants,
    }
    _launch.launch(permute_kernel, (blocks,), source.device, arguments, num_warps=warps)
    return out


def activation_gradient(
    grad: Tensor, saved: Tensor | None, activation: str, order: Tensor | None, *, need_values: bool, need_sums: bool
) -> tuple[Tensor, Tensor | None]:
    """g = grad * act'(saved) with its columns in `order`, and the sums of g over the rows in the columns' own order.

    g is `grad` itself where there is nothing to do to it, or where it is not needed.
    """
    M, N = grad.shape
    # An expanded or transposed grad is written out: the products want whole vectors.
    need_values = need_values and (saved is not None or order is not None or grad.stride(1) != 1)
    sums = grad.new_empty(N) if need_sums else None
    if not need_values and not need_sums:
        return grad, None
    # The sums alone need no order.
    order = order if need_values else None
    constants, blocks, warps, strips = shape_of_pass(M, N, DIFFERENTIATED, grad.device)
    out = grad.new_empty(M, triton.cdiv(N, 64) * 64)[:, :N] if need_values else None
    partial = grad.new_empty(strips, N, dtype=torch.float32) if need_sums else None
    arguments = {
        "grad": grad,
        "saved": saved,
        "order": order,
        "out": out,
        "sums": partial,
        "M": M,
        "N": N,
        "stride_gm": grad.stride(0),
        "stride_gn": grad.stride(1),
        "stride_sm": 0 if saved is None else saved.stride(0),
        "stride_sn": 0 if saved is None else saved.stride(1),
        "stride_om": 0 if out is None else out.stride(0),
        "ACTIVATION": activation,
        **constants,
    }
    _launch.launch(gradient_kernel, (blocks,), grad.device, arguments, num_warps=warps)
    if sums is not None and partial is not None:
        add_strips(partial, sums)
    return grad if out is None else out, sums
