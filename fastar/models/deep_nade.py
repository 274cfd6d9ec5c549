"""DeepNADE: an orderless model of fully connected layers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastar import _checks
from fastar.distributions import Distribution, make
from fastar.models import _order
from fastar.models.orderless import Orderless
from fastar.reference import activation as activations
from fastar.sampling import Builder, Program
from fastar.sampling.instructions import Accumulate, Draw, Elementwise, Linear, Readout


class DeepNADE(Orderless):
    """params = b + V h(x where known, known), the mask appended to the input: any order, any depth.

    Args:
        dim: D, the number of dimensions.
        hidden: sizes of the hidden layers, at least one.
        head: distribution of each dimension: a `fastar.distributions` object, its name or its configuration.
        activation: of the hidden layers.

    x [B, D]; ``model(x, known)`` [B, D, params] in one pass.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "mnist-1x500": {"dim": 784, "hidden": [500]},
        "mnist-2x500": {"dim": 784, "hidden": [500, 500]},
    }

    def __init__(
        self,
        dim: int,
        hidden: int | Sequence[int],
        head: Distribution | str | Mapping[str, Any] = "bernoulli",
        *,
        activation: str = "relu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = [hidden] if isinstance(hidden, int) else list(hidden)
        law = make(head)
        super().__init__(dim=dim, hidden=sizes, head=law.to_config(), activation=activation)
        self.dim = _checks.positive("dim", dim)
        self.distribution = law
        self.data_shape = (dim,)
        if not sizes:
            raise ValueError("hidden: expected at least one hidden layer")
        if activations.check(activation) == "concat_elu":
            raise ValueError("activation: concat_elu doubles the units, which these layers do not expect")
        self.activation = activation
        levels = self.distribution.levels
        if levels is not None and levels > 2:
            self.scale, self.shift = 2 / (levels - 1), -1.0
        widths = [2 * dim, *sizes]
        self.layers = nn.ModuleList(nn.Linear(a, b, device=device, dtype=dtype) for a, b in itertools.pairwise(widths))
        params = self.distribution.params
        self.readout = nn.Parameter(torch.empty(dim, params, sizes[-1], device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(dim, params, device=device, dtype=dtype))
        nn.init.uniform_(self.readout, -1 / math.sqrt(sizes[-1]), 1 / math.sqrt(sizes[-1]))

    def params_of(self, x: Tensor, known: Tensor, wanted: Tensor | None) -> Tensor:
        h = torch.cat([x, known.to(x.dtype)], 1)
        for layer in self.layers:
            h = activations.APPLY[self.activation](layer(h))
        if wanted is None:
            return torch.einsum("nh,dph->ndp", h, self.readout) + self.bias
        return torch.einsum("nh,nph->np", h, self.readout[wanted]) + self.bias[wanted]

    def lower(self, order: _order.Order = None) -> Program:
        # What a dimension adds to the first layer, by its value and by being known, is added once, when it is drawn.
        chosen = _order.permutation(order, self.dim)
        rows, head = chosen.to(self.device), self.distribution.head
        b = Builder("DeepNADE", self.distribution.value, self.dim)
        first, *rest = self.layers
        assert isinstance(first, nn.Linear)
        by_value, by_known = first.weight.detach().T.split(self.dim)
        b.weight("layers.0.value", by_value[rows].contiguous())
        b.weight("layers.0.known", by_known[rows].contiguous())
        a = b.state("a", first.out_features, init=b.weight("layers.0.bias", first.bias)).at()
        b.weight("readout", self.readout.detach()[rows].contiguous())
        b.weight("bias", self.bias.detach()[rows].contiguous())
        h = b.scratch("h", first.out_features).at()
        out = b.scratch("params", head.params).at()
        with b.loop("t", self.dim) as t:
            b.add(Elementwise(h, self.activation, a))
            last = h
            for number, layer in enumerate(rest, 1):
                assert isinstance(layer, nn.Linear)
                y = b.scratch(f"h{number}", layer.out_features).at()
                weight = b.weight(f"layers.{number}.weight", layer.weight)
                bias = b.weight(f"layers.{number}.bias", layer.bias)
                b.add(Linear(y, last, weight, bias, activation=self.activation))
                last = y
            b.add(
                Readout(out, last, "readout", t, "bias"),
                Draw(head, t, out),
                Accumulate(a, "layers.0.value", t, t, scale=self.scale, shift=self.shift),
                Accumulate(a, "layers.0.known", t, t, scale=0.0, shift=1.0),
            )
        natural = _order.is_natural(chosen)
        return b.build(shape=(self.dim,), layout=None if natural else b.table("order", chosen.tolist()))
