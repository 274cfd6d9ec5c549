"""NADE on the CPU: native code in float32, over the batch forward and over the hidden units backward.

The forward takes rows of the batch through all positions, eight at a time, so that a row of V is read once for eight.
The state is the activation and its pre-activation; where x_i is 0 neither changes, and no activation is evaluated.

The backward walks a_i back from the last position, which needs no memory that grows with D. A hidden unit's walk
depends on no other unit, so threads share out slices of units, each summing over the whole batch in a fixed order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastar.native import core
from fastar.ops._nade_model import Model
from fastar.ops._native import address


class _Weights:
    """The model for the native code, and the tensors that it points into."""

    def __init__(self, model: Model) -> None:
        self.weight, self.readout = model.weight.float(), model.readout.float().contiguous()
        self.hidden_bias = model.hidden_bias.float().contiguous()
        self.order = None if model.order is None else model.order.to(torch.int32).contiguous()
        self.native = core().NadeWeights(
            dim=self.weight.shape[1],
            hidden=self.weight.shape[0],
            params=self.readout.shape[1],
            weight=self.weight.data_ptr(),
            weight_stride_h=self.weight.stride(0),
            weight_stride_d=self.weight.stride(1),
            readout=self.readout.data_ptr(),
            hidden_bias=self.hidden_bias.data_ptr(),
            order=address(self.order),
            activation=model.activation,
        )


def forward(
    x: Tensor, model: Model, bias: Tensor, parameters: bool, log_prob: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The parameters [B, D, K] and the Bernoulli log-probability [B], each if it is asked for."""
    weights = _Weights(model)
    batch, dim = x.shape
    wide_x, wide_bias = x.float().contiguous(), bias.float().contiguous()
    out = wide_x.new_empty(batch, dim, model.readout.shape[1]) if parameters else None
    total = wide_x.new_empty(batch) if log_prob else None
    valid = core().nade_forward(
        weights.native,
        wide_bias.data_ptr(),
        wide_x.data_ptr(),
        batch,
        address(out),
        address(total),
        torch.get_num_threads(),
    )
    if not valid:
        low, high = (one.item() for one in x.aminmax())
        raise ValueError(f"x: expected values in [0, 1] for a Bernoulli, got values in [{low}, {high}]")
    return None if out is None else out.to(x.dtype), total


def backward(
    grad: Tensor | None, grad_log_prob: Tensor | None, out: Tensor | None, x: Tensor, model: Model, need_x: bool
) -> tuple[Tensor | None, ...]:
    """Gradients of x (if it is needed), weight, readout, hidden_bias and bias, in float32."""
    weights = _Weights(model)
    wide_x = x.float().contiguous()
    wide_grad = None if grad is None else grad.float()
    by_row = None if grad_log_prob is None else grad_log_prob.float().contiguous()
    logits = None if out is None else out.float().contiguous()
    shapes = (model.weight.shape, model.readout.shape, model.hidden_bias.shape, model.readout.shape[:2])
    grad_x = wide_x.new_empty(x.shape) if need_x else None
    gradients = (grad_x, *(wide_x.new_empty(shape) for shape in shapes))
    core().nade_backward(
        weights.native,
        address(wide_grad),
        *((0, 0, 0) if wide_grad is None else wide_grad.stride()),
        address(by_row),
        address(logits),
        wide_x.data_ptr(),
        x.shape[0],
        *(address(one) for one in gradients),
        torch.get_num_threads(),
    )
    return gradients
