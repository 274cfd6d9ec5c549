"""Lowering: from a module that runs over all positions at once to a step program that runs them one by one.

`register` gives a layer its lowering: a function of the layer, its input at the current position, and the `Step` that
collects instructions. A module composed of such layers is traced (torch.fx), so that sums, products, activations and
concatenations in its own forward lower as well. What cannot be is refused with the module's path and the reason.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from fastar.sampling.builder import Builder
from fastar.sampling.fuse import fuse
from fastar.sampling.index import Index, Ref
from fastar.sampling.instructions import UNARY, Draw, Elementwise, Head, Store
from fastar.sampling.program import Program, Value


class LoweringError(ValueError):
    """A module that has no step program; the message gives its path and the reason."""


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


Lower = Callable[[Any, Any, "Step"], Any]
Layer = TypeVar("Layer", bound=Callable[..., Any])
_LAYERS: dict[type[nn.Module], Lower] = {}


def register(*layers: type[nn.Module]) -> Callable[[Layer], Layer]:
    """Decorator: this function lowers these layers (and not their subclasses): (layer, input, step) -> output."""

    def enter(lower: Layer) -> Layer:
        for layer in layers:
            _LAYERS[layer] = lower
        return lower

    return enter


class Step:
    """The pass at one position while a module is lowered: where instructions, weights and buffers go."""

    def __init__(self, builder: Builder, position: Index) -> None:
        self.builder = builder
        self.position = position
        self.path = ""

    def refuse(self, reason: str) -> LoweringError:
        """The error to raise: this module has no step program because of `reason`."""
        return LoweringError(f"{self.path or 'the module itself'}: {reason}")

    def name(self, part: str) -> str:
        """A name for a weight or buffer of the current layer: its path and the part."""
        return f"{self.path}.{part}" if self.path else part

    def weight(self, part: str, tensor: Tensor) -> str:
        """Enter a weight of the current layer."""
        return self.builder.weight(self.name(part), tensor)

    def optional(self, part: str, tensor: Tensor | None) -> str | None:
        """Enter a weight that the layer may lack."""
        return None if tensor is None else self.weight(part, tensor)

    def scratch(self, width: int) -> Ref:
        """Channels for the current layer's output."""
        return self.builder.scratch(self.path or "x", width).at()

    def signal(self, x: object, last: bool | None = None) -> Signal:
        """The input as channels; refused where it is symbols, or lies the other way round."""
        if not isinstance(x, Signal):
            raise self.refuse(
                f"expected a float tensor, got {'symbols' if isinstance(x, Symbols) else type(x).__name__}"
            )
        if last is not None and x.last != last:
            raise self.refuse(f"expected {'[B, T, C]' if last else '[B, C, T]'}, got the other order")
        return x

    def elementwise(
        self, function: str, a: Signal, b: Signal | None = None, alpha: float = 1.0, beta: float = 0.0
    ) -> Signal:
        """A fresh signal f(a) or f(a, b)."""
        if b is not None and (a.ref.width != b.ref.width or a.last != b.last):
            raise self.refuse(f"{function} of {a.ref.width} and {b.ref.width} channels, or of different orders")
        out = self.scratch(a.ref.width * (2 if function == "concat_elu" else 1))
        self.builder.add(Elementwise(out, function, a.ref, None if b is None else b.ref, alpha, beta))
        return replace(a, ref=out)


class _Tracer(fx.Tracer):
    # Registered layers are leaves whoever wrote them; torch.nn's others stay leaves and are refused by name.
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in _LAYERS or (
            super().is_leaf_module(m, module_qualified_name) and not isinstance(m, nn.Sequential)
        )


def lower_module(module: nn.Module, x: Symbols | Signal, step: Step) -> Any:
    """The module's output at the current position."""
    if type(module) in _LAYERS:
        return _LAYERS[type(module)](module, x, step)
    if type(module).__module__.startswith("torch.nn."):
        raise step.refuse(f"no lowering is registered for {type(module).__module__}.{type(module).__qualname__}")
    try:
        graph = _Tracer().trace(module)
    except Exception as error:
        raise step.refuse(
            f"its forward cannot be traced ({error}); register a lowering for {type(module).__name__}"
        ) from error
    modules = dict(module.named_modules())
    prefix = step.path
    results: dict[fx.Node, Any] = {}
    inputs = 0
    for node in graph.nodes:
        args = fx.map_arg(node.args, lambda n: results[n])
        kwargs = fx.map_arg(node.kwargs, lambda n: results[n])
        step.path = prefix
        if node.op == "placeholder":
            inputs += 1
            if inputs > 1 and not node.args:
                raise step.refuse(f"its forward takes more than one input, {node.target!r}")
            results[node] = x if inputs == 1 else node.args[0]
        elif node.op == "call_module":
            layer = modules[node.target]
            step.path = f"{prefix}.{node.target}" if prefix else node.target
            if type(layer) not in _LAYERS:
                raise step.refuse(f"no lowering is registered for {type(layer).__module__}.{type(layer).__qualname__}")
            if len(args) != 1 or kwargs:
                raise step.refuse("a layer is called with more than its input")
            results[node] = _LAYERS[type(layer)](layer, args[0], step)
        elif node.op == "output":
            step.path = prefix
            return args[0]
        elif node.op == "get_attr":
            raise step.refuse(f"its forward uses {node.target} outside a layer")
        else:
            results[node] = _function(step, node, args, kwargs)
    raise step.refuse("its forward returns nothing")


def _function(step: Step, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    if node.target in (operator.add, torch.add, operator.mul, torch.mul) or name in ("add", "mul"):
        return _sum_or_product(step, "add" if "add" in name else "mul", *args)
    if node.target is operator.sub and isinstance(args[1], int | float):
        return step.elementwise("none", step.signal(args[0]), beta=-float(args[1]))
    if node.target is operator.truediv and isinstance(args[1], int | float):
        return step.elementwise("none", step.signal(args[0]), alpha=1 / args[1])
    if node.target is operator.getitem and isinstance(args[0], tuple) and isinstance(args[1], int):
        return args[0][args[1]]
    if name in ("contiguous", "clone"):
        return args[0]
    if name in ("transpose", "permute", "swapaxes"):
        axes = args[1] if len(args) == 2 and isinstance(args[1], tuple | list) else args[1:]
        if tuple(axes) in ((1, 2), (2, 1), (-1, -2), (-2, -1), (0, 2, 1)):
            x = step.signal(args[0])
            return replace(x, last=not x.last)
    if name == "chunk":
        return _chunk(step, step.signal(args[0]), *args[1:], **kwargs)
    if name in ("cat", "concat"):
        return _cat(step, [step.signal(one) for one in args[0]], *args[1:], **kwargs)
    if name == "gelu":
        tanh = kwargs.get("approximate", "none") == "tanh"
        return step.elementwise("gelu_tanh" if tanh else "gelu", step.signal(args[0]))
    if name in UNARY and name not in ("none", "clamp", "concat_elu") and len(args) == 1:
        if {key for key, value in kwargs.items() if value is not False and (key, value) != ("alpha", 1.0)}:
            raise step.refuse(f"{name} with options {kwargs}")
        return step.elementwise(name, step.signal(args[0]))
    raise step.refuse(f"its forward calls {name}({', '.join(type(a).__name__ for a in args)}), which has no lowering")


def _sum_or_product(step: Step, function: str, a: Any, b: Any) -> Signal:
    if isinstance(a, int | float):
        a, b = b, a
    if isinstance(b, int | float):
        alpha, beta = (1.0, float(b)) if function == "add" else (float(b), 0.0)
        return step.elementwise("none", step.signal(a), alpha=alpha, beta=beta)
    return step.elementwise(function, step.signal(a), step.signal(b))


def _channel_axis(step: Step, x: Signal, dim: int) -> None:
    if dim not in ((2, -1) if x.last else (1, -2)):
        raise step.refuse(f"dimension {dim} is not the channels'")


def _chunk(step: Step, x: Signal, chunks: int, dim: int = 0) -> tuple[Signal, ...]:
    _channel_axis(step, x, dim)
    if x.ref.width % chunks:
        raise step.refuse(f"{x.ref.width} channels do not fall into {chunks} equal chunks")
    width = x.ref.width // chunks
    return tuple(replace(x, ref=x.ref.channels(k * width, width)) for k in range(chunks))


def _cat(step: Step, parts: list[Signal], dim: int = 0) -> Signal:
    for part in parts:
        _channel_axis(step, part, dim)
    out = step.scratch(sum(part.ref.width for part in parts))
    start = 0
    for part in parts:
        step.builder.add(Elementwise(out.channels(start, part.ref.width), "none", part.ref))
        start += part.ref.width
    return replace(parts[0], ref=out)


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
) -> Program:
    """The program of a module over [B, T] symbols, or [B, T, C] floats, whose output [B, T, P] is unshifted.

    Entry t of ``module(y)`` parametrises x_t, where y_t = x_{t-1} and y_0 is `first`: a symbol (without it the first
    embedding is zero), or a float (0 by default). Floats enter as ``scale * x + shift``; so do the levels of a discrete
    head where `first` is a float. `head` reads the P parameters.
    """
    # The registrations of the layers that fastar itself knows.
    import fastar.sampling.layers  # noqa: F401

    integer = head.kind in ("bernoulli", "categorical") or (head.levels is not None)
    levels = 2 if head.kind == "bernoulli" else head.levels
    value = Value("int", head.channels, levels) if integer else Value("float", head.channels)
    b = Builder(name, value, positions, limit)
    with b.loop("t", positions) as t:
        step = Step(b, t)
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
    channels = () if head.channels == 1 else (head.channels,)
    return fuse(b.build(shape=None if positions is None else (positions, *channels)))
