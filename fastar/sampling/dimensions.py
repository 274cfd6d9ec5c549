"""Lowering of masked networks over dimensions (MADE): each unit is computed once, when its last input is known.

A unit's pass is the largest of the inputs that it reaches through the masks, whatever degrees or arbitrary mask they
came from; the dimension drawn t-th is known from pass t + 1 on. Units are stored sorted by pass, so that those of one
pass are a span of rows and what they read is a prefix of columns: a whole sample multiplies every weight once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fastar.nn import MaskedLinear
from fastar.sampling.builder import Builder
from fastar.sampling.index import Index, Ref
from fastar.sampling.instructions import ACTIVATIONS, Draw, Elementwise, Head, SpanLinear, Store
from fastar.sampling.layers import activation_name
from fastar.sampling.lower import LoweringError
from fastar.sampling.program import Program, Value


@dataclass
class _Group:
    # Units combined one by one share the pass [width] in which each is computed, and so their order in memory.
    passes: Tensor
    order: Tensor
    spans: str = ""


@dataclass
class _Units:
    # The units of one node of the traced forward: a masked linear layer, or a function of one or two nodes.
    path: str
    inputs: list[_Units]
    group: _Group
    weight: Tensor | None = None
    mask: Tensor | None = None
    bias: Tensor | None = None
    function: str = "none"
    alpha: float = 1.0
    ref: Ref | None = None

    @property
    def width(self) -> int:
        return len(self.group.passes)


class Schedule:
    """A masked network from [B, dim + cond_dim] to [B, dim * params] whose units are ordered by the pass of each.

    Output d * params + k (k * dim + d if not `feature_major`) is parameter k of dimension d, and may depend only on the
    dimensions before d in `order`, and on the last `cond_dim` inputs. `path` precedes the names of weights and buffers.
    """

    def __init__(
        self,
        module: nn.Module,
        params: int,
        order: Tensor,
        *,
        feature_major: bool = True,
        cond_dim: int = 0,
        path: str = "",
    ) -> None:
        order = order.detach().cpu().long()
        self.dim, self.params, self.cond_dim, self.path = len(order), params, cond_dim, path
        place = order.argsort()
        # Conditions are known before the first pass, so they are stored first.
        passes = torch.cat([place + 1, torch.zeros(cond_dim, dtype=torch.long)])
        columns = torch.cat([torch.arange(self.dim, self.dim + cond_dim), order])
        self.nodes = _trace(module, _Units("x", [], _Group(passes, columns)))
        for one in self.nodes:
            one.path = f"{path}.{one.path}".strip(".") if path else one.path
        out = self.nodes[-1]
        if out.width != self.dim * params or out is self.nodes[0]:
            raise LoweringError(
                f"{out.path}: gives {out.width} numbers, and the head of {params} numbers reads {self.dim} x {params}"
            )
        unit = torch.arange(self.dim * params)
        needed, parameter = (
            (place[unit // params], unit % params) if feature_major else (place[unit % self.dim], unit // self.dim)
        )
        _schedule(self.nodes, out, needed)
        out.group.order = torch.argsort(needed * params + parameter)

    def declare(self, b: Builder, cond: Ref | None = None) -> Ref:
        """Enter the buffers; the inputs [cond_dim + dim], conditions first and then by position, are to be stored."""
        known = b.state(f"{self.path}.x".strip("."), self.cond_dim + self.dim).at()
        self.nodes[0].ref = known
        if cond is not None:
            b.add(Elementwise(known.channels(0, self.cond_dim), "none", cond))
        for one in self.nodes[1:]:
            one.ref = b.state(f"units.{one.path}", one.width).at()
        return known

    def emit(self, b: Builder, t: Index) -> Ref:
        """The instructions of pass t, and where the parameters of position t then are."""
        for one in self.nodes[1:]:
            _emit(b, one, t, self.dim)
        out = self.nodes[-1].ref
        assert out is not None
        return out.channels(t * self.params, self.params)


def dimensions(
    module: nn.Module,
    head: Head,
    dim: int,
    *,
    order: Tensor | None = None,
    name: str = "dimensions",
    feature_major: bool = True,
    scale: float = 1.0,
    shift: float = 0.0,
    cond_dim: int = 0,
) -> Program:
    """The program of a masked network from [B, dim] to [B, dim * P], P = head.params.

    Output d * P + k (k * dim + d if not `feature_major`) is parameter k of dimension d, and may depend only on the
    dimensions before d in `order`; order[t] is drawn t-th. Inputs enter as ``scale * x + shift``. With `cond_dim` the
    network is one from [B, dim + cond_dim], and the program takes the last columns as its input ``cond``.
    """
    order = torch.arange(dim) if order is None else order.detach().cpu().long()
    if order.shape != (dim,) or not torch.equal(order.sort().values, torch.arange(dim)):
        raise ValueError(f"order: expected a permutation of 0..{dim - 1}, got {order.tolist()}")
    schedule = Schedule(module, head.params, order, feature_major=feature_major, cond_dim=cond_dim)
    levels = 2 if head.kind == "bernoulli" else head.levels
    b = Builder(name, Value("float", 1) if levels is None else Value("int", 1, levels), dim)
    known = schedule.declare(b, b.input("cond", cond_dim).at() if cond_dim else None)
    with b.loop("t", dim) as t:
        params = schedule.emit(b, t)
        b.add(Draw(head, t, params), Store(known.channels(t + cond_dim, 1), t, scale, shift))
    natural = torch.equal(order, torch.arange(dim))
    return b.build(shape=(dim,), layout=None if natural else b.table("order", order.tolist()))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, MaskedLinear) or super().is_leaf_module(m, module_qualified_name)


def _trace(module: nn.Module, x: _Units) -> list[_Units]:
    modules = dict(module.named_modules())
    if isinstance(module, MaskedLinear) or type(module).__module__.startswith("torch.nn.modules.linear"):
        return [x, _layer("", module, [x])]
    nodes: list[_Units] = [x]
    made: dict[fx.Node, _Units] = {}
    for node in _Tracer().trace(module).nodes:
        path = str(node.target) if node.op == "call_module" else str(node.name)
        inputs = [made[one] for one in node.all_input_nodes]
        if node.op == "placeholder":
            made[node] = x
            continue
        if node.op == "output":
            if len(inputs) != 1 or inputs[0] is not nodes[-1]:
                raise LoweringError("the module itself: computes something that its output does not depend on")
            return nodes
        if node.op == "get_attr":
            raise LoweringError(f"the module itself: its forward uses {node.target} outside a layer")
        one = _layer(path, modules[path], inputs) if node.op == "call_module" else _call(node, path, inputs)
        source = inputs[0]
        alone = source.weight is not None and source.function == "none" and len(node.all_input_nodes[0].users) == 1
        if one.weight is None and one.function in ACTIVATIONS and one.alpha == 1 and alone:
            source.function = one.function
            one = source
        elif one is not source:
            nodes.append(one)
        made[node] = one
    raise LoweringError("the module itself: its forward returns nothing")


def _layer(path: str, layer: nn.Module, inputs: list[_Units]) -> _Units:
    if isinstance(layer, nn.Identity | nn.Dropout):
        return inputs[0]
    if isinstance(layer, nn.Linear | MaskedLinear):
        weight, function = layer.weight.detach(), "none"
        mask = torch.ones_like(weight, dtype=torch.bool)
        if isinstance(layer, MaskedLinear):
            mask, function = layer.dense_mask(), layer.activation
            weight = torch.where(mask, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))
        if function not in ACTIVATIONS:
            raise LoweringError(f"{path}: {function} changes the number of units")
        if inputs[0].width != weight.shape[1]:
            raise LoweringError(f"{path}: takes {weight.shape[1]} inputs, gets {inputs[0].width}")
        group = _Group(torch.zeros(len(weight), dtype=torch.long), torch.empty(0, dtype=torch.long))
        return _Units(path, inputs, group, weight, mask.cpu(), layer.bias, function)
    function = activation_name(layer) or ""
    if function not in ACTIVATIONS:
        kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
        raise LoweringError(f"{path}: no lowering over dimensions for {kind}")
    return _combined(path, inputs, function)


def _call(node: fx.Node, path: str, inputs: list[_Units]) -> _Units:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    numbers = [a for a in node.args if isinstance(a, int | float)]
    if name == "add" and len(inputs) == 2 and not numbers:
        return _combined(path, inputs, "add")
    if name == "mul" and len(inputs) == len(numbers) == 1:
        return _combined(path, inputs, "none", float(numbers[0]))
    if name == "gelu" and node.kwargs.get("approximate") == "tanh":
        name = "gelu_tanh"
    if name in ACTIVATIONS and len(inputs) == len(node.args) == 1:
        return _combined(path, inputs, name)
    raise LoweringError(f"the module itself: its forward calls {name}, which has no lowering over dimensions")


def _combined(path: str, inputs: list[_Units], function: str, alpha: float = 1.0) -> _Units:
    if any(not one.inputs for one in inputs):
        raise LoweringError(f"{path}: combines the input itself, without a layer between")
    if len({one.width for one in inputs}) > 1:
        raise LoweringError(f"{path}: combines {inputs[0].width} and {inputs[1].width} units")
    return _Units(path, inputs, inputs[0].group, function=function, alpha=alpha)


def _schedule(nodes: list[_Units], out: _Units, needed: Tensor) -> None:
    for one in nodes:
        for other in one.inputs if one.weight is None else []:
            merged, into = other.group, one.group
            for each in nodes:
                each.group = into if each.group is merged else each.group
    out.group.passes = needed.clone()
    # Passes only rise, and never beyond dim, so this ends.
    changed = True
    while changed:
        changed = False
        for one in nodes:
            if one.weight is None or one.mask is None:
                continue
            reach = torch.where(one.mask, one.inputs[0].group.passes, 0).amax(1)
            late = reach > one.group.passes
            if bool(late.any()) and one.group is out.group:
                unit = int(late.int().argmax())
                raise LoweringError(
                    f"{one.path}: output {unit}, drawn at position {int(needed[unit])}, "
                    f"depends on position {int(reach[unit]) - 1}"
                )
            one.group.passes = torch.maximum(one.group.passes, reach)
            changed = changed or bool(late.any())
    for one in nodes[1:]:
        one.group.order = torch.sort(one.group.passes, stable=True).indices


def _emit(b: Builder, one: _Units, t: Index, dim: int) -> None:
    group = one.group
    if not group.spans:
        group.spans = b.table(f"spans.{one.path}", [int((group.passes < p).sum()) for p in range(dim + 1)])
    refs = [each.ref for each in one.inputs if each.ref is not None]
    assert one.ref is not None
    if one.weight is None:
        second = refs[1] if len(refs) > 1 else None
        b.add(Elementwise(one.ref, one.function, refs[0], second, one.alpha, spans=group.spans, index=t))
        return
    source = one.inputs[0].group
    rows, columns = group.order.to(one.weight.device), source.order.to(one.weight.device)
    path = f"{one.path}." if one.path else ""
    weight = b.weight(f"{path}weight", one.weight[rows][:, columns].contiguous())
    bias = None if one.bias is None else b.weight(f"{path}bias", one.bias.detach()[rows])
    reach = b.table(f"reach.{one.path}", [int((source.passes <= p).sum()) for p in range(dim)])
    b.add(SpanLinear(one.ref, refs[0], weight, group.spans, t, bias, reach, activation=one.function))
