"""Lowerings over images of torch.nn's convolutions and of fastar.nn's, for `fastar.sampling.image`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastar.nn import (
    DiagonalLSTM,
    GatedPixelCNNBlock,
    MaskedConv2d,
    RowLSTM,
    ShiftedConv2d,
    VerticalStackConv2d,
)
from fastar.nn._tap_conv2d import TapConv2d
from fastar.ops.masked_conv2d import geometry_of
from fastar.ops.tap_plan import Geometry, full, looks, phases
from fastar.sampling.planes import Canvas, Phase, Planes
from fastar.sampling.trace import IMAGE, register


def _convolution(
    x: object,
    weight: Tensor,
    bias: Tensor | None,
    taps: tuple[int, ...],
    seen: Tensor | None,
    geometry: Geometry,
    activation: str,
    canvas: Canvas,
) -> Planes:
    # The surviving taps, each by where it looks from the pixel whose value it computes.
    if not isinstance(x, Planes) or x.vector:
        raise canvas.refuse("a convolution takes a float tensor [B, C, H, W]")
    if geometry.transposed:
        return _transposed(x, weight, bias, geometry, activation, canvas)
    if geometry.stride[0] != geometry.stride[1]:
        raise canvas.refuse(f"a stride of {list(geometry.stride)} has no lowering; the same in both directions has")
    kernel = weight.shape[2:]
    (left, right, top, bottom), (more_left, more_right, more_top, more_bottom) = geometry.padding, x.pad
    around = (top + bottom + more_top + more_bottom, left + right + more_left + more_right)
    if around != (kernel[0] - 1, kernel[1] - 1):
        raise canvas.refuse(
            f"a kernel of {list(kernel)} over an input padded by {list(around)} changes the image's size"
        )
    found = looks(taps, kernel, (top + more_top, left + more_left))
    numbers = [one.tap for one in found]
    flat = weight.detach().flatten(2)[:, :, numbers].transpose(1, 2)
    mask = None if seen is None else seen.flatten(2)[:, :, numbers].transpose(1, 2)
    unpadded = Planes(x.pieces)
    return canvas.product(
        unpadded, flat, [(one.dy, one.dx) for one in found], bias, mask, activation, geometry.stride[0]
    )


def _transposed(
    x: Planes, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str, canvas: Canvas
) -> Planes:
    # Each pixel sees the inputs whose distance to it the kernel covers: by the remainders of its row and column.
    if geometry.stride != (2, 2):
        raise canvas.refuse(f"a transposed convolution of stride {list(geometry.stride)} has no lowering; 2 has")
    kernel = weight.shape[2:]
    found = looks(full(kernel).taps, kernel, geometry.corner)
    each = []
    for row, column, seen in phases(found, (2, 2)):
        flat = weight.detach().flatten(2)[:, :, [one.tap for one in seen]].permute(1, 2, 0)
        each.append(Phase(row, column, tuple((one.dy, one.dx) for one in seen), flat))
    return canvas.raised(x, each, bias, activation)


@register(TapConv2d, MaskedConv2d, VerticalStackConv2d, ShiftedConv2d, over=IMAGE)
def tap_conv2d(layer: TapConv2d, x: object, canvas: Canvas) -> Planes:
    """A convolution over the taps that its mask leaves."""
    mask = layer.plan.dense(layer.weight.shape, layer.weight.device)
    return _convolution(x, layer.weight, layer.bias, layer.plan.taps, mask, layer.geometry, layer.activation, canvas)


@register(nn.Conv2d, over=IMAGE)
def conv2d(layer: nn.Conv2d, x: object, canvas: Canvas) -> Planes:
    """A convolution without a mask: of kernel size 1, or over an input that was padded so that it looks back only."""
    if layer.groups != 1 or layer.dilation != (1, 1) or layer.padding_mode != "zeros":
        raise canvas.refuse("Conv2d with groups, dilation or another padding than zeros has no lowering")
    kernel = (layer.kernel_size[0], layer.kernel_size[1])
    padding = (0, 0) if layer.padding == "valid" else layer.padding
    geometry = geometry_of(kernel, layer.stride, padding)
    return _convolution(x, layer.weight, layer.bias, full(kernel).taps, None, geometry, "none", canvas)


@register(GatedPixelCNNBlock, over=IMAGE)
def gated_pixelcnn_block(layer: GatedPixelCNNBlock, x: object, canvas: Canvas) -> tuple[Planes, Planes]:
    """The vertical stack once per row, the horizontal one with the pixel."""
    vertical, horizontal, cond, cond_map = (*x, None, None)[:4] if isinstance(x, tuple) else (x, None, None, None)
    if horizontal is None:
        raise canvas.refuse("takes both stacks")
    z = canvas.child("vertical", layer.vertical, vertical)
    above = canvas.shift(z, 1, 0) if layer.shift else z
    bridge = canvas.child("vertical_to_horizontal", layer.vertical_to_horizontal, above)
    across = canvas.elementwise("add", canvas.child("horizontal", layer.horizontal, horizontal), bridge)

    def gate(z: Planes, stack: str) -> Planes:
        for name, given in (("cond", cond), ("cond_map", cond_map)):
            if given is not None:
                z = canvas.elementwise("add", z, canvas.child(f"{name}.{stack}", getattr(layer, name)[stack], given))
        return canvas.gate("tanh", *canvas.chunk(z, 2, 1))

    h = canvas.child("horizontal_out", layer.horizontal_out, gate(across, "horizontal"))
    if layer.residual:
        h = canvas.elementwise("add", h, canvas.value(horizontal))
    return gate(z, "vertical"), h


@register(RowLSTM, DiagonalLSTM, over=IMAGE)
def image_lstm(layer: RowLSTM | DiagonalLSTM, x: object, canvas: Canvas) -> Planes:
    """One cell per pixel; the row above is kept, or of the cells the neighbour's."""
    own = layer.input_to_state
    found = looks(own.plan.taps, own.weight.shape[2:], own.geometry.corner)
    numbers = [one.tap for one in found]
    mask = own.plan.dense(own.weight.shape, own.weight.device)
    side = -1
    if isinstance(layer, RowLSTM):
        taps, cell = [(-1, k - layer.kernel_size // 2) for k in range(layer.kernel_size)], (-1, 0)
    else:
        side = -1 if layer.direction == "left_to_right" else 1
        taps, cell = [(-1, 0), (0, side)], (0, side)
    return canvas.recurrent(
        x,
        own.weight.flatten(2)[:, :, numbers].transpose(1, 2),
        [(one.dy, one.dx) for one in found],
        own.bias,
        None if mask is None else mask.flatten(2)[:, :, numbers].transpose(1, 2),
        layer.state_to_state,
        taps,
        cell,
        mirrored=side == 1,
    )


@register(nn.Linear, over=IMAGE)
def linear(layer: nn.Linear, x: object, canvas: Canvas) -> Planes:
    """Of a vector that belongs to the whole image."""
    if not canvas.value(x).vector:
        raise canvas.refuse("a linear layer over [B, C, H, W] acts along the image; use Conv2d of kernel size 1")
    return canvas.product(x, layer.weight[:, None], bias=layer.bias)


@register(nn.BatchNorm2d, over=IMAGE)
def batch_norm(layer: nn.BatchNorm2d, x: object, canvas: Canvas) -> Planes:
    """What the layer does when it does not train: an affine map of each channel."""
    if layer.running_mean is None or layer.running_var is None:
        raise canvas.refuse("BatchNorm2d without running statistics depends on the whole batch")
    value = canvas.value(x)
    if value.width != layer.num_features:
        raise canvas.refuse(f"takes {layer.num_features} channels, gets {value.width}")
    factor = torch.rsqrt(layer.running_var + layer.eps)
    factor = factor if layer.weight is None else factor * layer.weight.detach()
    shift = -factor * layer.running_mean
    shift = shift if layer.bias is None else shift + layer.bias.detach()
    return canvas.affine(value, factor, shift)
