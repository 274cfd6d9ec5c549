"""NADE by the reference, with tensors of B x D x H elements: runs anywhere, in every dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from fastar.ops._nade_model import Model
from fastar.reference import activation as activations
from fastar.reference import nade as reference


def forward(
    x: Tensor, model: Model, bias: Tensor, parameters: bool, log_prob: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The parameters [B, D, K] and the Bernoulli log-probability [B], each if it is asked for."""
    if log_prob and x.device.type == "cpu" and not ((x >= 0) & (x <= 1)).all():
        raise ValueError(f"x: expected values in [0, 1] for a Bernoulli, got values in [{x.min()}, {x.max()}]")
    out = reference.nade(x, model.weight, model.readout, model.hidden_bias, bias, model.activation, model.order)
    return out if parameters else None, reference.bernoulli_log_prob(out[..., 0], x) if log_prob else None


def backward(
    grad: Tensor | None, grad_log_prob: Tensor | None, out: Tensor | None, x: Tensor, model: Model, need_x: bool
) -> tuple[Tensor | None, ...]:
    """Gradients of x (if it is needed), weight, readout, hidden_bias and bias."""
    if grad_log_prob is not None:
        assert out is not None
        grad_logits = grad_log_prob[:, None, None] * (x[..., None] - torch.sigmoid(out))
        grad = grad_logits if grad is None else grad + grad_logits
    assert grad is not None
    grad = grad.to(x.dtype)
    h = activations.APPLY[model.activation](reference.states(x, model.weight, model.hidden_bias, model.order))
    grad_a = activations.backward(model.activation, torch.einsum("bdk,dkh->bdh", grad, model.readout), h)
    steps = torch.arange(x.shape[1], device=x.device) if model.order is None else model.order.long()
    in_order = grad_a[:, steps]
    # What all later positions say of a: the sum from a position on, without its own.
    later = (in_order.flip(1).cumsum(1).flip(1) - in_order)[:, torch.argsort(steps)]
    grad_x = torch.einsum("bdh,hd->bd", later, model.weight) if need_x else None
    if grad_x is not None and grad_log_prob is not None and out is not None:
        # In log p, x_i also multiplies its own logit.
        grad_x = grad_x + grad_log_prob[:, None] * out[..., 0]
    return (
        grad_x,
        torch.einsum("bdh,bd->hd", later, x),
        torch.einsum("bdk,bdh->dkh", grad, h),
        grad_a.sum((0, 1)),
        grad.sum(0),
    )
