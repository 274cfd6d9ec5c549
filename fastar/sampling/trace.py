"""Tracing: a module's forward, followed layer by layer and call by call, tells a lowering what to emit.

`register` gives a layer its lowering: a function of the layer, its input and the lowering under way. A module composed
of such layers is traced (torch.fx), so that sums, products, activations, parts and concatenations in its own forward
lower as well. What cannot be is refused with the module's path and the reason.
"""

from __future__ import annotations

import abc
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from fastar.sampling.instructions import UNARY


class LoweringError(ValueError):
    """A module that has no step program; the message gives its path and the reason."""


Lower = Callable[..., Any]
Layer = TypeVar("Layer", bound=Callable[..., Any])
SEQUENCE, IMAGE = "sequence", "image"
_LAYERS: dict[str, dict[type[nn.Module], Lower]] = {SEQUENCE: {}, IMAGE: {}}


def register(*layers: type[nn.Module], over: str | Sequence[str] = SEQUENCE) -> Callable[[Layer], Layer]:
    """Decorator: this function lowers these layers (and not their subclasses): (layer, input, lowering) -> output.

    `over` is "sequence" (the lowering is a `fastar.sampling.lower.Step`), "image" (a `fastar.sampling.planes.Canvas`),
    or both. A layer that is called with several inputs gets them as a tuple, and those that are named by name.
    """
    kinds = [over] if isinstance(over, str) else list(over)
    for kind in kinds:
        if kind not in _LAYERS:
            raise ValueError(f"over: expected {' or '.join(_LAYERS)}, got {kind!r}")

    def enter(lower: Layer) -> Layer:
        for kind in kinds:
            for layer in layers:
                _LAYERS[kind][layer] = lower
        return lower

    return enter


class Lowering(abc.ABC):
    """What a traced forward is lowered to: its values, and the calls between layers that it understands."""

    over: ClassVar[str]

    def __init__(self) -> None:
        self.path = ""

    def refuse(self, reason: str) -> LoweringError:
        """The error to raise: this module has no step program because of `reason`."""
        return LoweringError(f"{self.path or 'the module itself'}: {reason}")

    def name(self, part: str) -> str:
        """A name for a weight or buffer of the current layer: its path and the part."""
        return f"{self.path}.{part}" if self.path else part

    def child(self, name: str, layer: nn.Module, x: Any) -> Any:
        """The output of a layer within the current one."""
        path, self.path = self.path, self.name(name)
        y = lower_module(layer, x, self)
        self.path = path
        return y

    @abc.abstractmethod
    def value(self, x: object) -> Any:
        """The argument, if it is a float tensor of the traced forward."""

    @abc.abstractmethod
    def elementwise(self, function: str, a: Any, b: Any = None, alpha: float = 1.0, beta: float = 0.0) -> Any:
        """f(alpha a + beta), alpha a + b or alpha a b."""

    @abc.abstractmethod
    def chunk(self, x: Any, chunks: int, dim: int = 0) -> tuple[Any, ...]:
        """Equal parts of the channels."""

    @abc.abstractmethod
    def cat(self, parts: Sequence[Any], dim: int = 0) -> Any:
        """Channels side by side."""

    def parameter(self, tensor: torch.Tensor, name: str) -> Any:
        """A parameter or buffer that the forward uses outside a layer."""
        raise self.refuse(f"its forward uses {name} outside a layer")

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Any other function, method or attribute; NotImplemented where the lowering has none of this name."""
        return NotImplemented


def _kind(module: nn.Module) -> type[nn.Module]:
    # A parametrised layer (weight norm) is of a class of its own, made from the layer's.
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


class _Tracer(fx.Tracer):
    # Registered layers are leaves whoever wrote them; torch.nn's others stay leaves and are refused by name.
    def __init__(self, over: str) -> None:
        super().__init__()
        self.over = over

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _kind(m) in _LAYERS[self.over] or (
            super().is_leaf_module(m, module_qualified_name) and not isinstance(m, nn.Sequential)
        )


def lower_module(module: nn.Module, x: Any, lowering: Lowering, named: Mapping[str, Any] | None = None) -> Any:
    """The module's output; `x` is its input, or a tuple of its inputs, `named` are further ones by name."""
    # The registrations of the layers that fastar itself knows.
    import fastar.sampling.image_layers
    import fastar.sampling.layers
    import fastar.sampling.layers_wavenet  # noqa: F401

    layers, kind = _LAYERS[lowering.over], _kind(module)
    if kind in layers:
        return layers[kind](module, x, lowering)
    if kind.__module__.startswith("torch.nn."):
        raise lowering.refuse(f"no lowering is registered for {kind.__module__}.{kind.__qualname__}")
    try:
        graph = _Tracer(lowering.over).trace(module)
    except Exception as error:
        raise lowering.refuse(
            f"its forward cannot be traced ({error}); register a lowering for {type(module).__name__}"
        ) from error
    modules = dict(module.named_modules())
    prefix = lowering.path
    results: dict[fx.Node, Any] = {}
    inputs, further = list(x) if isinstance(x, tuple) else [x], dict(named or {})
    for node in graph.nodes:
        args = fx.map_arg(node.args, lambda n: results[n])
        kwargs = fx.map_arg(node.kwargs, lambda n: results[n])
        lowering.path = prefix
        if node.op == "placeholder":
            if inputs:
                results[node] = inputs.pop(0)
            elif node.target in further:
                results[node] = further.pop(node.target)
            elif node.args:
                results[node] = node.args[0]
            else:
                raise lowering.refuse(f"its forward takes one more input, {node.target!r}")
        elif node.op == "call_module":
            layer = modules[node.target]
            lowering.path = f"{prefix}.{node.target}" if prefix else node.target
            kind = _kind(layer)
            if kind not in layers:
                raise lowering.refuse(f"no lowering is registered for {kind.__module__}.{kind.__qualname__}")
            lower = layers[kind]
            unknown = sorted(set(kwargs) - set(inspect.signature(lower).parameters)) if kwargs else []
            if unknown:
                raise lowering.refuse(f"a layer is called with {', '.join(unknown)} by name")
            results[node] = lower(layer, args[0] if len(args) == 1 else args, lowering, **kwargs)
        elif node.op == "output":
            lowering.path = prefix
            if inputs or further:
                raise lowering.refuse(f"its forward takes no {', '.join(further) or 'further input'}")
            return args[0]
        elif node.op == "get_attr":
            results[node] = lowering.parameter(_attribute(module, node.target), node.target)
        else:
            results[node] = _function(lowering, node, args, kwargs)
    raise lowering.refuse("its forward returns nothing")


def _attribute(module: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)


def _function(lowering: Lowering, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    if node.target in (operator.add, torch.add, operator.mul, torch.mul) or name in ("add", "mul"):
        return _sum_or_product(lowering, "add" if "add" in name else "mul", *args)
    if name in ("sub", "neg"):
        a, b = (0.0, args[0]) if name == "neg" else args
        if isinstance(b, int | float):
            return lowering.elementwise("none", lowering.value(a), beta=-float(b))
        if isinstance(a, int | float):
            return lowering.elementwise("none", lowering.value(b), alpha=-1.0, beta=float(a))
        return lowering.elementwise("add", lowering.value(b), lowering.value(a), alpha=-1.0)
    if name == "truediv" and isinstance(args[1], int | float):
        return lowering.elementwise("none", lowering.value(args[0]), alpha=1 / args[1])
    if name == "getitem" and isinstance(args[0], tuple) and isinstance(args[1], int):
        return args[0][args[1]]
    if name in ("contiguous", "clone"):
        return args[0]
    if name == "chunk":
        return lowering.chunk(lowering.value(args[0]), *args[1:], **kwargs)
    if name in ("cat", "concat"):
        return lowering.cat([lowering.value(one) for one in args[0]], *args[1:], **kwargs)
    if name == "gelu":
        tanh = kwargs.get("approximate", "none") == "tanh"
        return lowering.elementwise("gelu_tanh" if tanh else "gelu", lowering.value(args[0]))
    if name in UNARY and name not in ("none", "clamp", "concat_elu") and len(args) == 1:
        if {key for key, value in kwargs.items() if value is not False and (key, value) != ("alpha", 1.0)}:
            raise lowering.refuse(f"{name} with options {kwargs}")
        return lowering.elementwise(name, lowering.value(args[0]))
    result = lowering.call(name, args, kwargs)
    if result is NotImplemented:
        kinds = ", ".join(type(a).__name__ for a in args)
        raise lowering.refuse(f"its forward calls {name}({kinds}), which has no lowering")
    return result


def _sum_or_product(lowering: Lowering, function: str, a: Any, b: Any) -> Any:
    if isinstance(a, int | float):
        a, b = b, a
    if isinstance(b, int | float):
        alpha, beta = (1.0, float(b)) if function == "add" else (float(b), 0.0)
        return lowering.elementwise("none", lowering.value(a), alpha=alpha, beta=beta)
    return lowering.elementwise(function, lowering.value(a), lowering.value(b))
