"""MADE: one pass of a masked network gives the parameters of all dimensions."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastar import _checks
from fastar.distributions import Distribution, make
from fastar.models import _condition, _masks, _order, _rows
from fastar.models._masks import MaskSet
from fastar.models.model import Model
from fastar.nn import MaskedLinear
from fastar.reference import activation as activations
from fastar.sampling import LoweringError, Program, SampleResult, dimensions, philox

LAYOUTS = ("feature", "chunked")


class MaskedNetwork(nn.Module):
    """Masked layers from [B, inputs] to [B, outputs]; `connect` gives them their masks."""

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        *,
        activation: str = "relu",
        direct: bool = False,
        residual: bool = False,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if activations.check(activation) == "concat_elu":
            raise ValueError("activation: concat_elu doubles the units, which a masked network cannot")
        sizes = [inputs, *(_checks.positive("hidden", one) for one in hidden)]
        if residual and len(set(hidden)) > 1:
            raise ValueError(f"residual: expected hidden layers of one size, got {list(hidden)}")
        self.residual = bool(residual)
        self.hidden = nn.ModuleList(
            MaskedLinear(a, b, activation=activation, device=device, dtype=dtype) for a, b in itertools.pairwise(sizes)
        )
        self.dropout = nn.Dropout(dropout)
        self.out = MaskedLinear(sizes[-1], outputs, device=device, dtype=dtype)
        self.direct = MaskedLinear(inputs, outputs, bias=False, device=device, dtype=dtype) if direct else None

    def connect(self, masks: MaskSet) -> None:
        """Use these masks from now on."""
        for layer, connection in zip(self.hidden, masks.hidden, strict=True):
            assert isinstance(layer, MaskedLinear)
            connection.apply(layer)
        masks.out.apply(self.out)
        if self.direct is not None:
            masks.direct.apply(self.direct)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for number, layer in enumerate(self.hidden):
            y = self.dropout(layer(h))
            h = h + y if self.residual and number else y
        out: Tensor = self.out(h)
        return out if self.direct is None else out + self.direct(x)


class MADE(Model):
    """p(x) = prod_i p(x_i | x_before(i)) from one pass of a masked network.

    Args:
        dim: D, the number of dimensions.
        hidden: sizes of the hidden layers; none is a regression.
        head: distribution of each dimension: a `fastar.distributions` object, its name or its configuration.
        params: numbers per dimension in the place of a head; such a network has no density.
        order: "natural", "random", or a permutation of 0..D-1, order[t] being the dimension that comes t-th.
        num_masks: mask sets that share the weights: an equal mixture, whose probabilities are averaged. With a random
            order each has its own.
        direct: connections from input to output.
        parents: bool [D, D], or the parents of each dimension: what it sees, instead of all that comes before it.
        markov_graph: bool [D, D], or the neighbours of each dimension in an undirected graph; a dimension then sees
            the earlier ones that it reaches by paths through later ones: its looking-back Markov blanket.
        cond_dim: size of a condition, which every unit sees: floats [B, cond_dim] or class labels [B]. (Adding a
            linear function of it to the first hidden layer is the same network.)
        activation: of the hidden layers.
        degrees: of the hidden units: "random", "cyclic", "linspace", "even", "classes" (0 included), or given.
        layout: of the output: "feature" (d * K + k) or "chunked" (k * D + d).
        residual: each hidden layer after the first is added to the one before; all then have the same degrees.
        dropout: of the hidden units, while training.
        seed: of what is random here.

    x [B, D]; ``model(x)`` [B, D, params]. Integer levels enter scaled to [-1, 1], bits and real numbers as they are.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "mnist-1x500": {"dim": 784, "hidden": [500]},
        "mnist-1x8000": {"dim": 784, "hidden": [8000]},
        "mnist-2x8000": {"dim": 784, "hidden": [8000, 8000], "num_masks": 32},
    }

    def __init__(
        self,
        dim: int,
        hidden: int | Sequence[int],
        head: Distribution | str | Mapping[str, Any] | None = None,
        *,
        params: int | None = None,
        order: str | _order.Order = "natural",
        num_masks: int = 1,
        direct: bool = False,
        parents: Any = None,
        markov_graph: Any = None,
        cond_dim: int = 0,
        activation: str = "relu",
        degrees: str | Sequence[Sequence[int]] = "random",
        layout: str = "feature",
        residual: bool = False,
        dropout: float = 0.0,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = [hidden] if isinstance(hidden, int) else list(hidden)
        if head is not None and params is not None:
            raise ValueError("params: expected either a head or a number of parameters, got both")
        law = make("bernoulli" if head is None else head)
        graphs = {
            name: None if value is None else _neighbours(_masks.adjacency(name, value, dim))
            for name, value in (("parents", parents), ("markov_graph", markov_graph))
        }
        super().__init__(
            dim=dim,
            hidden=sizes,
            head=None if params is not None else law.to_config(),
            params=params,
            order=order if isinstance(order, str) else _order.listed(order),
            num_masks=num_masks,
            direct=direct,
            **graphs,
            cond_dim=cond_dim,
            activation=activation,
            degrees=degrees if isinstance(degrees, str) else [torch.as_tensor(one).tolist() for one in degrees],
            layout=layout,
            residual=residual,
            dropout=dropout,
            seed=seed,
        )
        self.dim = _checks.positive("dim", dim)
        self.num_masks = _checks.positive("num_masks", num_masks)
        self.params = law.params if params is None else _checks.positive("params", params)
        self.has_head = params is None
        self.distribution = law
        self.data_shape = (dim,)
        if cond_dim != 0:
            _checks.positive("cond_dim", cond_dim)
        self.cond_dim = cond_dim
        if layout not in LAYOUTS:
            raise ValueError(f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}")
        self.layout = layout
        levels = law.levels if self.has_head else None
        self.scale, self.shift = (1.0, 0.0) if levels is None or levels == 2 else (2 / (levels - 1), -1.0)
        self.network = MaskedNetwork(
            dim + cond_dim,
            sizes,
            dim * self.params,
            activation=activation,
            direct=direct,
            residual=residual,
            dropout=dropout,
            device=device,
            dtype=dtype,
        )
        generator = torch.Generator().manual_seed(seed)
        self.mask_sets = [
            self._mask_set(sizes, order, degrees, parents, markov_graph, residual, generator) for _ in range(num_masks)
        ]
        self._connected = 0
        self.network.connect(self.mask_sets[0])

    def _mask_set(
        self,
        sizes: Sequence[int],
        order: str | _order.Order,
        degrees: str | Sequence[Sequence[int]],
        parents: Any,
        markov_graph: Any,
        residual: bool,
        generator: torch.Generator,
    ) -> MaskSet:
        if isinstance(order, str):
            if order not in ("natural", "random"):
                raise ValueError(f"order: expected natural, random or a permutation, got {order!r}")
            natural = torch.arange(self.dim)
            chosen = natural if order == "natural" else torch.randperm(self.dim, generator=generator)
        else:
            chosen = _order.permutation(order, self.dim)
        if parents is None and markov_graph is None:
            found = _masks.hidden_degrees(degrees, sizes, self.dim, residual, generator)
            if residual and any(not torch.equal(one, found[0]) for one in found):
                raise ValueError("residual: expected hidden layers of the same degrees")
            return _masks.by_degrees(chosen, found, self.params, self.layout, self.cond_dim)
        if parents is not None and markov_graph is not None:
            raise ValueError("parents: expected either parents or markov_graph, got both")
        if parents is not None:
            seen = _masks.adjacency("parents", parents, self.dim)
        else:
            seen = _masks.blanket(_masks.adjacency("markov_graph", markov_graph, self.dim), chosen)
        _masks.check_parents(seen, chosen)
        return _masks.by_parents(chosen, seen, sizes, self.params, self.layout, self.cond_dim)

    @property
    def order(self) -> Tensor:
        """The order of the first mask set."""
        return self.mask_sets[0].order

    def set_masks(self, hidden: Sequence[Tensor], out: Tensor, direct: Tensor | None = None) -> None:
        """Masks that come with somebody's weights, bool [out, in] each; they become part of the state dict."""
        if self.num_masks > 1:
            raise ValueError("num_masks: masks of one's own need a model with one mask set")
        if len(hidden) != len(self.network.hidden) or (direct is None) != (self.network.direct is None):
            wanted = len(self.network.hidden), self.network.direct is not None
            raise ValueError(
                f"masks: expected {wanted[0]} for hidden layers and {'a' if wanted[1] else 'no'} direct one"
            )
        for layer, mask in zip([*self.network.hidden, self.network.out], [*hidden, out], strict=True):
            assert isinstance(layer, MaskedLinear)
            layer.set_mask(mask)
        if self.network.direct is not None:
            self.network.direct.set_mask(direct)

    def check(self, x: Tensor, cond: Any = None) -> None:
        _checks.shape("x", _checks.tensor("x", x), ["B", self.dim])
        if self.has_head:
            self.distribution.check(x)

    def forward(self, x: Tensor, cond: Tensor | None = None, *, mask: int = 0) -> Tensor:
        self.check(x, cond)
        self._use(mask)
        y = x.to(self.dtype)
        if (self.scale, self.shift) != (1.0, 0.0):
            y = y * self.scale + self.shift
        given = _condition.vector("this MADE", cond, self.cond_dim, len(x))
        flat = self.network(y if given is None else torch.cat([y, given.to(y.dtype)], 1))
        params: Tensor
        if self.layout == "feature":
            params = flat.unflatten(1, (self.dim, self.params))
        else:
            params = flat.unflatten(1, (self.params, self.dim)).transpose(1, 2)
        return params

    def _use(self, mask: int) -> None:
        if not 0 <= mask < self.num_masks:
            raise ValueError(f"mask: expected 0..{self.num_masks - 1}, got {mask}")
        if mask != self._connected:
            self.network.connect(self.mask_sets[mask])
            self._connected = mask

    def log_prob(self, x: Tensor, cond: Tensor | None = None, *, mask: int | None = None) -> Tensor:
        """log p(x) [B] in nats; of the mixture of all mask sets, or with `mask` of one of them."""
        self._needs_head()
        which = range(self.num_masks) if mask is None else [mask]
        each = [self.distribution.log_prob(self(x, cond, mask=one), x).flatten(1).sum(1) for one in which]
        return each[0] if len(each) == 1 else torch.logsumexp(torch.stack(each), 0) - math.log(len(each))

    def loss(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        """Mean nats of one mask set, another one at random in every call: a bound on the mixture's."""
        mask = 0 if self.num_masks == 1 else int(torch.randint(self.num_masks, ()))
        return -self.log_prob(x, cond, mask=mask).mean()

    def _needs_head(self) -> None:
        if not self.has_head:
            raise ValueError(f"head: this MADE has {self.params} parameters per dimension and no distribution")

    def lower(self, mask: int | None = None) -> Program:
        """The program of one mask set; with several it has to be said which."""
        self._needs_head()
        if mask is None and self.num_masks > 1:
            raise LoweringError(
                f"num_masks: a mixture of {self.num_masks} mask sets is no single program; draw by sample(), or from "
                "one set by lower(mask)"
            )
        mask = 0 if mask is None else mask
        self._use(mask)
        return dimensions(
            self.network,
            self.distribution.head,
            self.dim,
            order=self.mask_sets[mask].order,
            name="MADE",
            feature_major=self.layout == "feature",
            scale=self.scale,
            shift=self.shift,
            cond_dim=self.cond_dim,
        )

    def condition(self, cond: Any, n: int, length: Any) -> Mapping[str, Tensor]:
        """The program's inputs."""
        given = _condition.vector("this MADE", cond, self.cond_dim, n)
        return {} if given is None else {"cond": given}

    def sample(self, n: int, **options: Any) -> Tensor | SampleResult:  # type: ignore[override]
        """As `Model.sample`. Of a mixture each row draws a mask set first, by its random number at position D.

        Known values (`given`) do not sway which; `log_weight`, under the set that was drawn, corrects it.
        """
        if self.num_masks == 1:
            return super().sample(n, **options)
        return self._sample_mixture(n, **options)

    @torch.no_grad()
    def _sample_mixture(
        self,
        n: int,
        *,
        cond: Any = None,
        seed: int | Sequence[int] | None = None,
        row_offset: int = 0,
        uniforms: Tensor | None = None,
        support: Any = None,
        return_info: bool = False,
        **options: Any,
    ) -> Tensor | SampleResult:
        rows = _rows.Rows.of(n, seed, row_offset)
        chosen = (philox.discrete(rows.seeds, rows.numbers, self.dim, 0) * self.num_masks).long()
        groups = []
        for k in range(self.num_masks):
            which = torch.nonzero(chosen == k)[:, 0]
            if len(which) or (n == 0 and k == 0):
                groups.append(_rows.Group(which, self.lower(k), _rows.support_of(support, which)))
        if uniforms is None:
            uniforms = rows.uniforms(self.distribution, self.dim)
        result = _rows.sample(rows, groups, uniforms, inputs=self.condition(cond, n, None), **options)
        if not return_info:
            return result.values
        log_prob = self.log_prob(result.values.to(self.device), cond).double().cpu()
        return dataclasses.replace(result, log_prob=log_prob)


def _neighbours(matrix: Tensor) -> list[list[int]]:
    return [torch.nonzero(row)[:, 0].tolist() for row in matrix]
