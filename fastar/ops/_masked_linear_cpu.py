"""Masked linear on the CPU: torch's own matrix products (`_products`) over the blocks that the mask leaves.

For a triangular plan, rows and columns of the weight are gathered into sorted order (`_packed`), and each block of
sorted output rows multiplies the prefix of sorted inputs that it can see. For a block plan each block of rows
multiplies the span from its first to its last visible column. What is gathered is moved by native code: plain torch
gathers of the weight cost as much as the products that are saved.

Eight blocks: at 1024x4096x4096 on two AVX-512 cores, sixteen lose as much speed in the products as the finer staircase
saves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastar.native import core
from fastar.ops import _packed, _products
from fastar.ops._native import address
from fastar.ops.mask_plan import MaskPlan
from fastar.reference import activation as activations

BLOCKS = 8
# Elements of the weight below which the masked weight is multiplied whole. Blocks save at most half of the product, and
# cost a call of the product and two copies each.
SMALL = 1 << 17


def _rows(x: Tensor) -> Tensor:
    """x with contiguous rows; a copy only where they are not."""
    return x if x.stride(-1) == 1 and (x.stride(0) >= x.shape[1] or x.shape[0] <= 1) else x.contiguous()


def gather_columns(x: Tensor, order: Tensor | None) -> Tensor:
    """``x[:, order]``; x itself where the order is None."""
    if order is None:
        return x
    x = _rows(x)
    out = _packed.empty(x.shape[0], order.shape[0], dtype=x.dtype)
    core().gather(
        x.element_size(), x.data_ptr(), x.stride(0), 0, order.data_ptr(), 0, False, out.data_ptr(), out.stride(0),
        *out.shape, torch.get_num_threads(),
    )  # fmt: skip
    return out


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, plan: MaskPlan, activation: str, keep_preactivation: bool
) -> tuple[Tensor, Tensor]:
    """(y, z): z is the pre-activation, empty unless it is to be kept."""
    if weight.numel() < SMALL:
        mask = _dense_mask(plan, weight.shape)
        relu = activation == "relu" and not keep_preactivation
        rest = "none" if relu else activation
        if mask is None:
            return _activated(_products.abt(x, weight.contiguous(), bias, relu=relu), rest, keep_preactivation)
        kept = _packed.MASKED.of(weight)
        with kept.lock:
            z = _products.abt(x, kept.current(weight, mask), bias, relu=relu)
        return _activated(z, rest, keep_preactivation)
    batch, rows = x.shape[0], weight.shape[0]
    sorted_bias = bias if bias is None or plan.row_order is None else bias[plan.row_order.long()]
    sorted_x = _rows(gather_columns(x, plan.column_order))
    out = _packed.empty(batch, rows, dtype=x.dtype)
    with _packed.obtain(weight, plan, BLOCKS) as blocks:
        for span, block in blocks:
            part = None if sorted_bias is None else sorted_bias[span.begin : span.end]
            out[:, span.begin : span.end] = _products.abt(sorted_x[:, span.low : span.high], block, part)
    return _activated(gather_columns(out, plan.row_rank), activation, keep_preactivation)


def _activated(z: Tensor, activation: str, keep_preactivation: bool) -> tuple[Tensor, Tensor]:
    if activation == "none":
        return z, z.new_empty(0)
    y = activations.APPLY[activation](z)
    return y, z if keep_preactivation else z.new_empty(0)


class _Dense:
    """The mask of a small triangle, of SMALL bytes at most, formed once."""

    mask: Tensor | None = None


_DENSE = _packed.PerTensor(_Dense)


def _dense_mask(plan: MaskPlan, shape: Sequence[int]) -> Tensor | None:
    if plan.reach is None:
        return plan.mask
    kept = _DENSE.of(plan.reach)
    if kept.mask is None:
        kept.mask = plan.dense(shape)
    return kept.mask


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    saved: Tensor | None,
    plan: MaskPlan,
    activation: str,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias, each None where it is not needed."""
    if saved is not None:
        grad = activations.backward(activation, grad, saved)
    need_x, need_weight, need_bias = needs
    if weight.numel() < SMALL:
        return _small_backward(grad, x, weight, _dense_mask(plan, weight.shape), needs)
    sorted_grad = _rows(gather_columns(grad, plan.row_order))
    grad_x = _input_gradient(sorted_grad, weight, plan) if need_x else None
    grad_weight = _weight_gradient(sorted_grad, x, weight, plan) if need_weight else None
    grad_bias = grad.sum(0) if need_bias else None
    return grad_x, grad_weight, grad_bias


def _small_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor | None, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    need_x, need_weight, need_bias = needs
    grad_x = None
    if need_x and mask is None:
        grad_x = _products.ab(grad, weight.contiguous())
    elif need_x and mask is not None:
        kept = _packed.MASKED.of(weight)
        with kept.lock:
            grad_x = _products.ab(grad, kept.current(weight, mask))
    grad_weight = _products.atb(grad, x) if need_weight else None
    if grad_weight is not None and mask is not None:
        _clear_masked(grad_weight, mask)
    return grad_x, grad_weight, grad.sum(0) if need_bias else None


def _clear_masked(values: Tensor, mask: Tensor) -> None:
    """Write zeros where the mask has them."""
    core().masked_copy(
        values.element_size(), values.data_ptr(), values.stride(0), mask.data_ptr(), mask.stride(0),
        values.data_ptr(), values.stride(0), *values.shape, torch.get_num_threads(),
    )  # fmt: skip


def _input_gradient(sorted_grad: Tensor, weight: Tensor, plan: MaskPlan) -> Tensor:
    # Sums over blocks in float32: the narrow dtypes would round at each addition.
    out = _packed.empty(sorted_grad.shape[0], weight.shape[1], dtype=torch.float32)
    with _packed.obtain(weight, plan, BLOCKS) as blocks:
        # The last block of a triangle sees the most: begun there, the sum needs no zeros first.
        begun = False
        for span, block in reversed(blocks):
            part = _products.ab(sorted_grad[:, span.begin : span.end], block)
            if begun:
                out[:, span.low : span.high] += part
            else:
                out[:, span.low : span.high] = part
                out[:, : span.low] = 0
                out[:, span.high :] = 0
                begun = True
    if not begun:
        out.zero_()
    return gather_columns(out.to(sorted_grad.dtype), plan.column_rank)


def _weight_gradient(sorted_grad: Tensor, x: Tensor, weight: Tensor, plan: MaskPlan) -> Tensor:
    sorted_x = _rows(gather_columns(x, plan.column_order))
    sorted_out = _packed.empty(*weight.shape, dtype=weight.dtype)
    if plan.reach is None:
        sorted_out.zero_()
    for span in _packed.spans(plan, weight.shape, BLOCKS):
        rows, columns = slice(span.begin, span.end), slice(span.low, span.high)
        sorted_out[rows, columns] = _products.atb(sorted_grad[:, rows], sorted_x[:, columns])
    if plan.reach is not None:
        out = _packed.empty(*weight.shape, dtype=weight.dtype)
        core().gather(
            out.element_size(), sorted_out.data_ptr(), sorted_out.stride(0), address(plan.row_rank),
            address(plan.column_rank), plan.reach.data_ptr(), True, out.data_ptr(), out.stride(0), *out.shape,
            torch.get_num_threads(),
        )  # fmt: skip
        return out
    if plan.mask is not None:
        _clear_masked(sorted_out, plan.mask)
    return sorted_out
