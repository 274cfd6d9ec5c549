"""WaveNets of two widely used projects, which differ in scalings and in how they name the two halves of a gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastar.convert._tensors import Tensors
from fastar.distributions import Distribution
from fastar.models import WaveNet

State = dict[str, Tensor]


def wavenet(
    tensors: Mapping[str, Tensor],
    dilations: Sequence[int],
    head: Distribution | str | Mapping[str, Any] | None = None,
    *,
    start: int | None = None,
    ignore: Sequence[str] = (),
) -> WaveNet:
    """A WaveNet with another project's weights; weight norm is folded in.

    Knows r9y9's wavenet_vocoder (``conv_layers.0.conv``: one convolution with both halves, sqrt(1/2) on the residual,
    sqrt(1/layers) on the skip sum; its speakers become classes) and vincentherrmann's pytorch-wavenet
    (``filter_convs.0`` and ``gate_convs.0``, no scaling).

    Features are taken at the rate of the samples: the network that raises them there, ``upsample_net.``, is no part of
    this model and belongs in `ignore`.

    Args:
        tensors: the state dict.
        dilations: of each layer; no shape tells them.
        head: the distribution that the outputs parametrise; as many symbols as there are outputs unless given.
        start: the symbol that stands before the first one, 127 as wavenet_vocoder samples; by default nothing does,
            and zeros enter in its place.
        ignore: beginnings of names that do not count.
    """
    left = Tensors(tensors, ignore)
    if "filter_convs.0.weight" in left:
        model = _separate(left, list(dilations), head, start)
    else:
        model = _joint(left, list(dilations), head, start)
    return model.eval()


def _joint(left: Tensors, dilations: list[int], head: Any, start: int | None) -> WaveNet:
    layers = left.count("conv_layers.{}.")
    _check(dilations, layers)
    state: State = {}
    enter = _conv(left, "first_conv")
    speakers = left.optional("embed_speakers.weight", "speakers", "channels")
    has_local = any(".conv1x1c." in name for name in left.names)
    whole = 0
    for number in range(layers):
        theirs, ours = f"conv_layers.{number}", f"blocks.{number}"
        weight, shift = _conv(left, f"{theirs}.conv")
        if has_local:
            state[f"{ours}.local_conv.weight"], more = _conv(left, f"{theirs}.conv1x1c")
            shift = shift + more
        if any(name.startswith(f"{theirs}.conv1x1g.") for name in left.names):
            vector, more = _conv(left, f"{theirs}.conv1x1g")
            matrix = vector[:, :, 0]
            state[f"{ours}.global_linear.weight"] = matrix if speakers is None else matrix @ speakers.T
            whole, shift = state[f"{ours}.global_linear.weight"].shape[1], shift + more
        state[f"{ours}.conv.weight"], state[f"{ours}.conv.bias"] = weight, shift
        _entries(state, f"{ours}.residual_conv", *_conv(left, f"{theirs}.conv1x1_out"))
        _entries(state, f"{ours}.skip_conv", *_conv(left, f"{theirs}.conv1x1_skip"))
    for theirs, ours in (("last_conv_layers.1", "post"), ("last_conv_layers.3", "last")):
        _entries(state, ours, *_conv(left, theirs))
    return _model(
        left,
        state,
        enter,
        dilations,
        head,
        start,
        local_cond=state["blocks.0.local_conv.weight"].shape[1] if has_local else 0,
        global_cond=whole,
        residual_scale=0.5**0.5,
        skip_scale=layers**-0.5,
    )


def _separate(left: Tensors, dilations: list[int], head: Any, start: int | None) -> WaveNet:
    layers = left.count("filter_convs.{}.")
    _check(dilations, layers)
    state: State = {}
    enter = _conv(left, "start_conv")
    for number in range(layers):
        for theirs, ours in (
            ("filter_convs", "filter_conv"),
            ("gate_convs", "gate_conv"),
            ("residual_convs", "residual_conv"),
            ("skip_convs", "skip_conv"),
        ):
            _entries(state, f"blocks.{number}.{ours}", *_conv(left, f"{theirs}.{number}"))
    for theirs, ours in (("end_conv_1", "post"), ("end_conv_2", "last")):
        _entries(state, ours, *_conv(left, theirs))
    return _model(left, state, enter, dilations, head, start, separate=True)


def _model(
    left: Tensors,
    state: State,
    enter: tuple[Tensor, Tensor],
    dilations: list[int],
    head: Any,
    start: int | None,
    **options: Any,
) -> WaveNet:
    left.finish()
    weight, bias = enter
    conv = state["blocks.0.filter_conv.weight" if options.get("separate") else "blocks.0.conv.weight"]
    model = WaveNet(
        len(state["last.weight"]) if head is None else head,
        residual=len(weight),
        skip=len(state["blocks.0.skip_conv.weight"]),
        dilations=dilations,
        kernel_size=conv.shape[2],
        gate=state["blocks.0.residual_conv.weight"].shape[1],
        head_width=len(state["post.weight"]),
        start=start,
        dtype=weight.dtype,
        **options,
    )
    symbols = model.distribution.levels
    if weight.shape[1:] != (1 if symbols is None else symbols, 1):
        wanted = "a waveform" if symbols is None else f"{symbols} symbols"
        raise ValueError(f"head: expected one of {weight.shape[1]} channels entering, got one of {wanted}")
    if symbols is None:
        state |= {"enter.weight": weight, "enter.bias": bias}
    else:
        # A one-hot vector times the weight is the weight's column; where nothing stands, the bias alone is left.
        table = weight[:, :, 0].T + bias
        state["enter.0.weight"] = table if start is not None else torch.cat([table, bias[None]])
    model.load_state_dict(state)
    return model


def _conv(left: Tensors, path: str) -> tuple[Tensor, Tensor]:
    weight = left.weight(path, "out", "in", "taps")
    bias = left.optional(f"{path}.bias", len(weight))
    return weight, weight.new_zeros(len(weight)) if bias is None else bias


def _entries(state: State, path: str, weight: Tensor, bias: Tensor) -> None:
    state[f"{path}.weight"], state[f"{path}.bias"] = weight, bias


def _check(dilations: Sequence[int], layers: int) -> None:
    if layers == 0:
        raise ValueError("tensors: expected layers called conv_layers.0 or filter_convs.0, got none")
    if len(dilations) != layers:
        raise ValueError(f"dilations: expected one for each of {layers} layers, got {len(dilations)}")
