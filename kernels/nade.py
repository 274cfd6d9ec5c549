"""NADE and its gradients: the state a stays in registers while a program walks through a chunk of the positions.

A long walk by few rows would leave most of a GPU idle, so the positions are cut into chunks, whose start states
a_start = c + sum of W[:, i] x_i over all earlier i come from one batched matrix product and a sum over chunks. A
program takes a block of rows, a chunk and a block of hidden units.

Backward, a program starts from its chunk's end state and walks a back, a_i = a_{i+1} - W[:, i] x_i: at most a chunk of
subtractions away from a product's result. With s_i the gradient of a_{i+1}, dW[:, i] = sum over the batch of x_i s_i,
and s = S + t, S the sum over all later chunks, which the program does not know, and t the sum within its chunk, which
it does. It works with t and writes the chunk's total; S follows by a sum over chunks, and what it contributes to dW and
dx by one batched product each. So every activation is evaluated once, and no program waits for another.

Sums over the batch are written per block of rows and added up in a fixed order.

With K > 1 parameters the readout is itself a product worth a library's: the walk writes h for a segment of positions,
1/32 of them or a chunk, and batched products do the rest.

Memory beside inputs and results, in units of B x D x H: the states 1/32 or less, in whose place the backward writes its
totals; its sums per block of rows 1/32 each for W and V; a segment 1/32. No sum of them exceeds 1/8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import triton
from torch import Tensor
from torch.nn import functional

from fastar.kernels import _launch
from fastar.kernels._nade_walks import backward_kernel, forward_kernel

# Rows whose partial sums exist at one time: a larger batch goes through in parts.
_BATCH_PART = 2048

# Blocks of rows that one program of the backward takes one after another.
_PARTS = 2


class _Walk:
    """Inputs in the order of the walk, and how it is cut into chunks, with the states between them."""

    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        readout: Tensor,
        hidden_bias: Tensor,
        order: Tensor | None,
        programs: int,
        least: int,
    ) -> None:
        B, D = x.shape
        H = weight.shape[0]
        self.order = None if order is None else order.long()
        self.x = (x if self.order is None else x[:, self.order]).contiguous()
        self.weight = (weight.T if self.order is None else weight.T[self.order]).contiguous()
        self.readout = readout
        # No chunk shorter than `least`: a state costs as much memory and traffic as a position of a tensor [B, D, H].
        # With one parameter only as many as make eight programs per multiprocessor, of which each chunk has `programs`;
        # with more, a chunk is also the least for which hidden units are written out.
        chunks = D // least
        if readout.shape[1] == 1:
            chunks = min(chunks, triton.cdiv(8 * _launch.target_of(x.device).processors, programs))
        self.chunk = triton.cdiv(D, max(1, chunks))
        self.chunks = triton.cdiv(D, self.chunk)
        # [chunks, B, chunk] and [chunks, chunk, H]; the last chunk is filled up with zeros.
        missing = self.chunks * self.chunk - D
        by_chunk = functional.pad(self.x.float(), (0, missing)).view(B, self.chunks, self.chunk)
        self.x_by_chunk = by_chunk.transpose(0, 1)
        padded = functional.pad(self.weight.float(), (0, 0, 0, missing))
        self.weight_by_chunk = padded.view(self.chunks, self.chunk, H)
        # states[i] is a before chunk i. Float32 products follow torch's own setting of their precision.
        self.states = self.weight_by_chunk.new_empty(self.chunks + 1, B, H)
        self.states[0] = hidden_bias
        torch.bmm(self.x_by_chunk, self.weight_by_chunk, out=self.states[1:])
        self.states.cumsum_(0)

    def readout_of(self, low: int, high: int) -> Tensor:
        """V of the steps low to high, [steps, K, H]."""
        return self.readout[low:high] if self.order is None else self.readout[self.order[low:high]]

    def to_positions(self, t: Tensor, axis: int) -> Tensor:
        """A tensor whose axis counts steps, with the positions' own numbering instead."""
        return t if self.order is None else torch.empty_like(t).index_copy_(axis, self.order, t)

    def to_steps(self, t: Tensor, axis: int) -> Tensor:
        """The reverse of `to_positions`."""
        return t if self.order is None else t.index_select(axis, self.order)

    def segments(self) -> Iterator[tuple[int, int, int]]:
        """First chunk, number of chunks and end step of runs of chunks, of 1/32 of the positions or one chunk each."""
        D = self.x.shape[1]
        count = max(1, D // 32 // self.chunk)
        for first in range(0, self.chunks, count):
            chunks = min(count, self.chunks - first)
            yield first, chunks, min(D, (first + chunks) * self.chunk)


def _blocks(x: Tensor, H: int, rows: int, columns: int, least: int) -> tuple[int, int, int]:
    """BLOCK_B, BLOCK_H and the shortest chunk; under the interpreter small tensors have several of each."""
    if _launch.target_of(x.device) == _launch.INTERPRETER:
        return 4, 16, 4
    return rows, min(columns, max(32, triton.next_power_of_2(H))), least


def forward(
    x: Tensor,
    weight: Tensor,
    readout: Tensor,
    hidden_bias: Tensor,
    bias: Tensor,
    order: Tensor | None,
    activation: str,
    parameters: bool,
    log_prob: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Parameters [B, D, K] and Bernoulli log-probability [B], each if it is asked for."""
    B, D = x.shape
    H, K = weight.shape[0], readout.shape[1]
    if B == 0:
        return x.new_empty(0, D, K) if parameters else None, x.new_empty(0, dtype=torch.float32) if log_prob else None
    # Eight rows share each load of W and V, and their state takes 32 registers of each of 128 threads.
    BLOCK_B, BLOCK_H, least = _blocks(x, H, 8, 512, 16 if K == 1 else 32)
    b_blocks, h_blocks = triton.cdiv(B, BLOCK_B), triton.cdiv(H, BLOCK_H)
    walk = _Walk(x, weight, readout, hidden_bias, order, b_blocks * h_blocks, least)
    arguments = {
        "x": walk.x,
        "weight": walk.weight,
        "starts": walk.states,
        "stride_step": B * H,
        "B": B,
        "D": D,
        "H": H,
        "CHUNK": walk.chunk,
        "ACTIVATION": activation,
        "BLOCK_B": BLOCK_B,
        "BLOCK_H": BLOCK_H,
    }
    nothing = {"readout": None, "bias": None, "logits": None, "log_prob": None, "units": None}
    if K > 1:
        out = x.new_empty(D, B, K)
        for first, chunks, end in walk.segments():
            start = first * walk.chunk
            units = x.new_empty(end - start, B, H)
            own = {**nothing, "units": units, "first_chunk": first, "last_step": end}
            grid = (b_blocks, chunks, h_blocks)
            _launch.launch(forward_kernel, grid, x.device, {**arguments, **own}, num_warps=4)
            torch.bmm(units, walk.readout_of(start, end).transpose(1, 2), out=out[start:end])
        return walk.to_positions(out, 0).transpose(0, 1) + bias, None
    # With all hidden units in one block the logit is whole, and the log-probability is fused.
    whole = h_blocks == 1
    logits = None
    if not whole:
        logits = x.new_empty(h_blocks, B, D, dtype=torch.float32)
    elif parameters:
        logits = x.new_empty(1, B, D)
    by_chunk = x.new_empty(walk.chunks, B, dtype=torch.float32) if whole and log_prob else None
    step_bias = walk.to_steps(bias[:, 0], 0).contiguous()
    own = {
        "readout": walk.to_steps(readout, 0).contiguous(),
        "bias": step_bias if whole else None,
        "logits": logits,
        "log_prob": by_chunk,
        "units": None,
        "first_chunk": 0,
        "last_step": D,
    }
    grid = (b_blocks, walk.chunks, h_blocks)
    _launch.launch(forward_kernel, grid, x.device, {**arguments, **own}, num_warps=4)
    total = None if by_chunk is None else by_chunk.sum(0)
    if logits is None:
        return None, total
    in_steps = logits[0] if whole else logits.sum(0) + step_bias
    if log_prob and not whole:
        target = walk.x.float()
        total = -functional.binary_cross_entropy_with_logits(in_steps, target, reduction="none").sum(1)
    out = walk.to_positions(in_steps, 1).to(x.dtype)[..., None] if parameters else None
    return out, total


def backward(
    grad: Tensor | None,
    grad_log_prob: Tensor | None,
    out: Tensor | None,
    x: Tensor,
    weight: Tensor,
    readout: Tensor,
    hidden_bias: Tensor,
    order: Tensor | None,
    activation: str,
    need_x: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of x (if it is needed), weight, readout, hidden_bias and bias, in float32."""
    if grad_log_prob is not None:
        assert out is not None
        grad_logits = grad_log_prob[:, None, None] * (x[..., None] - torch.sigmoid(out.float()))
        grad = grad_logits if grad is None else grad + grad_logits
    assert grad is not None
    by_position = tuple(torch.zeros_like(one, dtype=torch.float32) for one in (weight.T, readout, hidden_bias))
    grad_x = x.new_empty(x.shape, dtype=torch.float32) if need_x else None
    for low in range(0, x.shape[0], _BATCH_PART):
        part = slice(low, low + _BATCH_PART)
        add_to = None if grad_x is None else grad_x[part]
        _backward_part(grad[part], x[part], weight, readout, hidden_bias, order, activation, by_position, add_to)
    if grad_x is not None and grad_log_prob is not None and out is not None:
        # In log p, x_i also multiplies its own logit.
        grad_x += grad_log_prob[:, None] * out[..., 0]
    grad_weight, grad_readout, grad_hidden_bias = by_position
    return grad_x, grad_weight.T, grad_readout, grad_hidden_bias, grad.sum(0, dtype=torch.float32)


def _backward_part(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    readout: Tensor,
    hidden_bias: Tensor,
    order: Tensor | None,
    activation: str,
    sums: tuple[Tensor, Tensor, Tensor],
    grad_x: Tensor | None,
) -> None:
    """Add a part of the batch to the gradients of W^T, V and c, and write its gradient of x."""
    B, D = x.shape
    H, K = weight.shape[0], readout.shape[1]
    BLOCK_B, BLOCK_H, least = _blocks(x, H, 16, 128, 32)
    b_blocks, h_blocks = triton.cdiv(B, _PARTS * BLOCK_B), triton.cdiv(H, BLOCK_H)
    walk = _Walk(x, weight, readout, hidden_bias, order, b_blocks * h_blocks, least)
    partial_x = walk.states.new_empty(h_blocks, B, D) if grad_x is not None else None
    partial_weight = walk.states.new_empty(b_blocks, D, H)
    arguments = {
        "x": walk.x,
        "weight": walk.weight,
        "readout": None,
        "grad": None,
        "ends": walk.states[1:],
        "units": None,
        "grad_x": partial_x,
        "grad_weight": partial_weight,
        "grad_readout": None,
        "first_chunk": 0,
        "last_step": D,
        "stride_step": B * H,
        "B": B,
        "D": D,
        "H": H,
        "CHUNK": walk.chunk,
        "ACTIVATION": activation,
        "PARTS": _PARTS,
        "BLOCK_B": BLOCK_B,
        "BLOCK_H": BLOCK_H,
    }
    step_grad = walk.to_steps(grad, 1)
    if K == 1:
        partial_readout = walk.states.new_empty(b_blocks, D, H)
        own = {
            "readout": walk.to_steps(readout, 0).contiguous(),
            "grad": step_grad.contiguous(),
            "grad_readout": partial_readout,
        }
        grid = (b_blocks, walk.chunks, h_blocks)
        _launch.launch(backward_kernel, grid, x.device, {**arguments, **own}, num_warps=4)
        sums[1].add_(walk.to_positions(partial_readout.sum(0), 0)[:, None])
        del partial_readout, own
    else:
        grad_readout = torch.empty_like(sums[1])
        for first, chunks, end in walk.segments():
            start = first * walk.chunk
            by_step = step_grad[:, start:end].transpose(0, 1).to(x.dtype)
            units = torch.bmm(by_step, walk.readout_of(start, end))
            own = {"units": units, "first_chunk": first, "last_step": end}
            grid = (b_blocks, chunks, h_blocks)
            _launch.launch(backward_kernel, grid, x.device, {**arguments, **own}, num_warps=4)
            grad_readout[start:end] = torch.bmm(by_step.transpose(1, 2), units)
            del units
        sums[1].add_(walk.to_positions(grad_readout, 0))
    step_weight = partial_weight.sum(0)
    step_x = None if partial_x is None else partial_x.sum(0)
    del partial_weight, partial_x, arguments
    # after[j]: what the last j + 1 chunks say, so chunk i, from the end as well, has after[i - 1] behind it.
    after = walk.states[1:].flip(0).cumsum_(0)
    sums[2].add_(after[-1].sum(0))
    known = (walk.chunks - 1) * walk.chunk
    from_later = torch.bmm(walk.x_by_chunk[:-1].flip(0).transpose(1, 2), after[:-1]).flip(0)
    step_weight[:known] += from_later.view(known, H)
    sums[0].add_(walk.to_positions(step_weight, 0))
    if grad_x is not None and step_x is not None:
        to_x = torch.bmm(after[:-1], walk.weight_by_chunk[:-1].flip(0).transpose(1, 2)).flip(0)
        step_x[:, :known] += to_x.transpose(0, 1).reshape(B, known)
        grad_x.copy_(walk.to_positions(step_x, 1))


def compile_cases() -> Iterator[tuple[str, Callable[[], None]]]:
    """Calls on meta tensors which between them launch every kernel, in every dtype and form."""

    def case(dtype: torch.dtype, hidden: int, params: int, activation: str, orders: bool) -> Callable[[], None]:
        def call() -> None:
            B, D = 1024, 784 if params == 1 else 64

            def empty(*shape: int) -> Tensor:
                return torch.empty(shape, dtype=dtype, device="meta")

            order = torch.empty(D, dtype=torch.int64, device="meta") if orders else None
            x, weight, readout = empty(B, D), empty(hidden, D), empty(D, params, hidden)
            model = (weight, readout, empty(hidden))
            forward(x, *model, empty(D, params), order, activation, True, params == 1)
            forward(x, *model, empty(D, params), order, activation, params > 1, params == 1)
            for need_x in (False, True):
                backward(empty(B, D, params), None, None, x, *model, order, activation, need_x)

        return call

    for dtype, hidden, params, activation, orders in (
        (torch.float32, 500, 1, "sigmoid", False),
        (torch.bfloat16, 500, 1, "tanh", True),
        (torch.float16, 1000, 1, "relu", False),
        (torch.bfloat16, 512, 256, "sigmoid", True),
        (torch.float32, 500, 30, "relu", False),
    ):
        name = f"{str(dtype).removeprefix('torch.')}, H={hidden}, K={params}, {activation}"
        yield name, case(dtype, hidden, params, activation, orders)
