"""The instructions of a step program in torch, over buffers [rows, ...]: every op that is neither control nor draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fastar.reference.attention import visible
from fastar.sampling.arithmetic import FUNCTIONS, product, sigmoid, softmax, total
from fastar.sampling.index import Index, Ref
from fastar.sampling.instructions import (
    Accumulate,
    Attention,
    Cell,
    Elementwise,
    Gate,
    Gather,
    Instruction,
    Linear,
    Norm,
    Readout,
    SpanLinear,
    Store,
    TappedLinear,
)
from fastar.sampling.program import Program


class Machine:
    """Buffers, weights and loop variables of a run."""

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, Tensor],
        rows: int,
        dtype: torch.dtype,
        device: torch.device,
        inputs: Mapping[str, Tensor],
        values: Tensor,
    ) -> None:
        self.weights = weights
        self.values = values
        self.done = 0
        self.variables: dict[str, int] = {}
        self.shapes = {one.name: one for one in program.buffers}
        self.buffers: dict[str, Tensor] = {}
        for one in program.buffers:
            if one.kind == "input":
                self.buffers[one.name] = inputs[one.name].to(device, dtype)
            elif one.init is not None:
                self.buffers[one.name] = weights[one.init].to(dtype).expand(rows, *one.shape).clone()
            else:
                self.buffers[one.name] = torch.zeros(rows, *one.shape, dtype=dtype, device=device)

    def view(self, ref: Ref, tap: tuple[int, ...] | None = None) -> Tensor | None:
        """The channels of a reference, or None for a tap that is outside."""
        buffer = self.buffers[ref.buffer]
        for axis, index in enumerate(ref.at):
            at = index.at(self.variables) + (tap[axis] if tap else 0)
            ring = self.shapes[ref.buffer].ring and axis == 0
            if at < 0 or (at >= buffer.shape[1] and not ring):
                return None
            # Each coordinate taken drops a dimension, so that the next one is dimension 1 again.
            buffer = buffer[:, at % buffer.shape[1]]
        start = ref.offset.at(self.variables)
        return buffer[:, start : start + ref.width]

    def read(self, ref: Ref) -> Tensor:
        """The channels of a reference, which is inside by the program's validity."""
        x = self.view(ref)
        assert x is not None
        return x

    def write(self, ref: Ref, y: Tensor) -> None:
        """Put new channels in their place."""
        self.read(ref).copy_(y)

    def value(self, position: Index, channel: int) -> Tensor | None:
        """A value [rows] of an earlier position, None before the first."""
        at = position.at(self.variables)
        return None if at < 0 else self.values[:, at, channel]

    def finish(self, step: Linear | TappedLinear | SpanLinear, y: Tensor, bias: Tensor | None, rows: slice) -> None:
        """out = act(y + bias + add)."""
        if bias is not None:
            y = y + bias
        if step.add is not None:
            y = y + self.read(step.add)[:, rows]
        self.read(step.out)[:, rows] = FUNCTIONS[step.activation](y)


def _banked(m: Machine, step: Linear | TappedLinear) -> tuple[Tensor, Tensor | None]:
    weight, bias = m.weights[step.weight], None if step.bias is None else m.weights[step.bias]
    if step.bank is None:
        return weight, bias
    i = step.bank.at(m.variables)
    return weight[i], None if bias is None else bias[i]


def linear(m: Machine, step: Linear) -> None:
    weight, bias = _banked(m, step)
    m.finish(step, product(m.read(step.source), weight), bias, slice(None))


def tapped_linear(m: Machine, step: TappedLinear) -> None:
    weight, bias = _banked(m, step)
    inside = [(k, x) for k, tap in enumerate(step.taps) if (x := m.view(step.source, tap)) is not None]
    out = m.read(step.out)
    y = torch.zeros_like(out)
    if inside:
        y = product(torch.cat([x for _, x in inside], 1), weight[:, [k for k, _ in inside]].flatten(1))
    m.finish(step, y, bias, slice(None))


def span_linear(m: Machine, step: SpanLinear) -> None:
    i = step.index.at(m.variables)
    rows = slice(*m.weights[step.spans][i : i + 2].tolist())
    reach = step.source.width if step.reach is None else int(m.weights[step.reach][i])
    y = product(m.read(step.source)[:, :reach], m.weights[step.weight][rows, :reach])
    m.finish(step, y, None if step.bias is None else m.weights[step.bias][rows], rows)


def gather(m: Machine, step: Gather) -> None:
    table, base = m.weights[step.table], step.base.at(m.variables)
    value = None if step.position is None else m.value(step.position, step.channel)
    if value is not None:
        y = table[base + value.long()]
    elif step.position is None or step.first is not None:
        y = table[base + (step.first or 0)].expand_as(m.read(step.out))
    else:
        y = torch.zeros_like(m.read(step.out))
    m.write(step.out, y if step.add is None else y + m.read(step.add))


def accumulate(m: Machine, step: Accumulate) -> None:
    value = m.value(step.position, step.channel)
    if value is not None:
        x = (step.scale * value + step.shift).to(m.read(step.out).dtype)
        m.write(step.out, m.read(step.out) + x[:, None] * m.weights[step.table][step.row.at(m.variables)])


def readout(m: Machine, step: Readout) -> None:
    row = step.row.at(m.variables)
    y = product(FUNCTIONS[step.activation](m.read(step.source)), m.weights[step.weight][row])
    m.write(step.out, y if step.bias is None else y + m.weights[step.bias][row])


def gate(m: Machine, step: Gate) -> None:
    a, b = m.read(step.a), m.read(step.b)
    if step.function == "tanh":
        a = torch.tanh(a)
    m.write(step.out, a * (FUNCTIONS["silu"](b) if step.function == "silu" else sigmoid(b)))


def elementwise(m: Machine, step: Elementwise) -> None:
    a, b = m.read(step.a), None if step.b is None else m.read(step.b)
    span = slice(None)
    if step.spans is not None and step.index is not None:
        i = step.index.at(m.variables)
        span = slice(*m.weights[step.spans][i : i + 2].tolist())
    a = a[:, span]
    if step.function == "clamp":
        y = a.clamp(step.alpha, step.beta)
    elif b is None:
        y = FUNCTIONS[step.function](step.alpha * a + step.beta)
    elif step.function == "add":
        y = step.alpha * a + b[:, span]
    else:
        y = step.alpha * a * b[:, span]
    m.read(step.out)[:, span] = y


def norm(m: Machine, step: Norm) -> None:
    x = m.read(step.source)
    if step.kind == "layer":
        x = x - total(x)[:, None] / x.shape[1]
    y = x / torch.sqrt(total(x * x)[:, None] / x.shape[1] + step.eps)
    if step.weight is not None:
        y = y * m.weights[step.weight]
    m.write(step.out, y if step.bias is None else y + m.weights[step.bias])


def attention(m: Machine, step: Attention) -> None:
    newest = step.newest.at(m.variables)
    keys, values = m.buffers[step.keys], m.buffers[step.values]
    slots = torch.arange(newest + 1, device=keys.device)
    slots = slots[visible(slots[-1:], slots, step.window, step.local)[0]]
    B, group = keys.shape[0], step.heads // step.kv_heads
    K = keys[:, slots % keys.shape[1]].view(B, len(slots), step.kv_heads, -1).repeat_interleave(group, 2)
    V = values[:, slots % values.shape[1]].view(B, len(slots), step.kv_heads, -1).repeat_interleave(group, 2)
    q = m.read(step.query).reshape(B, 1, step.heads, -1)
    p = softmax((total(q * K) * step.scale).transpose(1, 2))
    m.write(step.out, total(p[..., None, :] * V.permute(0, 2, 3, 1)).flatten(1))


def cell(m: Machine, step: Cell) -> None:
    gates = m.read(step.input_gates)
    hidden = None if step.hidden_gates is None else m.read(step.hidden_gates)
    if step.kind == "gru":
        assert hidden is not None
        assert step.hidden is not None
        H = step.out.width
        r, z = (sigmoid(gates[:, k : k + H] + hidden[:, k : k + H]) for k in (0, H))
        n = torch.tanh(gates[:, 2 * H :] + r * hidden[:, 2 * H :])
        m.write(step.out, (1 - z) * n + z * m.read(step.hidden))
        return
    G = gates if hidden is None else gates + hidden
    if step.kind == "tanh":
        m.write(step.out, torch.tanh(G))
        return
    assert step.cell is not None
    assert step.cell_out is not None
    i, f, g, o = G.chunk(4, 1)
    c = sigmoid(f) * m.read(step.cell) + sigmoid(i) * torch.tanh(g)
    m.write(step.cell_out, c)
    m.write(step.out, sigmoid(o) * torch.tanh(c))


def store(m: Machine, step: Store) -> None:
    at = step.position.at(m.variables)
    out = m.read(step.out)
    out.copy_(torch.full_like(out, step.first) if at < 0 else step.scale * m.values[:, at] + step.shift)


_OPS = (
    linear,
    tapped_linear,
    span_linear,
    gather,
    accumulate,
    readout,
    gate,
    elementwise,
    norm,
    attention,
    cell,
    store,
)
EXECUTE: dict[type[Instruction], Callable[..., None]] = {
    cls: op for cls in Instruction.__subclasses__() for op in _OPS if op.__name__ == cls.op
}
