"""NADE's walks through a chunk of the positions, forward and backward, with the state in registers.

What the chunks start from, and what becomes of their sums, is in kernels/nade.py.
"""

import triton
import triton.language as tl

from fastar.kernels import _activation


@triton.jit(do_not_specialize=["first_chunk", "last_step"])
def forward_kernel(
    x,
    weight,
    readout,
    bias,
    starts,
    logits,
    log_prob,
    units,
    first_chunk,
    last_step,
    stride_step,
    B,
    D,
    H,
    CHUNK: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """One chunk: the logits of its positions (per block of hidden units), their log-probability, or the hidden units.

    x [B, D], weight [D, H] and readout [D, H] in the order of the walk; starts [chunks, B, H]; logits [H blocks, B, D];
    log_prob [chunks, B]; units [steps from first_chunk on, B, H]. What is None is not computed.
    """
    b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    chunk = (first_chunk + tl.program_id(1)).to(tl.int64)
    h = tl.program_id(2) * BLOCK_H + tl.arange(0, BLOCK_H)
    inside = (b < B)[:, None] & (h < H)[None, :]
    rows = b.to(tl.int64)
    at = rows[:, None] * H + h[None, :]
    a = tl.load(starts + chunk * B * H + at, mask=inside, other=0.0)
    total = tl.zeros((BLOCK_B,), tl.float32)
    # Pointers move on by one position: a product with the step would overflow 32 bits in the largest models.
    first = chunk * CHUNK
    x += rows * D + first
    weight += first * H + h
    if readout is not None:
        readout += first * H + h
    if logits is not None:
        logits += tl.program_id(2).to(tl.int64) * B * D + rows * D + first
    if units is not None:
        units += tl.program_id(1).to(tl.int64) * CHUNK * B * H + at
    for step in range(tl.minimum(CHUNK, last_step - first)):
        value = tl.load(x + step, mask=b < B, other=0.0).to(tl.float32)
        w = tl.load(weight, mask=h < H, other=0.0).to(tl.float32)
        unit = _activation.apply(a, ACTIVATION)
        a += value[:, None] * w[None, :]
        weight += H
        if units is not None:
            tl.store(units, unit.to(units.dtype.element_ty), mask=inside)
            units += stride_step
        if readout is not None:
            v = tl.load(readout, mask=h < H, other=0.0).to(tl.float32)
            readout += H
            logit = tl.sum(unit * v[None, :], 1)
            if bias is not None:
                logit += tl.load(bias + first + step).to(tl.float32)
            if logits is not None:
                tl.store(logits + step, logit.to(logits.dtype.element_ty), mask=b < B)
            if log_prob is not None:
                total += value * logit - tl.maximum(logit, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(logit)))
    if log_prob is not None:
        tl.store(log_prob + chunk * B + rows, total, mask=b < B)


@triton.jit(do_not_specialize=["first_chunk", "last_step"])
def backward_kernel(
    x,
    weight,
    readout,
    grad,
    units,
    ends,
    grad_x,
    grad_weight,
    grad_readout,
    first_chunk,
    last_step,
    stride_step,
    B,
    D,
    H,
    CHUNK: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """One chunk backward, as if nothing came after it; what it says of its start state takes its end state's place.

    Either grad [B, D], of logits, with readout [D, H], or units [steps from first_chunk on, B, H], which hold the
    gradients of the hidden units and get their values. grad_x [H blocks, B, D] or None; grad_weight and grad_readout
    [programs along B, D, H]; ends [chunks, B, H].

    PARTS blocks of rows go one after another: 32 rows at once would take all registers, and half as many rows for each
    partial sum twice the memory.
    """
    chunk = (first_chunk + tl.program_id(1)).to(tl.int64)
    h = tl.program_id(2) * BLOCK_H + tl.arange(0, BLOCK_H)
    first = chunk * CHUNK
    steps = tl.minimum(CHUNK, last_step - first)
    last = first + steps - 1
    sums = (tl.program_id(0).to(tl.int64) * D + last) * H + h
    for part in range(PARTS):
        b = (tl.program_id(0) * PARTS + part) * BLOCK_B + tl.arange(0, BLOCK_B)
        inside = (b < B)[:, None] & (h < H)[None, :]
        rows = b.to(tl.int64)
        at = rows[:, None] * H + h[None, :]
        end = ends + chunk * B * H + at
        a = tl.load(end, mask=inside, other=0.0)
        s = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
        x_now = x + rows * D + last
        w_now = weight + last * H + h
        dw_now = grad_weight + sums
        if grad_x is not None:
            dx_now = grad_x + tl.program_id(2).to(tl.int64) * B * D + rows * D + last
        if readout is not None:
            v_now = readout + last * H + h
            g_now = grad + rows * D + last
            dv_now = grad_readout + sums
        else:
            unit_now = units + (last - first_chunk * CHUNK) * B * H + at
        # The sums of this program's first rows are what its next rows add to.
        again = (h < H) & (part > 0)
        for back in range(steps):
            value = tl.load(x_now - back, mask=b < B, other=0.0).to(tl.float32)
            w = tl.load(w_now, mask=h < H, other=0.0).to(tl.float32)
            dw = tl.sum(value[:, None] * s, 0) + tl.load(dw_now, mask=again, other=0.0)
            tl.store(dw_now, dw, mask=h < H)
            w_now -= H
            dw_now -= H
            if grad_x is not None:
                tl.store(dx_now - back, tl.sum(s * w[None, :], 1), mask=b < B)
            a -= value[:, None] * w[None, :]
            unit = _activation.apply(a, ACTIVATION)
            slope = _activation.derivative(unit, ACTIVATION)
            if readout is not None:
                v = tl.load(v_now, mask=h < H, other=0.0).to(tl.float32)
                g = tl.load(g_now - back, mask=b < B, other=0.0).to(tl.float32)
                dv = tl.sum(g[:, None] * unit, 0) + tl.load(dv_now, mask=again, other=0.0)
                tl.store(dv_now, dv, mask=h < H)
                v_now -= H
                dv_now -= H
                s += g[:, None] * v[None, :] * slope
            else:
                s += tl.load(unit_now, mask=inside, other=0.0).to(tl.float32) * slope
                tl.store(unit_now, unit.to(units.dtype.element_ty), mask=inside)
                unit_now -= stride_step
        tl.store(end, s, mask=inside)
        # What these rows wrote is read with the next.
        tl.debug_barrier()
