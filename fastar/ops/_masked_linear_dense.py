"""Masked linear by the reference: the mask is formed, and the masked weight multiplied whole.

Runs anywhere in every dtype; on the CPU it is also the faster way for weights so small that moving rows and columns
about costs more than it saves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastar.ops.mask_plan import MaskPlan
from fastar.reference import activation as activations
from fastar.reference.masked_linear import masked_linear as reference


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, plan: MaskPlan, activation: str, keep_preactivation: bool
) -> tuple[Tensor, Tensor]:
    """(y, z): z is the pre-activation, empty unless it is to be kept."""
    z = reference(x, weight, bias, plan.dense(weight.shape))
    y = activations.APPLY[activation](z).contiguous()
    return y, z if keep_preactivation else z.new_empty(0)


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
    mask = plan.dense(weight.shape)

    def visible(w: Tensor) -> Tensor:
        return w if mask is None else torch.where(mask, w, torch.zeros((), dtype=w.dtype, device=w.device))

    return (
        grad @ visible(weight) if needs[0] else None,
        visible(grad.T @ x) if needs[1] else None,
        grad.sum(0) if needs[2] else None,
    )
