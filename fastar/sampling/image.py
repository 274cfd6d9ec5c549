"""Lowering over images: from a module over [B, C, H, W] to a program that draws pixel by pixel, colour by colour.

A plane is computed as soon as what it looks at is known, and once: before everything (conditions), in a loop over
columns before the row's pixels are drawn (vertical stacks), with the pixel, or after the row. With the pixel each
channel has a phase, the number of the pixel's own draws that it needs. Channels are stored sorted by phase, so that
what a phase computes is a span of channels and what it reads of the pixel itself is a prefix. Planes that somebody
looks back at are kept in caches of as many rows as that takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from fastar.sampling.builder import Builder
from fastar.sampling.fuse import fuse
from fastar.sampling.image_emit import Emitter
from fastar.sampling.image_plan import AFTER, BEFORE, make_plan, visit
from fastar.sampling.index import Index
from fastar.sampling.instructions import Draw, Head, Store
from fastar.sampling.planes import CENTRE, At, Canvas, Given, Pixels, Planes
from fastar.sampling.program import Program, Value
from fastar.sampling.trace import lower_module


def image(
    module: nn.Module,
    head: Head,
    shape: Sequence[int],
    *,
    name: str = "image",
    colour_major: bool = True,
    scale: float = 1.0,
    shift: float = 0.0,
    inputs: Mapping[str, Sequence[int]] | None = None,
) -> Program:
    """The program of a module from [B, C, H, W], shape = (C, H, W), to [B, C * P, H, W], P = head.params.

    Colours are drawn one after the other: position (h * W + w) * C + c. Output c * P + k (k * C + c if not
    `colour_major`) is parameter k of colour c, and may depend only on pixels before its own in raster order and on
    earlier colours of its own. A head of C channels draws a pixel's colours at once: position h * W + w, P outputs.
    Values enter as ``scale * x + shift``. `inputs` are further arguments of the module by name: (width,)
    for a vector [B, width], (H, W, channels) for a map, which a run brings with its channels last.
    """
    C, H, W = shape
    if head.channels not in (1, C):
        raise ValueError(f"head: expected 1 or {C} channels, got {head.channels}")
    draws = C // head.channels
    canvas = Canvas((H, W))
    pixels = Pixels("x", C)
    given = {one: _given(one, each, (H, W)) for one, each in (inputs or {}).items()}
    y = canvas.value(lower_module(module, Planes((At(pixels),)), canvas, given))
    canvas.path = ""
    if y.width != draws * head.params:
        raise canvas.refuse(f"it gives {y.width} channels, and the head {head} reads {draws} x {head.params}")
    out = y.pieces[0]
    if any(one.scale > 1 for one in visit(out.node)) and draws > 1:
        raise canvas.refuse("it changes the image's size, and so has to draw a pixel's colours at once")
    if len(y.pieces) > 1 or out.node.scale != 1 or (out.dy, out.dx) != CENTRE or isinstance(out.node, Pixels | Given):
        raise canvas.refuse("its output is no single layer's; end with a convolution of kernel size 1")
    unit = torch.arange(y.width)
    colour, parameter = (unit // head.params, unit % head.params) if colour_major else (unit % draws, unit // draws)
    plan = make_plan(out.node, pixels, head.channels, colour, parameter)

    levels = 2 if head.kind == "bernoulli" else head.levels
    value = Value("float", head.channels) if levels is None else Value("int", head.channels, levels)
    b = Builder(name, value, H * W * draws)
    emitter = Emitter(b, plan, (H, W))
    emitter.allocate()
    emitter.once()
    with b.loop("h", H):
        emitter.rows(BEFORE)
        with b.loop("w", W):
            for c in range(draws):
                emitter.pixel(c)
                position = Index(c, tuple(sorted({"h": W * draws, "w": draws}.items())))
                b.add(Draw(head, position, emitter.at(out.node).channels(c * head.params, head.params)))
                if pixels in plan.storage:
                    known = emitter.at(pixels).channels(c * head.channels, head.channels)
                    b.add(Store(known, position, scale, shift))
            emitter.pixel(draws)
        emitter.rows(AFTER)
    places = [(c * H + h) * W + w for h in range(H) for w in range(W) for c in range(C)]
    return fuse(b.build(shape=(C, H, W), layout=None if C == 1 else b.table("layout", places)))


def _given(name: str, shape: Sequence[int], size: tuple[int, int]) -> Planes:
    if len(shape) == 1:
        return Planes((At(Given(name, shape[0], scale=0)),), vector=True)
    if len(shape) != 3 or tuple(shape[:2]) != size:
        raise ValueError(f"inputs: expected {name} to be (width,) or {(*size, 'channels')}, got {tuple(shape)}")
    return Planes((At(Given(name, shape[2], spatial=True)),))
