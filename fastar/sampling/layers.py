"""Lowerings of torch.nn's layers and of fastar.nn's, for `fastar.sampling.lower`."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from fastar.nn import MaskedLinear
from fastar.sampling.instructions import Gather, Linear, Norm
from fastar.sampling.lower import Signal, Step, Symbols, lower_module, register

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


@register(nn.Embedding)
def embedding(layer: nn.Embedding, x: object, step: Step) -> Signal:
    """A row of the table."""
    if not isinstance(x, Symbols):
        raise step.refuse("an embedding takes the module's symbols")
    if layer.max_norm is not None:
        raise step.refuse("Embedding with max_norm changes its weights as it runs")
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


def activation_name(layer: nn.Module) -> str | None:
    """The instruction set's name of an activation layer, None for any other layer."""
    if isinstance(layer, nn.GELU):
        return "gelu_tanh" if layer.approximate == "tanh" else "gelu"
    if isinstance(layer, nn.ELU):
        return "elu" if layer.alpha == 1 else None
    if isinstance(layer, nn.Softplus):
        return "softplus" if layer.beta == 1 else None
    return _ACTIVATIONS.get(type(layer))


@register(*_ACTIVATIONS, nn.GELU, nn.ELU, nn.Softplus)
def activation(layer: nn.Module, x: object, step: Step) -> Signal:
    """An activation without learned parameters."""
    name = activation_name(layer)
    if name is None:
        raise step.refuse(f"{layer} is none of the activations that a program has")
    return step.elementwise(name, step.signal(x))


@register(nn.Identity, nn.Dropout)
def identity(layer: nn.Module, x: object, step: Step) -> object:
    """Sampling drops nothing out."""
    return x


@register(nn.Sequential)
def sequential(layer: nn.Sequential, x: object, step: Step) -> object:
    """One after the other."""
    path = step.path
    for name, child in layer.named_children():
        step.path = f"{path}.{name}" if path else name
        x = lower_module(child, x, step)  # type: ignore[arg-type]
    step.path = path
    return x
