"""NADE on the CPU: native code in float32, over the batch forward and over the hidden units backward.

The forward takes rows of the batch through all positions, eight at a time, so that a row of V is read once for eight.
The state is the activation and its pre-activation; where x_i is 0 neither changes, and no activation is evaluated.

The backward walks a_i back from the last position, which needs no memory that grows with D. A hidden unit's walk depends
on no other unit, so threads share out slices of units, each summing over the whole batch in a fixed order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastar.native import core, why_missing

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def declines(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this implementation cannot be used, or None."""
    if device.type != "cpu":
        return f"runs on cpu tensors, not {device.type}"
    if dtype not in DTYPES:
        return f"no {str(dtype).removeprefix('torch.')} (float32, bfloat16, float16)"
    return why_missing()


class _Model:
    """The model in float32 as the native code reads it: W transposed and padded, everything contiguous."""

    def __init__(self, weight: Tensor, readout: Tensor, hidden_bias: Tensor, order: Tensor | None, activation: str) -> None:
        hidden, dim = weight.shape
        slice_width = core().NADE_SLICE
        self.stride = -(-hidden // slice_width) * slice_width
        self.weight = torch.zeros(dim, self.stride)
        self.weight[:, :hidden] = weight.T
        self.readout = readout.float().contiguous()
        self.hidden_bias = torch.zeros(self.stride)
        self.hidden_bias[:hidden] = hidden_bias
        self.order = None if order is None else order.to(torch.int32).contiguous()
        self.dim, self.hidden, self.params, self.activation = dim, hidden, readout.shape[1], activation

    def arguments(self) -> dict[str, int | str]:
        return {
            "dim": self.dim,
            "hidden": self.hidden,
            "params": self.params,
            "stride": self.stride,
            "weight": self.weight.data_ptr(),
            "readout": self.readout.data_ptr(),
            "hidden_bias": self.hidden_bias.data_ptr(),
            "order": 0 if self.order is None else self.order.data_ptr(),
            "activation": self.activation,
        }


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
    """The parameters [B, D, K] and the Bernoulli log-probability [B], each if it is asked for."""
    model = _Model(weight, readout, hidden_bias, order, activation)
    batch = x.shape[0]
    wide_x, wide_bias = x.float().contiguous(), bias.float().contiguous()
    out = torch.empty(batch, model.dim, model.params) if parameters else None
    total = torch.empty(batch) if log_prob else None
    core().nade_forward(
        batch=batch,
        **model.arguments(),
        bias=wide_bias.data_ptr(),
        x=wide_x.data_ptr(),
        out=0 if out is None else out.data_ptr(),
        log_prob=0 if total is None else total.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return None if out is None else out.to(x.dtype), total


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    readout: Tensor,
    hidden_bias: Tensor,
    order: Tensor | None,
    activation: str,
    need_x: bool,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """Gradients of x (if it is needed), weight, readout and hidden_bias in float32, from grad [B, D, K]."""
    model = _Model(weight, readout, hidden_bias, order, activation)
    batch = x.shape[0]
    # Positions in front: the backward takes one position of many rows at a time.
    x_by_position = x.T.float().contiguous()
    grad_by_position = grad.transpose(0, 1).float().contiguous()
    slices = model.stride // core().NADE_SLICE
    grad_x = torch.empty(slices, model.dim, batch) if need_x else None
    make = torch.empty if batch else torch.zeros
    grad_weight, grad_hidden_bias = make(model.dim, model.stride), make(model.stride)
    grad_readout = make(readout.shape)
    core().nade_backward(
        batch=batch,
        **model.arguments(),
        x=x_by_position.data_ptr(),
        grad=grad_by_position.data_ptr(),
        grad_x=0 if grad_x is None else grad_x.data_ptr(),
        grad_weight=grad_weight.data_ptr(),
        grad_readout=grad_readout.data_ptr(),
        grad_hidden_bias=grad_hidden_bias.data_ptr(),
        threads=torch.get_num_threads(),
    )
    return (
        None if grad_x is None else grad_x.sum(0).T,
        grad_weight[:, : model.hidden].T,
        grad_readout,
        grad_hidden_bias[: model.hidden],
    )
