"""NADE's oracle: the op on whichever implementation, against its reference in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from budget import assert_within_budget
from torch import Tensor

from fastar.ops import nade, nade_log_prob
from fastar.reference import activation as activations
from fastar.reference import nade as reference

NAMES = ["result", "dx", "dweight", "dreadout", "dhidden_bias", "dbias"]


def model(B: int, D: int, H: int, K: int, dtype: torch.dtype, *, binary: bool = True) -> list[Tensor]:
    """x, weight, readout, hidden_bias, bias."""
    x = (torch.rand(B, D) < 0.5).float() if binary else torch.randn(B, D)
    parameters = (torch.randn(H, D) / D**0.5, torch.randn(D, K, H) / H**0.5, torch.randn(H), torch.randn(D, K))
    return [t.to(dtype) for t in (x, *parameters)]


def gradients(run: Callable[..., Tensor], grad: Tensor, inputs: list[Tensor], **options: Any) -> list[Tensor]:
    """Output and gradients of `run`, of leaves made from the inputs."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = run(*leaves, **options)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype).expand_as(y))]


def absolute_sums(
    grad: Tensor, inputs: list[Tensor], of_log_prob: bool, activation: str = "sigmoid", order: Tensor | None = None
) -> list[Tensor]:
    """The sums behind the result and each gradient, over the absolute values of their terms."""
    x, weight, readout, hidden_bias, bias = inputs
    h = activations.APPLY[activation](reference.states(x, weight, hidden_bias, order))
    out = torch.einsum("bdh,dkh->bdk", h.abs(), readout.abs()) + bias.abs()
    grad = grad.abs()
    if of_log_prob:
        logits = reference.nade(*inputs, activation, order)
        direct = grad.expand(len(x))[:, None] * out[..., 0]
        grad = grad.expand(len(x))[:, None, None] * (x[..., None] + torch.sigmoid(logits))
    grad = grad.expand_as(out)
    grad_a = activations.backward(activation, torch.einsum("bdk,dkh->bdh", grad, readout.abs()), h)
    rank = torch.arange(x.shape[1]) if order is None else torch.argsort(order)
    later = torch.einsum("bjh,ij->bih", grad_a, (rank[None, :] > rank[:, None]).double())
    grad_x = torch.einsum("bdh,hd->bd", later, weight.abs())
    return [
        out.sum((1, 2)) if of_log_prob else out,
        grad_x + direct if of_log_prob else grad_x,
        torch.einsum("bdh,bd->hd", later, x.abs()),
        torch.einsum("bdk,bdh->dkh", grad, h.abs()),
        grad_a.sum((0, 1)),
        grad.sum(0),
    ]


def check_against_reference(of_log_prob: bool, grad: Tensor, inputs: list[Tensor], **options: Any) -> None:
    fast, plain = (nade_log_prob, reference.nade_log_prob) if of_log_prob else (nade, reference.nade)
    wide = [t.double() for t in inputs]
    ours = gradients(fast, grad, inputs, **options)
    same = gradients(plain, grad, inputs, **options)
    exact = gradients(plain, grad.double(), wide, **options)
    terms = absolute_sums(grad.double(), wide, of_log_prob, **options)
    for what, a, b, c, size in zip(NAMES, ours, same, exact, terms, strict=True):
        assert_within_budget(a, b, c, scale=size, what=what)
