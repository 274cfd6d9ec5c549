"""NADE: a hidden layer that all dimensions share, or one per dimension, and a distribution of each given those before.

a_i = c + sum_{j before i} W[:, j] x_j,    params_i = b_i + V_i act(a_i)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastar import _checks
from fastar.distributions import Bernoulli, Categorical, Distribution, GaussianMixture, LaplaceMixture
from fastar.models import _order
from fastar.models.model import Model
from fastar.nn import MaskedLinear, NADELayer
from fastar.ops.nade import check_activation
from fastar.sampling import Builder, Program
from fastar.sampling.instructions import Accumulate, Draw, Readout, SpanLinear, Store


class UntiedLayer(nn.Module):
    """out_i = b_i + V_i act(c_i + A_i x_<i): what the tied layer computes, with a hidden layer for each dimension."""

    def __init__(
        self,
        dim: int,
        hidden: int,
        params: int,
        *,
        activation: str,
        order: Tensor,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_activation(activation)
        self.dim, self.hidden, self.activation = dim, _checks.positive("hidden", hidden), activation
        place = order.argsort()
        self.inputs = MaskedLinear(
            dim,
            dim * hidden,
            in_degrees=place,
            out_degrees=place.repeat_interleave(hidden),
            strict=True,
            activation=activation,
            device=device,
            dtype=dtype,
        )
        self.readout = nn.Parameter(torch.empty(dim, params, hidden, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(dim, params, device=device, dtype=dtype))
        nn.init.uniform_(self.readout, -1 / math.sqrt(hidden), 1 / math.sqrt(hidden))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inputs(x).unflatten(1, (self.dim, self.hidden))
        return torch.einsum("bdh,dkh->bdk", hidden, self.readout) + self.bias


class _Shared(Model):
    # NADE and RNADE differ in what their data are; the layer between, and how it is sampled, is the same.
    layer: NADELayer | UntiedLayer
    # Inputs enter as scale x + shift.
    scale: float = 1.0
    shift: float = 0.0

    def _connect(
        self,
        dim: int,
        hidden: int,
        params: int,
        activation: str,
        tied: bool,
        order: _order.Order,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        self.dim = _checks.positive("dim", dim)
        self.data_shape = (dim,)
        self.tied = bool(tied)
        self.order = _order.permutation(order, dim)
        layer = NADELayer if tied else UntiedLayer
        self.layer = layer(dim, hidden, params, activation=activation, order=self.order, device=device, dtype=dtype)

    def forward(self, x: Tensor, cond: None = None) -> Tensor:
        self.check(x, cond)
        y = x.to(self.dtype)
        if (self.scale, self.shift) != (1.0, 0.0):
            y = y * self.scale + self.shift
        params: Tensor = self.layer(y)
        return params

    def _readout(self) -> tuple[Tensor, Tensor]:
        return self.layer.readout.detach(), self.layer.bias.detach()

    def lower(self) -> Program:
        layer, D, H = self.layer, self.dim, self.layer.hidden
        head, order = self.distribution.head, self.order.to(self.device)
        V, bias = self._readout()
        b = Builder(type(self).__name__, self.distribution.value, D)
        b.weight("readout", V[order].contiguous())
        b.weight("bias", bias[order].contiguous())
        out = b.scratch("params", head.params).at()
        if isinstance(layer, NADELayer):
            b.weight("weight", layer.weight.detach().T[order].contiguous())
            b.weight("hidden_bias", layer.hidden_bias)
            a = b.state("a", H, init="hidden_bias").at()
            with b.loop("t", D) as t:
                b.add(
                    Accumulate(a, "weight", row=t - 1, position=t - 1, scale=self.scale, shift=self.shift),
                    Readout(out, a, "readout", t, "bias", layer.activation),
                    Draw(head, t, out),
                )
        else:
            rows = (order[:, None] * H + torch.arange(H, device=order.device)).flatten()
            assert layer.inputs.bias is not None
            b.weight("weight", (layer.inputs.weight * layer.inputs.dense_mask()).detach()[rows][:, order].contiguous())
            b.weight("hidden_bias", layer.inputs.bias.detach()[rows])
            b.table("spans", [i * H for i in range(D + 1)])
            b.table("before", list(range(D)))
            x, hidden = b.state("x", D).at(), b.state("hidden", D * H).at()
            with b.loop("t", D) as t:
                b.add(
                    SpanLinear(hidden, x, "weight", "spans", t, "hidden_bias", "before", activation=layer.activation),
                    Readout(out, hidden.channels(t * H, H), "readout", t, "bias"),
                    Draw(head, t, out),
                    Store(x.channels(t, 1), t, self.scale, self.shift),
                )
        natural = _order.is_natural(self.order)
        return b.build(shape=(D,), layout=None if natural else b.table("order", self.order.tolist()))


class NADE(_Shared):
    """Bits, or with more `levels` whole numbers: a logit, or a softmax, per dimension.

    Args:
        dim: D, the number of dimensions.
        hidden: H, hidden units; O(D H) parameters and work if tied.
        levels: 2 for bits; K for 0..K-1, which enter the network scaled to [-1, 1].
        activation: sigmoid, relu or tanh.
        tied: one hidden layer whose weights all dimensions share; False: one of its own for each, O(D^2 H).
        order: permutation of 0..D-1, order[t] being the dimension that comes t-th; None for 0, 1, 2...

    x [B, D]; ``model(x)`` [B, D, 1], the logits, or [B, D, levels].
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"mnist": {"dim": 784, "hidden": 500}}

    def __init__(
        self,
        dim: int,
        hidden: int,
        levels: int = 2,
        activation: str = "sigmoid",
        tied: bool = True,
        *,
        order: _order.Order = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            dim=dim, hidden=hidden, levels=levels, activation=activation, tied=tied, order=_order.listed(order)
        )
        if _checks.positive("levels", levels) < 2:
            raise ValueError(f"levels: expected at least 2, got {levels}")
        self.distribution: Distribution = Bernoulli() if levels == 2 else Categorical(levels)
        if levels > 2:
            self.scale, self.shift = 2 / (levels - 1), -1.0
        self._connect(dim, hidden, self.distribution.params, activation, tied, order, device, dtype)

    def log_prob(self, x: Tensor, cond: None = None) -> Tensor:
        # The fused op never writes the logits where nothing is to be learned.
        if isinstance(self.layer, NADELayer) and self.distribution.levels == 2:
            self.check(x, cond)
            return self.layer.log_prob(x.to(self.dtype))
        return super().log_prob(x, cond)


class RNADE(_Shared):
    """Real numbers: a mixture of Gaussians or Laplaces per dimension.

    Args:
        dim: D, the number of dimensions.
        hidden: H, hidden units.
        components: K of each mixture.
        kind: "gaussian" or "laplace".
        uniform_weights: the components of a mixture are equally likely: their logits are zero and not learned.
        activation: sigmoid, relu or tanh. The paper scales a_i by a learned positive number before a relu; V_i can
            hold that number as well.
        tied: one hidden layer whose weights all dimensions share; False: one of its own for each.
        order: permutation of 0..D-1, order[t] being the dimension that comes t-th; None for 0, 1, 2...

    x [B, D]; ``model(x)`` [B, D, 3 K]: logits, means, log-scales.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"bsds300": {"dim": 63, "hidden": 512, "components": 10}}

    def __init__(
        self,
        dim: int,
        hidden: int,
        components: int,
        kind: str = "gaussian",
        uniform_weights: bool = False,
        *,
        activation: str = "relu",
        tied: bool = True,
        order: _order.Order = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            dim=dim,
            hidden=hidden,
            components=components,
            kind=kind,
            uniform_weights=uniform_weights,
            activation=activation,
            tied=tied,
            order=_order.listed(order),
        )
        if kind not in ("gaussian", "laplace"):
            raise ValueError(f"kind: expected gaussian or laplace, got {kind!r}")
        self.uniform_weights = bool(uniform_weights)
        self.distribution: Distribution = (GaussianMixture if kind == "gaussian" else LaplaceMixture)(components)
        learned = (2 if uniform_weights else 3) * components
        self._connect(dim, hidden, learned, activation, tied, order, device, dtype)
        # Components that start alike would stay alike.
        nn.init.normal_(self.layer.bias[:, -2 * components : -components])

    def forward(self, x: Tensor, cond: None = None) -> Tensor:
        return self._with_logits(super().forward(x, cond), -1)

    def _with_logits(self, learned: Tensor, dim: int) -> Tensor:
        if not self.uniform_weights:
            return learned
        means, log_scales = learned.chunk(2, dim)
        return torch.cat([torch.zeros_like(means), means, log_scales], dim)

    def _readout(self) -> tuple[Tensor, Tensor]:
        V, bias = super()._readout()
        return self._with_logits(V, 1), self._with_logits(bias, 1)
