"""NADELayer: the parameters of each dimension's distribution, given the dimensions before it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastar import _checks
from fastar.ops.nade import check_activation, check_order, nade, nade_log_prob


class NADELayer(nn.Module):
    """out[b, i, k] = b[i, k] + V[i, k] . act(c + sum over j before i of W[:, j] x[b, j]): all share one hidden layer.

    W `weight` [hidden, dim], V `readout` [dim, params, hidden], c `hidden_bias` [hidden], b `bias` [dim, params]. The
    output [B, dim, params] keeps the dimensions' own numbering, whatever the order.

    Args:
        dim: number of dimensions of x [B, dim].
        hidden: number of hidden units.
        params: parameters per dimension: 1 for a Bernoulli's logit, the levels of a categorical, 3 per component of a
            mixture.
        activation: sigmoid, relu or tanh.
        order: permutation of 0..dim-1, order[k] being the dimension that comes k-th; None for 0, 1, 2... If given, it
            is part of the state dict.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        params: int = 1,
        *,
        activation: str = "sigmoid",
        order: Tensor | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim = _checks.positive("dim", dim)
        self.hidden = _checks.positive("hidden", hidden)
        self.params = _checks.positive("params", params)
        check_activation(activation)
        self.activation = activation
        self.weight = nn.Parameter(torch.empty(hidden, dim, device=device, dtype=dtype))
        self.readout = nn.Parameter(torch.empty(dim, params, hidden, device=device, dtype=dtype))
        self.hidden_bias = nn.Parameter(torch.empty(hidden, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(dim, params, device=device, dtype=dtype))
        self.order: Tensor | None
        if order is not None:
            _checks.dtype("order", _checks.tensor("order", order), _checks.INTEGERS)
            _checks.shape("order", order, [dim])
            check_order(order, dim)
            order = order.detach().to(self.weight.device, torch.int64, copy=True)
        self.register_buffer("order", order)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform weights within 1 / sqrt(inputs) of each product, as `torch.nn.Linear` has them, and biases of 0."""
        nn.init.uniform_(self.weight, -1 / math.sqrt(self.dim), 1 / math.sqrt(self.dim))
        nn.init.uniform_(self.readout, -1 / math.sqrt(self.hidden), 1 / math.sqrt(self.hidden))
        nn.init.zeros_(self.hidden_bias)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return nade(
            x,
            self.weight,
            self.readout,
            self.hidden_bias,
            self.bias,
            activation=self.activation,
            order=self.order,
        )

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) [B] in nats of bits x [B, dim], where ``forward(x)[..., 0]`` are their logits; needs params=1."""
        if self.params != 1:
            raise ValueError(f"params: expected 1 for the log-probability of bits, got {self.params}")
        total = nade_log_prob(
            x,
            self.weight,
            self.readout,
            self.hidden_bias,
            self.bias,
            activation=self.activation,
            order=self.order,
        )
        assert isinstance(total, Tensor)
        return total

    def extra_repr(self) -> str:
        parts = [f"dim={self.dim}", f"hidden={self.hidden}", f"params={self.params}", f"activation={self.activation}"]
        return ", ".join(parts + (["order=given"] if self.order is not None else []))
