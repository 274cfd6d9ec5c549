"""A module over images [B, C, H, W] as a graph of planes: what computes each, and where it looks.

Everything that a layer may do is a sum of products over taps (`Product`) or one of the instruction set's functions,
element by element (`Pointwise`). Parts of channels and concatenations leave no trace: a part of a product is a product
of fewer rows, and a product over several planes side by side is a sum of products. `fastar.sampling.image` finds out
when each channel is known, and emits the program.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastar.reference.activation import GATE
from fastar.sampling.trace import IMAGE, Lowering

Tap = tuple[int, int]
CENTRE: Tap = (0, 0)


@dataclass(eq=False)
class Node:
    """A plane: `width` channels at every pixel, or with `scale` > 1 at every scale-th of every scale-th row.

    A vector for the whole image has scale 0.
    """

    path: str
    width: int
    scale: int = field(default=1, kw_only=True)

    @property
    def reads(self) -> list[tuple[Node, Sequence[Tap]]]:
        """The planes that it is computed from, and where it looks in them."""
        return []


@dataclass(eq=False)
class Pixels(Node):
    """The image itself: what is drawn."""


@dataclass(eq=False)
class Given(Node):
    """What the caller of a run brings: a vector for the whole image, or with `spatial` a map."""

    spatial: bool = False


@dataclass(eq=False)
class Ones(Node):
    """1 at every pixel: to those who look over the edge it tells the image from what surrounds it."""


class At(NamedTuple):
    """A plane as seen from a pixel, `dy` rows and `dx` columns away; zero outside the image."""

    node: Node
    dy: int = 0
    dx: int = 0


class Term(NamedTuple):
    """Weights [out, taps, in] on one plane; `seen`, bool of the same shape, says which of them a mask lets through."""

    node: Node
    taps: tuple[Tap, ...]
    weight: Tensor
    seen: Tensor


@dataclass(eq=False)
class Product(Node):
    """y = act(sum over terms and taps of W x + b)."""

    terms: list[Term] = field(default_factory=list)
    bias: Tensor | None = None
    activation: str = "none"

    @property
    def reads(self) -> list[tuple[Node, Sequence[Tap]]]:
        return [(term.node, term.taps) for term in self.terms]

    def rows(self, start: int, width: int) -> Product:
        """The product that gives these channels only."""
        part = slice(start, start + width)
        terms = [term._replace(weight=term.weight[part], seen=term.seen[part]) for term in self.terms]
        bias = None if self.bias is None else self.bias[part]
        return Product(f"{self.path}.{start}", width, terms, bias, self.activation, scale=self.scale)


class Phase(NamedTuple):
    """Of the pixels of a raised plane those in every second row and column from these on: taps and weights on it."""

    row: int
    column: int
    taps: tuple[Tap, ...]
    weight: Tensor


@dataclass(eq=False)
class Raised(Node):
    """y = act(W x + b) at twice the rows and columns of x: a transposed convolution, with weights by phase."""

    source: Node
    phases: tuple[Phase, ...] = ()
    bias: Tensor | None = None
    activation: str = "none"

    @property
    def reads(self) -> list[tuple[Node, Sequence[Tap]]]:
        return [(self.source, sorted({tap for one in self.phases for tap in one.taps}))]


@dataclass(eq=False)
class Pointwise(Node):
    """y = f(a) or f(a, b) as `Elementwise` has it; with `gate` as `Gate` has it."""

    function: str
    operands: tuple[At, ...]
    alpha: float = 1.0
    beta: float = 0.0
    gate: bool = False

    @property
    def reads(self) -> list[tuple[Node, Sequence[Tap]]]:
        return [(one.node, [(one.dy, one.dx)]) for one in self.operands]


@dataclass(eq=False)
class Recurrent(Node):
    """h of an LSTM over the image.

    Its gates o, f, i and g, `width` channels each, are W x + b + sum_k state[:, :, k] h(state_taps[k]). The cell before
    a pixel's own is that at `cell`. A `mirrored` one runs from the right end of a row to the left.
    """

    terms: list[Term]
    bias: Tensor | None
    state: Tensor
    state_taps: tuple[Tap, ...]
    cell: Tap
    mirrored: bool = False

    @property
    def reads(self) -> list[tuple[Node, Sequence[Tap]]]:
        return [(term.node, term.taps) for term in self.terms]


@dataclass(frozen=True)
class Planes:
    """A float tensor of the traced forward: planes side by side, and how much it was padded (left, right, top, bottom).

    `vector` is a tensor [B, C], one for the whole image.
    """

    pieces: tuple[At, ...]
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)
    vector: bool = False

    @property
    def width(self) -> int:
        """The number of channels."""
        return sum(one.node.width for one in self.pieces)


class Canvas(Lowering):
    """Collects the planes of a module while it is lowered over an image of `size` (height, width)."""

    over = IMAGE

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self._parts: dict[tuple[Node, int, int], Node] = {}

    def value(self, x: object) -> Planes:
        """The argument, if it is a float tensor of the image's size; pads that were cut on the other side move it."""
        if not isinstance(x, Planes):
            raise self.refuse(f"expected a float tensor, got {type(x).__name__}")
        left, right, top, bottom = x.pad
        if left + right or top + bottom:
            raise self.refuse(f"its input is padded by {list(x.pad)}; crop it to the image's size before")
        shifted = (At(one.node, one.dy - top, one.dx - left) for one in x.pieces)
        return replace(x, pieces=tuple(shifted), pad=(0, 0, 0, 0))

    def shift(self, x: object, down: int, right: int) -> Planes:
        """The tensor moved down and to the right; zeros move in."""
        value = self.value(x)
        return self.value(replace(value, pad=(right, -right, down, -down)))

    def product(
        self,
        x: object,
        weight: Tensor,
        taps: Sequence[Tap] = (CENTRE,),
        bias: Tensor | None = None,
        seen: Tensor | None = None,
        activation: str = "none",
        stride: int = 1,
    ) -> Planes:
        """y = act(sum_k W[:, k, :] x(taps[k]) + b), W [out, taps, in]; `seen`, bool [out, taps, in], is its mask.

        Taps are (rows, columns) away from the pixel; what lies outside the image counts as zero. With a stride, every
        stride-th pixel of every stride-th row is computed.
        """
        value = self.value(x)
        terms = self._terms(value, weight, taps, seen)
        fused = "none" if activation in ("concat_elu", GATE) else activation
        bias = None if bias is None else bias.detach()
        scale = self._scale(value) * stride
        if scale and any(size % scale for size in self.size):
            raise self.refuse(f"a stride that makes {scale} in all does not divide the image's size {list(self.size)}")
        node = Product(self.path, weight.shape[0], terms, bias, fused, scale=scale)
        y = Planes((At(node),), vector=value.vector)
        if activation == GATE:
            return self.gate("tanh", *self.chunk(y, 2, 1))
        return self.elementwise("concat_elu", y) if activation == "concat_elu" else y

    def recurrent(
        self,
        x: object,
        weight: Tensor,
        taps: Sequence[Tap],
        bias: Tensor | None,
        seen: Tensor | None,
        state: Tensor,
        state_taps: Sequence[Tap],
        cell: Tap,
        mirrored: bool = False,
    ) -> Planes:
        """An LSTM over the image, see `Recurrent`."""
        value = self.value(x)
        if self._scale(value) != 1:
            raise self.refuse("an LSTM over an image of a smaller scale has no lowering")
        terms, hidden = self._terms(value, weight, taps, seen), state.shape[1]
        bias = None if bias is None else bias.detach()
        node = Recurrent(self.path, hidden, terms, bias, state.detach(), tuple(state_taps), cell, mirrored)
        return Planes((At(node),))

    def _terms(self, value: Planes, weight: Tensor, taps: Sequence[Tap], seen: Tensor | None) -> list[Term]:
        if weight.shape[1:] != (len(taps), value.width):
            raise self.refuse(f"takes {weight.shape[-1]} channels, gets {value.width}")
        weight = weight.detach()
        seen = torch.ones(weight.shape, dtype=torch.bool) if seen is None else seen.cpu()
        weight = torch.where(seen.to(weight.device), weight, torch.zeros((), dtype=weight.dtype, device=weight.device))
        terms, start = [], 0
        for one in value.pieces:
            part = slice(start, start + one.node.width)
            moved = tuple((dy + one.dy, dx + one.dx) for dy, dx in taps)
            terms.append(Term(one.node, moved, weight[:, :, part], seen[:, :, part]))
            start += one.node.width
        return terms

    def raised(self, x: object, phases: Sequence[Phase], bias: Tensor | None, activation: str = "none") -> Planes:
        """A transposed convolution of stride 2, by the phases of the pixels that it computes."""
        value = self.value(x)
        one = value.pieces[0]
        scale = self._scale(value)
        if len(value.pieces) > 1 or (one.dy, one.dx) != CENTRE or isinstance(one.node, Pixels | Given) or scale < 2:
            raise self.refuse("grows what no layer shrank before, or what is moved or put together")
        if one.node.width != phases[0].weight.shape[2]:
            raise self.refuse(f"takes {phases[0].weight.shape[2]} channels, gets {one.node.width}")
        fused = "none" if activation in ("concat_elu", GATE) else activation
        node = Raised(
            self.path,
            phases[0].weight.shape[0],
            one.node,
            tuple(phase._replace(weight=phase.weight.detach()) for phase in phases),
            None if bias is None else bias.detach(),
            fused,
            scale=scale // 2,
        )
        y = Planes((At(node),))
        if activation == GATE:
            return self.gate("tanh", *self.chunk(y, 2, 1))
        return self.elementwise("concat_elu", y) if activation == "concat_elu" else y

    def _scale(self, x: Planes) -> int:
        scales = {one.node.scale for one in x.pieces}
        if len(scales) > 1:
            raise self.refuse(f"puts planes of scales {sorted(scales)} side by side")
        return scales.pop()

    def elementwise(
        self, function: str, a: Planes, b: Planes | None = None, alpha: float = 1.0, beta: float = 0.0
    ) -> Planes:
        """f(alpha a + beta), alpha a + b or alpha a b."""
        if function == "concat_elu":
            return self.cat([self.elementwise("elu", a, None, s * alpha, s * beta) for s in (1, -1)], 1)
        if b is None:
            nodes = [self._pointwise(function, (one,), alpha, beta) for one in a.pieces]
        else:
            nodes = [self._pointwise(function, pair, alpha, beta) for pair in self._aligned(function, a, b)]
        return Planes(tuple(At(one) for one in nodes), vector=a.vector and (b is None or b.vector))

    def affine(self, x: Planes, factor: Tensor, shift: Tensor) -> Planes:
        """Each channel times its factor, plus its shift; part of the product before it where there is one."""
        pieces, start = [], 0
        for one in x.pieces:
            f, s = (t.detach()[start : start + one.node.width] for t in (factor, shift))
            start += one.node.width
            if isinstance(one.node, Product) and one.node.activation == "none" and (one.dy, one.dx) == CENTRE:
                terms = [term._replace(weight=term.weight * f[:, None, None]) for term in one.node.terms]
                bias = s if one.node.bias is None else s + f * one.node.bias
            else:
                each = torch.diag(f)[:, None]
                terms, bias = [Term(one.node, ((one.dy, one.dx),), each, each.cpu() != 0)], s
            pieces.append(At(Product(self.path, one.node.width, terms, bias, scale=one.node.scale)))
        return replace(x, pieces=tuple(pieces))

    def gate(self, function: str, a: Planes, b: Planes) -> Planes:
        """tanh(a) sigmoid(b) ("tanh"), a sigmoid(b) ("linear") or a silu(b) ("silu")."""
        nodes = [self._pointwise(function, pair, gate=True) for pair in self._aligned("gate", a, b)]
        return Planes(tuple(At(one) for one in nodes))

    def chunk(self, x: Planes, chunks: int, dim: int = 0) -> tuple[Planes, ...]:
        """Equal parts of the channels."""
        self._channel_axis(dim)
        if x.width % chunks:
            raise self.refuse(f"{x.width} channels do not fall into {chunks} equal chunks")
        width = x.width // chunks
        return tuple(self.part(x, k * width, width) for k in range(chunks))

    def part(self, x: Planes, start: int, width: int) -> Planes:
        """Channels [start, start + width)."""
        pieces, first = [], 0
        for one in x.pieces:
            low, high = max(start - first, 0), min(start + width - first, one.node.width)
            if low < high:
                pieces.append(one._replace(node=self._part(one.node, low, high - low)))
            first += one.node.width
        return replace(x, pieces=tuple(pieces))

    def cat(self, parts: Sequence[Planes], dim: int = 0) -> Planes:
        """Channels side by side."""
        self._channel_axis(dim)
        if len({one.vector for one in parts}) > 1:
            raise self.refuse("a vector beside planes; expand it to the image's size first")
        return Planes(tuple(piece for one in parts for piece in one.pieces), vector=parts[0].vector)

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Padding and cropping, and vectors that are spread over the image."""
        x = args[0]
        if name == "pad" and isinstance(x, Planes):
            sizes = [*args[1], 0, 0, 0, 0][:4]
            if set(kwargs) - {"mode", "value"} or kwargs.get("mode", "constant") != "constant" or kwargs.get("value"):
                raise self.refuse(f"pad with options {kwargs}")
            return replace(x, pad=tuple(a + b for a, b in zip(x.pad, sizes, strict=True)))
        if name == "ones_like" and isinstance(x, Planes) and not kwargs and not x.vector and self._scale(x) == 1:
            return Planes(tuple(At(Ones("ones", 1)) for _ in range(x.width)))
        if name == "getitem" and isinstance(x, Planes):
            return self._item(x, args[1] if isinstance(args[1], tuple) else (args[1],))
        return NotImplemented

    def _item(self, x: Planes, item: tuple[Any, ...]) -> Planes:
        whole = slice(None)
        if x.vector and item == (whole, whole, None, None):
            return x
        pad = list(x.pad)
        if len(item) == 2 and item[0] == whole and isinstance(item[1], slice) and item[1].step in (None, 1):
            start, stop, _ = item[1].indices(x.width)
            return self.part(x, start, stop - start)
        if item[:2] != (whole, whole) or len(item) > 4 or x.vector:
            raise self.refuse(f"its forward takes {item} of a tensor")
        for axis, one in zip((1, 0), item[2:], strict=False):
            size = self.size[1 - axis] + pad[2 * axis] + pad[2 * axis + 1]
            if not isinstance(one, slice) or one.step not in (None, 1):
                raise self.refuse(f"its forward takes {item} of a tensor")
            start, stop, _ = one.indices(size)
            pad[2 * axis] -= start
            pad[2 * axis + 1] -= size - stop
        # Axis 1 of `pad` is the rows', of `item` the first after the channels.
        return replace(x, pad=(pad[0], pad[1], pad[2], pad[3]))

    def _channel_axis(self, dim: int) -> None:
        if dim not in (1, -3):
            raise self.refuse(f"dimension {dim} is not the channels'")

    def _aligned(self, what: str, a: Planes, b: Planes) -> list[tuple[At, At]]:
        # Pieces of equal width: cut each side where the other is cut.
        if a.width != b.width:
            raise self.refuse(f"{what} of {a.width} and {b.width} channels")
        cuts = {0}
        for x in (a, b):
            end = 0
            for one in x.pieces:
                end += one.node.width
                cuts.add(end)
        edges = sorted(cuts)
        spans = [(start, stop - start) for start, stop in itertools.pairwise(edges)]
        return [(self.part(a, *span).pieces[0], self.part(b, *span).pieces[0]) for span in spans]

    def _pointwise(
        self, function: str, operands: tuple[At, ...], alpha: float = 1.0, beta: float = 0.0, gate: bool = False
    ) -> Pointwise:
        own = tuple(self._own(one) for one in operands)
        scales = {one.node.scale for one in own}
        if len(scales - {0}) > 1:
            raise self.refuse(f"combines planes of scales {sorted(scales)}")
        return Pointwise(self.path, own[0].node.width, function, own, alpha, beta, gate, scale=max(scales))

    def _own(self, one: At) -> At:
        # Planes combined element by element share one order of channels, which what is drawn or given cannot change.
        return At(self._selection(one, 0, one.node.width)) if isinstance(one.node, Pixels | Given | Ones) else one

    def _selection(self, one: At, start: int, width: int) -> Product:
        rows = torch.eye(one.node.width)[start : start + width, None]
        terms = [Term(one.node, ((one.dy, one.dx),), rows, rows != 0)]
        return Product(one.node.path, width, terms, scale=one.node.scale)

    def _part(self, node: Node, start: int, width: int) -> Node:
        if (start, width) == (0, node.width):
            return node
        key = (node, start, width)
        if key not in self._parts:
            if isinstance(node, Product):
                self._parts[key] = node.rows(start, width)
            elif isinstance(node, Pointwise):
                operands = tuple(one._replace(node=self._part(one.node, start, width)) for one in node.operands)
                self._parts[key] = replace(node, width=width, operands=operands)
            else:
                self._parts[key] = self._selection(At(node), start, width)
        return self._parts[key]
