"""The lowering of a WaveNet's layer, for `fastar.sampling.lower`."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from fastar.nn import WaveNetBlock
from fastar.sampling.index import Ref
from fastar.sampling.instructions import Elementwise, Gate, Linear, TappedLinear
from fastar.sampling.lower import Signal, Step
from fastar.sampling.trace import register


@register(WaveNetBlock)
def wavenet_block(
    layer: WaveNetBlock,
    x: object,
    step: Step,
    *,
    local_cond: object = None,
    global_cond: object = None,
    hop: object = None,
    skip_sum: object = None,
) -> tuple[Signal, Signal]:
    """(residual, skip). Of `local_cond` a program reads the current frame, however long it lasts."""
    source = step.signal(x, last=False)
    if source.ref.width != layer.residual:
        raise step.refuse(f"takes {layer.residual} channels, gets {source.ref.width}")
    added: Ref | None = None
    for name, given, own in (
        ("local_cond", local_cond, layer.local_conv),
        ("global_cond", global_cond, layer.global_linear),
    ):
        if (given is None) != (own is None):
            raise step.refuse(f"{name}: expected {'none' if own is None else 'a tensor'}, as the block was made")
        if own is not None:
            out, weight = step.scratch(2 * layer.gate), step.weight(f"{name}.weight", own.weight.detach().flatten(1))
            step.builder.add(Linear(out, step.signal(given).ref, weight, add=added))
            added = out
    before = None if skip_sum is None else step.signal(skip_sum, last=False).ref
    residual, skip = block(layer, source.ref, step, added, before)
    return replace(source, ref=residual), replace(source, ref=skip)


def block(layer: WaveNetBlock, x: Ref, step: Step, conditioning: Ref | None, skip_sum: Ref | None) -> tuple[Ref, Ref]:
    """(residual, skip): taps on a ring of the last inputs, the gate, and what is linear in its result."""
    b, G = step.builder, layer.gate
    past = step.ring(x, layer.reach)
    gates, h, skip, residual = (step.scratch(width) for width in (2 * G, G, layer.skip, layer.residual))
    taps = tuple((-k * layer.dilation,) for k in reversed(range(layer.kernel_size)))
    weight = step.weight("conv.weight", layer.gate_weight().detach().transpose(1, 2).contiguous())
    b.add(
        TappedLinear(gates, past, taps, weight, step.optional("conv.bias", layer.gate_bias()), conditioning),
        Gate(h, "tanh", gates.channels(0, G), gates.channels(G, G)),
    )

    def mix(name: str, weight: Tensor, bias: Tensor | None, scale: float, out: Ref, add: Ref | None) -> None:
        w = step.weight(f"{name}.weight", weight.detach().squeeze(2) * scale)
        b.add(Linear(out, h, w, step.optional(f"{name}.bias", None if bias is None else bias * scale), add))

    mix("skip_conv", layer.skip_conv.weight, layer.skip_conv.bias, layer.skip_scale, skip, skip_sum)
    stream = past
    if layer.residual_scale != 1:
        stream = step.scratch(layer.residual)
        b.add(Elementwise(stream, "none", past, alpha=layer.residual_scale))
    own = layer.residual_conv
    mix("residual_conv", own.weight, own.bias, layer.residual_scale, residual, stream)
    return residual, skip
