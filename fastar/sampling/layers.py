"""Lowerings of torch.nn's layers and of fastar.nn's, for `fastar.sampling.lower`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fastar.nn import CausalConv1d, CausalSelfAttention, MaskedLinear
from fastar.reference.attention import furthest
from fastar.sampling.index import Ref
from fastar.sampling.instructions import Attention, Cell, Elementwise, Gather, Linear, Norm, TappedLinear
from fastar.sampling.lower import POSITIONS, Constant, Signal, Step, Symbols
from fastar.sampling.trace import IMAGE, SEQUENCE, Lowering, register

_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "silu",
}


@register(nn.Linear)
def linear(layer: nn.Linear, x: object, step: Step) -> Signal:
    """y = W x + b."""
    source = step.signal(x, last=True)
    out = step.scratch(layer.out_features)
    weight, bias = step.weight("weight", layer.weight), step.optional("bias", layer.bias)
    step.builder.add(Linear(out, source.ref, weight, bias))
    return replace(source, ref=out)


@register(MaskedLinear)
def masked_linear(layer: MaskedLinear, x: object, step: Step) -> Signal:
    """y = act((W * M) x + b): along the channels of one position a mask is only a matrix with zeros."""
    source = step.signal(x, last=True)
    out = step.scratch(layer.out_features)
    zero = torch.zeros((), dtype=layer.weight.dtype, device=layer.weight.device)
    weight = step.weight("weight", torch.where(layer.dense_mask(), layer.weight.detach(), zero))
    fused = "none" if layer.activation == "concat_elu" else layer.activation
    step.builder.add(Linear(out, source.ref, weight, step.optional("bias", layer.bias), activation=fused))
    y = replace(source, ref=out)
    return step.elementwise("concat_elu", y) if layer.activation == "concat_elu" else y


@register(nn.Conv1d)
def conv1d(layer: nn.Conv1d, x: object, step: Step) -> Signal:
    """A convolution of kernel size 1 is a linear layer over channels; a wider one may see the future."""
    if layer.kernel_size != (1,):
        raise step.refuse(f"Conv1d of kernel size {layer.kernel_size[0]} is not causal; use fastar.nn.CausalConv1d")
    if layer.groups != 1 or layer.stride != (1,) or layer.padding not in ((0,), "same", "valid"):
        raise step.refuse("Conv1d with groups, a stride or padding has no lowering")
    source = step.signal(x, last=False)
    out = step.scratch(layer.out_channels)
    weight = step.weight("weight", layer.weight.detach()[:, :, 0].contiguous())
    step.builder.add(Linear(out, source.ref, weight, step.optional("bias", layer.bias)))
    return replace(source, ref=out)


@register(CausalConv1d)
def causal_conv1d(layer: CausalConv1d, x: object, step: Step) -> Signal:
    """Taps on a ring of the last inputs; groups one by one, and where a group is a channel all of them together."""
    source = step.signal(x, last=False)
    if source.ref.width != layer.in_channels:
        raise step.refuse(f"takes {layer.in_channels} channels, gets {source.ref.width}")
    if 1 < layer.groups == layer.in_channels == layer.out_channels:
        return _depthwise(layer, source, step)
    source = replace(source, ref=step.ring(source.ref, layer.reach))
    out = step.scratch(layer.out_channels)
    taps = [(-k * layer.dilation,) for k in reversed(range(layer.kernel_size))]
    fused = "none" if layer.activation == "concat_elu" else layer.activation
    into, width = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    for g in range(layer.groups):
        rows = slice(g * width, (g + 1) * width)
        part = "" if layer.groups == 1 else f".{g}"
        weight = step.weight(f"weight{part}", layer.weight.detach()[rows].transpose(1, 2).contiguous())
        bias = step.optional(f"bias{part}", None if layer.bias is None else layer.bias.detach()[rows])
        step.builder.add(
            TappedLinear(
                out.channels(g * width, width),
                source.ref.channels(g * into, into),
                tuple(taps),
                weight,
                bias,
                activation=fused,
            )
        )
    y = replace(source, ref=out)
    return step.elementwise("concat_elu", y) if layer.activation == "concat_elu" else y


def _depthwise(layer: CausalConv1d, source: Signal, step: Step) -> Signal:
    # A channel sees itself only: each tap is a product element by element, for all channels at once. The ring is moved
    # by the reach, so that what lies before the first position is a zero in it.
    b, width, at = step.builder, layer.in_channels, step.position + layer.reach
    past = b.state(step.name("past"), layer.reach + 1, width, ring=True)
    b.add(Elementwise(past.at(at), "none", source.ref))

    def constant(part: str, values: Tensor) -> Ref:
        return b.state(step.name(f"{part}s"), width, init=step.weight(part, values.detach().contiguous())).at()

    total = None if layer.bias is None else constant("bias", layer.bias)
    for k in range(layer.kernel_size):
        weight = constant(f"weight.{k}", layer.weight[:, 0, layer.kernel_size - 1 - k])
        part = step.scratch(width)
        b.add(Elementwise(part, "mul", past.at(at - k * layer.dilation), weight))
        if total is not None:
            summed = step.scratch(width)
            b.add(Elementwise(summed, "add", part, total))
            part = summed
        total = part
    assert total is not None
    y = replace(source, ref=total)
    return y if layer.activation == "none" else step.elementwise(layer.activation, y)


@register(nn.Embedding)
def embedding(layer: nn.Embedding, x: object, step: Step) -> Signal:
    """A row of the table: the symbol's, or the position's."""
    if x is not POSITIONS and not isinstance(x, Symbols):
        raise step.refuse("an embedding takes the module's symbols, or their positions")
    if layer.max_norm is not None:
        raise step.refuse("Embedding with max_norm changes its weights as it runs")
    if not isinstance(x, Symbols):
        return step.gather(layer.weight, "weight")
    out = step.scratch(layer.embedding_dim)
    step.builder.add(Gather(out, step.weight("weight", layer.weight), x.position, first=x.first))
    return Signal(out)


@register(nn.LayerNorm)
def layer_norm(layer: nn.LayerNorm, x: object, step: Step) -> Signal:
    """Norm over the channels."""
    source = step.signal(x, last=True)
    if layer.normalized_shape != (source.ref.width,):
        raise step.refuse(f"LayerNorm over {list(layer.normalized_shape)} of {source.ref.width} channels")
    out = step.scratch(source.ref.width)
    weight, bias = step.optional("weight", layer.weight), step.optional("bias", layer.bias)
    step.builder.add(Norm(out, source.ref, "layer", weight, bias, layer.eps))
    return replace(source, ref=out)


@register(nn.RMSNorm)
def rms_norm(layer: nn.RMSNorm, x: object, step: Step) -> Signal:
    """Root-mean-square norm over the channels; without eps it takes the machine epsilon of the weight's dtype."""
    source = step.signal(x, last=True)
    if tuple(layer.normalized_shape) != (source.ref.width,):
        raise step.refuse(f"RMSNorm over {list(layer.normalized_shape)} of {source.ref.width} channels")
    dtype = torch.float32 if layer.weight is None else layer.weight.dtype
    eps = torch.finfo(dtype).eps if layer.eps is None else layer.eps
    out = step.scratch(source.ref.width)
    step.builder.add(Norm(out, source.ref, "rms", step.optional("weight", layer.weight), None, eps))
    return replace(source, ref=out)


@register(CausalSelfAttention)
def causal_self_attention(layer: CausalSelfAttention, x: object, step: Step) -> Signal:
    """Keys and values of a position are cached: of all positions, or as many of the last as are ever looked back at."""
    source = step.signal(x, last=True)
    if source.ref.width != layer.width:
        raise step.refuse(f"takes {layer.width} channels, gets {source.ref.width}")
    newest, reach = step.last_position(), furthest(layer.window, layer.local)
    local = layer.window is not None or layer.local is not None
    if not local and newest == math.inf:
        raise step.refuse("caches every position, and the sequence has no bound; give `limit` or a window")
    # An image in which everything is near needs no ring; a window can be cut to what there is.
    slots = int(min(reach, newest)) + 1
    ring = local and (layer.local is None or slots > reach)
    b, width = step.builder, layer.width
    each = layer.kv_heads * (width // layer.heads)
    caches = [b.state(step.name(part), slots, each, ring=ring) for part in ("keys", "values")]
    query, out, mixed = step.scratch(width), step.scratch(width), step.scratch(width)
    places = [("query", query), ("key", caches[0].at(step.position)), ("value", caches[1].at(step.position))]
    weight, bias = layer.qkv.weight.detach(), layer.qkv.bias
    parts = zip(places, weight.split([width, each, each]), strict=True)
    for number, ((part, ref), rows) in enumerate(parts):
        one = None if bias is None else bias.detach().split([width, each, each])[number]
        b.add(Linear(ref, source.ref, step.weight(f"{part}.weight", rows), step.optional(f"{part}.bias", one)))
    keys, values = (one.buffer.name for one in caches)
    window = None if layer.window is None else slots
    scale = (width // layer.heads) ** -0.5
    heads = (layer.heads, layer.kv_heads)
    b.add(
        Attention(mixed, query, keys, values, step.position, *heads, scale, window, layer.local),
        Linear(out, mixed, step.weight("proj.weight", layer.proj.weight), step.optional("proj.bias", layer.proj.bias)),
    )
    return replace(source, ref=out)


@register(nn.RNN, nn.LSTM, nn.GRU)
def recurrent(layer: nn.RNNBase, x: object, step: Step) -> tuple[Signal, None]:
    """Layers of cells; their states begin at the given ones (parameters of the model), or at zero."""
    given = x[1:] if isinstance(x, tuple) else ()
    source = step.signal(x[0] if isinstance(x, tuple) else x, last=True)
    if not layer.batch_first or layer.bidirectional or layer.proj_size:
        raise step.refuse("a recurrent layer needs batch_first, and neither a second direction nor a projection")
    if isinstance(layer, nn.LSTM):
        given = given[0] if given and isinstance(given[0], tuple) else given
    if any(not isinstance(one, Constant) for one in given) or (isinstance(layer, nn.LSTM) and len(given) == 1):
        raise step.refuse("its first state is not a parameter of the model")
    kind = {"RNN_TANH": "tanh", "RNN_RELU": "relu", "LSTM": "lstm", "GRU": "gru"}[layer.mode]
    for k in range(layer.num_layers):
        states = [_first_state(layer, part, k, one, step) for part, one in _zip_states(kind, given)]
        h = states[0]
        gates = layer.hidden_size * {"lstm": 4, "gru": 3}.get(kind, 1)
        weights = [step.optional(f"{part}_l{k}", getattr(layer, f"{part}_l{k}", None)) for part in _PARTS]
        from_input, from_hidden = step.scratch(gates), step.scratch(gates)
        step.builder.add(Linear(from_input, source.ref, str(weights[0]), weights[2]))
        if kind == "gru":
            step.builder.add(Linear(from_hidden, h, str(weights[1]), weights[3]))
            step.builder.add(Cell(kind, h, from_input, from_hidden, hidden=h))
        else:
            activation = "relu" if kind == "relu" else "none"
            step.builder.add(Linear(from_hidden, h, str(weights[1]), weights[3], from_input, activation))
            if kind == "relu":
                step.builder.add(Elementwise(h, "none", from_hidden))
            else:
                c = states[1] if kind == "lstm" else None
                step.builder.add(Cell(kind, h, from_hidden, cell=c, cell_out=c))
        source = Signal(h)
    return source, None


_PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _zip_states(kind: str, given: Sequence[Constant]) -> list[tuple[str, Constant | None]]:
    parts = ("h", "c") if kind == "lstm" else ("h",)
    return [(part, given[i] if given else None) for i, part in enumerate(parts)]


def _first_state(layer: nn.RNNBase, part: str, k: int, given: Constant | None, step: Step) -> Ref:
    init = None
    if given is not None:
        if given.tensor.numel() != layer.num_layers * layer.hidden_size:
            raise step.refuse(f"expected a first state [{layer.num_layers}, 1, {layer.hidden_size}]")
        init = step.weight(f"{part}_0.{k}", given.tensor.reshape(layer.num_layers, -1)[k])
    return step.builder.state(step.name(f"{part}{k}"), layer.hidden_size, init=init).at()


def activation_name(layer: nn.Module) -> str | None:
    """The instruction set's name of an activation layer, None for any other layer."""
    if isinstance(layer, nn.GELU):
        return "gelu_tanh" if layer.approximate == "tanh" else "gelu"
    if isinstance(layer, nn.ELU):
        return "elu" if layer.alpha == 1 else None
    if isinstance(layer, nn.Softplus):
        return "softplus" if layer.beta == 1 else None
    return _ACTIVATIONS.get(type(layer))


@register(*_ACTIVATIONS, nn.GELU, nn.ELU, nn.Softplus, over=(SEQUENCE, IMAGE))
def activation(layer: nn.Module, x: object, lowering: Lowering) -> object:
    """An activation without learned parameters."""
    name = activation_name(layer)
    if name is None:
        raise lowering.refuse(f"{layer} is none of the activations that a program has")
    return lowering.elementwise(name, lowering.value(x))


@register(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, over=(SEQUENCE, IMAGE))
def identity(layer: nn.Module, x: object, lowering: Lowering) -> object:
    """Sampling drops nothing out."""
    return x


@register(nn.Sequential, over=(SEQUENCE, IMAGE))
def sequential(layer: nn.Sequential, x: object, lowering: Lowering) -> object:
    """One after the other."""
    for name, child in layer.named_children():
        x = lowering.child(name, child, x)
    return x
