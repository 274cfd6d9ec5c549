"""Which hidden unit of a masked network sees which dimensions: by degrees, or by sets where dimensions have parents.

Degrees: a unit of degree k sees the first k positions, and reaches the positions from the k-th on. Sets: a unit sees
the parents of some dimension, and reaches the dimensions that have all of them as parents.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastar import _checks
from fastar.nn import MaskedLinear

DEGREES = ("random", "cyclic", "linspace", "even", "classes")


@dataclass(frozen=True)
class Connection:
    """One layer's mask, as the degrees of both sides or as a boolean matrix."""

    in_degrees: Tensor | None = None
    out_degrees: Tensor | None = None
    strict: bool = False
    mask: Tensor | None = None

    def apply(self, layer: MaskedLinear) -> None:
        """Give the layer this mask."""
        if self.mask is not None:
            layer.set_mask(self.mask)
        else:
            assert self.in_degrees is not None
            assert self.out_degrees is not None
            layer.set_degrees(self.in_degrees, self.out_degrees, self.strict)


@dataclass(frozen=True)
class MaskSet:
    """An order, and the masks of the hidden layers, of the output and of the direct connections."""

    order: Tensor
    hidden: list[Connection]
    out: Connection
    direct: Connection


def hidden_degrees(
    kind: str | Sequence[Sequence[int]], sizes: Sequence[int], dim: int, same: bool, generator: torch.Generator
) -> list[Tensor]:
    """The degrees of each hidden layer, 0..dim - 1, by the name of a rule or as given; `same` for all layers."""
    most, least = dim - 1, min(1, dim - 1)
    if not isinstance(kind, str):
        given = [torch.as_tensor(one) for one in kind]
        if [len(one) for one in given] != list(sizes):
            raise ValueError(f"degrees: expected {list(sizes)} of them, got {[len(one) for one in given]}")
        for one in given:
            _checks.dtype("degrees", one, _checks.INTEGERS)
            if bool(((one < 0) | (one > most)).any()):
                raise ValueError(f"degrees: expected 0..{most}, got {int(one.min())} to {int(one.max())}")
        return [one.long() for one in given]
    if kind not in DEGREES:
        raise ValueError(f"degrees: expected one of {', '.join(DEGREES)}, or the degrees themselves, got {kind!r}")
    degrees: list[Tensor] = []
    for size in sizes:
        unit = torch.arange(size)
        if kind == "random" and degrees and same:
            one = degrees[0]
        elif kind == "random":
            # As in the paper: not below the smallest of the layer before, or the unit would see nothing.
            low = int(degrees[-1].min()) if degrees else least
            one = torch.randint(low, most + 1, (size,), generator=generator)
        elif kind == "cyclic":
            one = unit % max(1, most) + least
        elif kind == "linspace":
            # Half rounds to even, and the last units reach nothing: both as in the libraries whose masks these are.
            one = torch.linspace(1, dim, size).round().long().clamp(max=most)
        elif kind == "even":
            one = torch.linspace(least, most, size, dtype=torch.float64).ceil().long()
        else:
            one = unit % dim
        degrees.append(one)
    return degrees


def by_degrees(order: Tensor, degrees: Sequence[Tensor], params: int, layout: str, cond_dim: int) -> MaskSet:
    """The masks where a dimension sees all that come before it."""
    # A condition has degree 0, so every unit sees it.
    inputs = torch.cat([order.argsort() + 1, torch.zeros(cond_dim, dtype=torch.long)])
    outputs = _laid_out(order.argsort() + 1, params, layout)
    levels = [inputs, *degrees]
    hidden = [Connection(a, b) for a, b in itertools.pairwise(levels)]
    return MaskSet(
        order, hidden, Connection(levels[-1], outputs, strict=True), Connection(inputs, outputs, strict=True)
    )


def by_parents(
    order: Tensor, parents: Tensor, sizes: Sequence[int], params: int, layout: str, cond_dim: int
) -> MaskSet:
    """The masks where a dimension sees its parents only, bool [D, D]."""
    dim = len(order)
    known = torch.cat([parents, torch.ones(dim, cond_dim, dtype=torch.bool)], 1)
    classes = torch.unique(parents[parents.any(1)], dim=0) if bool(parents.any()) else parents[:1]
    sees, hidden = torch.eye(dim, dtype=torch.bool), []
    for layer, size in enumerate(sizes):
        chosen = classes[_spread(size, len(classes))]
        mask = chosen if layer == 0 else _contained(sees, chosen)
        if layer == 0:
            mask = torch.cat([mask, torch.ones(size, cond_dim, dtype=torch.bool)], 1)
        hidden.append(Connection(mask=mask))
        sees = chosen
    out = _contained(sees, parents) if sizes else known
    rows = _laid_out(torch.arange(dim), params, layout)
    return MaskSet(order, hidden, Connection(mask=out[rows]), Connection(mask=known[rows]))


def _spread(size: int, classes: int) -> Tensor:
    # All classes in turn, or where they are too many an even choice of them.
    unit = torch.arange(size)
    return unit % classes if size >= classes else unit * classes // size


def _contained(inner: Tensor, outer: Tensor) -> Tensor:
    # [outer, inner]: whether all that the inner one sees is seen by the outer one.
    missing = (~outer).float() @ inner.float().T
    return missing == 0


def _laid_out(per_dim: Tensor, params: int, layout: str) -> Tensor:
    return per_dim.repeat_interleave(params) if layout == "feature" else per_dim.repeat(params)


def adjacency(name: str, value: Any, dim: int) -> Tensor:
    """bool [dim, dim] from such a matrix, or from a list of the neighbours of each dimension."""
    if isinstance(value, Tensor):
        _checks.dtype(name, value, (torch.bool,))
        _checks.shape(name, value, [dim, dim])
        return value.detach().cpu()
    rows = list(value)
    if len(rows) != dim:
        raise ValueError(f"{name}: expected an entry for each of {dim} dimensions, got {len(rows)}")
    if any(isinstance(one, bool) for row in rows for one in row):
        return adjacency(name, torch.tensor(rows), dim)
    matrix = torch.zeros(dim, dim, dtype=torch.bool)
    for i, row in enumerate(rows):
        for j in row:
            if not 0 <= int(j) < dim:
                raise ValueError(f"{name}: dimension {i} names {j}, expected 0..{dim - 1}")
            matrix[i, int(j)] = True
    return matrix


def check_parents(parents: Tensor, order: Tensor) -> None:
    """Every parent comes before its dimension in the order."""
    place = order.argsort()
    wrong = parents & (place[None, :] >= place[:, None])
    if bool(wrong.any()):
        i, j = torch.nonzero(wrong)[0].tolist()
        raise ValueError(f"parents: dimension {i} has the parent {j}, which does not come before it in the order")


def blanket(graph: Tensor, order: Tensor) -> Tensor:
    """The looking-back Markov blankets, bool [D, D]: the earlier j that i reaches by paths through later ones."""
    if not torch.equal(graph, graph.T):
        i, j = torch.nonzero(graph & ~graph.T)[0].tolist()
        raise ValueError(
            f"markov_graph: expected an undirected graph, but {i} has the neighbour {j} and not conversely"
        )
    place = order.argsort()
    parents = torch.zeros_like(graph)
    for i in range(len(graph)):
        later = place > place[i]
        reached = graph[i].clone()
        while True:
            further = reached | graph[reached & later].any(0)
            if torch.equal(further, reached):
                break
            reached = further
        parents[i] = reached & (place < place[i])
    return parents
