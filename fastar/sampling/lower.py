"""Lowering over a sequence: from a module that runs over all positions at once to a program that runs them one by one.

A layer's lowering gets its input at the current position and the `Step` that collects instructions. Tracing, and the
registry of layers: `fastar.sampling.trace`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from fastar.sampling.builder import Builder
from fastar.sampling.fuse import fuse
from fastar.sampling.index import Index, Ref
from fastar.sampling.instructions import Draw, Elementwise, Gather, Head, Store
from fastar.sampling.program import Program, Value
from fastar.sampling.trace import SEQUENCE, Lowering, LoweringError, lower_module, register

__all__ = ["LoweringError", "Signal", "Step", "Symbols", "register", "sequence"]


@dataclass(frozen=True)
class Symbols:
    """The module's integer input [B, T] at the current position: the value drawn before it, or `first`."""

    position: Index
    first: int | None


@dataclass(frozen=True)
class Signal:
    """A float tensor at the current position: its channels, and where they lie: [B, T, C] (last) or [B, C, T]."""

    ref: Ref
    last: bool = True


@dataclass(frozen=True)
class Constant:
    """A parameter or buffer that the forward uses outside a layer."""

    tensor: Tensor
    name: str


@dataclass(frozen=True)
class _Marker:
    # Something that a forward asks about its input, and that is known without a value: its shape, a length, a device.
    what: str


_SHAPE, _LENGTH, POSITIONS, _OTHER = (_Marker(one) for one in ("shape", "length", "positions", "other"))


class Step(Lowering):
    """The pass at one position while a module is lowered: where instructions, weights and buffers go."""

    over = SEQUENCE

    def __init__(self, builder: Builder, position: Index) -> None:
        super().__init__()
        self.builder = builder
        self.position = position

    def weight(self, part: str, tensor: Tensor) -> str:
        """Enter a weight of the current layer."""
        return self.builder.weight(self.name(part), tensor)

    def optional(self, part: str, tensor: Tensor | None) -> str | None:
        """Enter a weight that the layer may lack."""
        return None if tensor is None else self.weight(part, tensor)

    def scratch(self, width: int) -> Ref:
        """Channels for the current layer's output."""
        return self.builder.scratch(self.path or "x", width).at()

    def last_position(self) -> float:
        """The greatest value of `position`: infinite in an open program without a limit."""
        longest = self.builder.positions or self.builder.limit or math.inf
        return self.position.bounds({var: (0, longest - 1) for var, _ in self.position.terms})[1]

    def ring(self, source: Ref, reach: int) -> Ref:
        """The channels where they stay for `reach` positions more, to be looked back at."""
        ring = self.builder.state(self.name("past"), reach + 1, source.width, ring=True).at(self.position)
        self.builder.add(Elementwise(ring, "none", source))
        return ring

    def signal(self, x: object, last: bool | None = None) -> Signal:
        """The input as channels; refused where it is symbols, or lies the other way round."""
        if isinstance(x, Constant):
            x = self._spread(x)
        if not isinstance(x, Signal):
            raise self.refuse(
                f"expected a float tensor, got {'symbols' if isinstance(x, Symbols) else type(x).__name__}"
            )
        if last is not None and x.last != last:
            raise self.refuse(f"expected {'[B, T, C]' if last else '[B, C, T]'}, got the other order")
        return x

    def gather(self, rows: Tensor, part: str) -> Signal:
        """The row of the current position."""
        if self.last_position() >= len(rows):
            longest = self.last_position() + 1
            raise self.refuse(f"has {len(rows)} positions, and the sequence may have {longest}; give `limit`")
        out = self.scratch(rows.shape[1])
        self.builder.add(Gather(out, self.weight(part, rows), base=self.position))
        return Signal(out)

    def _spread(self, x: Constant) -> Signal:
        # [C] or [1, .., C] is the same at every position, [N, C] or [1, N, C] has a row for each.
        if x.tensor.numel() == x.tensor.shape[-1:].numel():
            out = self.scratch(x.tensor.numel())
            self.builder.add(Gather(out, self.weight(x.name, x.tensor.view(1, -1))))
            return Signal(out)
        if x.tensor.dim() not in (2, 3) or math.prod(x.tensor.shape[:-2]) != 1:
            raise self.refuse(f"its forward uses {x.name}, {list(x.tensor.shape)}, outside a layer")
        return self.gather(x.tensor.view(x.tensor.shape[-2:]), x.name)

    def value(self, x: object) -> Signal:
        """The argument, if it is a float tensor of the traced forward."""
        return self.signal(x)

    def elementwise(
        self, function: str, a: Signal, b: Signal | None = None, alpha: float = 1.0, beta: float = 0.0
    ) -> Signal:
        """A fresh signal f(a) or f(a, b)."""
        if b is not None and (a.ref.width != b.ref.width or a.last != b.last):
            raise self.refuse(f"{function} of {a.ref.width} and {b.ref.width} channels, or of different orders")
        out = self.scratch(a.ref.width * (2 if function == "concat_elu" else 1))
        self.builder.add(Elementwise(out, function, a.ref, None if b is None else b.ref, alpha, beta))
        return replace(a, ref=out)

    def chunk(self, x: Signal, chunks: int, dim: int = 0) -> tuple[Signal, ...]:
        """Equal parts of the channels."""
        self._channel_axis(x, dim)
        if x.ref.width % chunks:
            raise self.refuse(f"{x.ref.width} channels do not fall into {chunks} equal chunks")
        width = x.ref.width // chunks
        return tuple(replace(x, ref=x.ref.channels(k * width, width)) for k in range(chunks))

    def cat(self, parts: Sequence[Signal], dim: int = 0) -> Signal:
        """Channels side by side."""
        for part in parts:
            self._channel_axis(part, dim)
        out = self.scratch(sum(part.ref.width for part in parts))
        start = 0
        for part in parts:
            self.builder.add(Elementwise(out.channels(start, part.ref.width), "none", part.ref))
            start += part.ref.width
        return replace(parts[0], ref=out)

    def _channel_axis(self, x: Signal, dim: int) -> None:
        if dim not in ((2, -1) if x.last else (1, -2)):
            raise self.refuse(f"dimension {dim} is not the channels'")

    def parameter(self, tensor: object, name: str) -> Constant:
        """A vector, or one for each position."""
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.dim() == 0:
            raise self.refuse(f"its forward uses {name} outside a layer")
        return Constant(tensor.detach(), name)

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Transposes, and what a forward asks in order to look up its positions."""
        x = args[0]
        if name in ("transpose", "permute", "swapaxes"):
            axes = args[1] if len(args) == 2 and isinstance(args[1], tuple | list) else args[1:]
            if tuple(axes) in ((1, 2), (2, 1), (-1, -2), (-2, -1), (0, 2, 1)):
                signal = self.signal(x)
                return replace(signal, last=not signal.last)
        if name == "getattr" and args[1] in ("shape", "device", "dtype"):
            return _SHAPE if args[1] == "shape" else _OTHER
        if (name == "size" and args[1:] in ((1,), ())) or (name == "getitem" and x is _SHAPE):
            whole = name == "size" and len(args) == 1
            return _SHAPE if whole else (_LENGTH if args[1] == 1 else _OTHER)
        if name == "arange" and args == (_LENGTH,):
            return POSITIONS
        if name == "getitem" and isinstance(x, Constant) and _rows_up_to_length(args[1]):
            return x
        if name in ("expand", "expand_as") and isinstance(x, Constant):
            return x
        return NotImplemented


def _rows_up_to_length(item: object) -> bool:
    # weight[:T], or weight[:, :T] where a batch dimension of 1 stands in front.
    last = item[-1] if isinstance(item, tuple) else item
    front = item[:-1] if isinstance(item, tuple) else ()
    return last == slice(None, _LENGTH) and all(one == slice(None) for one in front)


def sequence(
    module: nn.Module,
    head: Head,
    *,
    name: str = "sequence",
    positions: int | None = None,
    limit: int | None = None,
    first: int | float | None = None,
    scale: float = 1.0,
    shift: float = 0.0,
    given_first: bool = False,
) -> Program:
    """The program of a module over [B, T] symbols, or [B, T, C] floats, whose output [B, T, P] is unshifted.

    Entry t of ``module(y)`` parametrises x_t, where y_t = x_{t-1} and y_0 is `first`: a symbol (without it the first
    embedding is zero), or a float (0 by default). Floats enter as ``scale * x + shift``; so do the levels of a discrete
    head where `first` is a float. `head` reads the P parameters. With `given_first` x_0 is not modelled but given, and
    entry t of ``module(x)`` parametrises x_{t+1}.
    """
    integer = head.kind in ("bernoulli", "categorical") or (head.levels is not None)
    levels = 2 if head.kind == "bernoulli" else head.levels
    value = Value("int", head.channels, levels) if integer else Value("float", head.channels)
    b = Builder(name, value, positions, limit)

    def body(t: Index, position: Index) -> None:
        step = Step(b, position)
        x: Symbols | Signal
        if integer and head.channels == 1 and not isinstance(first, float):
            x = Symbols(t - 1, first)
        else:
            x = Signal(b.scratch("input", head.channels).at())
            b.add(Store(x.ref, t - 1, scale, shift, float(first or 0.0)))
        y = lower_module(module, x, step)
        step.path = ""
        out = step.signal(y).ref
        if out.width != head.params:
            raise step.refuse(f"it gives {out.width} numbers per position, and the head {head} reads {head.params}")
        b.add(Draw(head, t, out))

    with b.loop("t", positions) as t:
        if given_first:
            with b.when(t, 0, 1):
                b.add(Draw(Head("given"), t))
            with b.when(t, 1):
                body(t, t - 1)
        else:
            body(t, t)
    channels = () if head.channels == 1 else (head.channels,)
    return fuse(b.build(shape=None if positions is None else (positions, *channels)))
