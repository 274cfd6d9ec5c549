"""MADE's weights with their masks, as pytorch-made and Pyro save them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastar.convert._tensors import Tensors
from fastar.distributions import Distribution
from fastar.models import MADE


def made(
    tensors: Mapping[str, Tensor],
    head: Distribution | str | Mapping[str, Any] | None = None,
    *,
    params: int | None = None,
    activation: str = "relu",
    layout: str = "chunked",
    ignore: Sequence[str] = (),
) -> MADE:
    """A MADE with the weights and masks of another project's masked network, and an order that its masks obey.

    Takes any stack of layers that keep ``weight``, ``bias`` and ``mask`` [out, in] side by side and are saved in the
    order in which they are applied: pytorch-made's `MADE`, Pyro's `AutoRegressiveNN` without skip connections. Integer
    levels enter as this library's MADE takes them.

    Args:
        tensors: the state dict.
        head, params, activation: as for `MADE`.
        layout: of the output: "chunked" (k * D + d), which both these projects have, or "feature" (d * K + k).
        ignore: beginnings of names that do not count.
    """
    left = Tensors(tensors, ignore)
    # Pyro's order, which the masks tell as well.
    left.drop("permutation")
    paths = [name.removesuffix(".mask") for name in left.names if name.endswith(".mask")]
    if not paths:
        raise ValueError(f"tensors: expected layers with a weight and a mask, got {', '.join(left.names[:6])}")
    weights, biases, masks = [], [], []
    for path in paths:
        weight = left.take(f"{path}.weight", "out", "in")
        weights.append(weight)
        masks.append(left.take(f"{path}.mask", *weight.shape) != 0)
        bias = left.optional(f"{path}.bias", len(weight))
        biases.append(weight.new_zeros(len(weight)) if bias is None else bias)
    left.finish()
    dim = weights[0].shape[1]
    outputs = len(weights[-1])
    if outputs % dim:
        raise ValueError(f"tensors: {outputs} outputs are no multiple of {dim} inputs, so they are no MADE's")
    model = MADE(
        dim,
        [len(one) for one in weights[:-1]],
        head,
        params=params,
        order=_order(masks, dim, layout).tolist(),
        activation=activation,
        layout=layout,
        dtype=weights[0].dtype,
    )
    model.set_masks(masks[:-1], masks[-1])
    state: dict[str, Tensor] = {}
    ours = [*(f"network.hidden.{number}" for number in range(len(masks) - 1)), "network.out"]
    for path, weight, bias, mask in zip(ours, weights, biases, masks, strict=True):
        state |= {f"{path}.weight": weight, f"{path}.bias": bias, f"{path}.mask": mask}
    model.load_state_dict(state)
    return model.eval()


def _order(masks: Sequence[Tensor], dim: int, layout: str) -> Tensor:
    # Dimensions so that each sees earlier ones only; those that nothing decides in their natural order.
    seen = masks[0].double()
    for mask in masks[1:]:
        seen = (mask.double() @ seen).clamp(max=1)
    by_output = seen.unflatten(0, (dim, -1)).amax(1) if layout == "feature" else seen.unflatten(0, (-1, dim)).amax(0)
    waits_for = by_output > 0
    order: list[int] = []
    for _ in range(dim):
        waiting = waits_for.any(1)
        waiting[order] = True
        if bool(waiting.all()):
            raise ValueError("tensors: no order of the dimensions obeys these masks, so they are no MADE's")
        following = int(torch.nonzero(~waiting)[0])
        order.append(following)
        waits_for[:, following] = False
    return torch.tensor(order)
