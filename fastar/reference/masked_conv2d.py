"""y = act(conv2d(pad(x), W * M) + b), with M a PixelCNN mask of type A or B, or any other; also transposed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastar.reference import activation as activations


def colours_of(channels: int, colours: int, colour_layout: str, device: torch.device | str | None = None) -> Tensor:
    """The colour of each channel: c mod colours (interleaved) or floor(c * colours / channels) (contiguous)."""
    c = torch.arange(channels, device=device)
    return c % colours if colour_layout == "interleaved" else c * colours // channels


def colours_see(
    outputs: int,
    inputs: int,
    mask_type: str,
    colours: int,
    colour_layout: str,
    device: torch.device | str | None = None,
) -> Tensor:
    """Which channels see which at the centre, bool [outputs, inputs]: earlier colours, with type B also their own."""
    theirs = colours_of(inputs, colours, colour_layout, device)[None, :]
    own = colours_of(outputs, colours, colour_layout, device)[:, None]
    return theirs < own if mask_type == "A" else theirs <= own


def raster_mask(shape: Sequence[int], mask_type: str, colours: int = 1, colour_layout: str = "interleaved") -> Tensor:
    """The mask [out, in, height, width]: taps before the centre in raster order, and the centre by type and colour."""
    outputs, inputs, height, width = shape
    mask = torch.zeros(outputs, inputs, height, width, dtype=torch.bool)
    mask[:, :, : height // 2] = True
    mask[:, :, height // 2, : width // 2] = True
    if colours == 1:
        mask[:, :, height // 2, width // 2] = mask_type == "B"
    else:
        mask[:, :, height // 2, width // 2] = colours_see(outputs, inputs, mask_type, colours, colour_layout)
    return mask


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    activation: str = "none",
    transposed: bool = False,
) -> Tensor:
    """``act(F.conv2d(F.pad(x, padding), weight * mask, bias, stride))``, padding as (left, right, top, bottom).

    Transposed, ``act(crop(F.conv_transpose2d(x, weight * mask, bias, stride)))``, where padding says what is cropped.
    """
    # where, not a product: a masked weight that is infinite or NaN must not reach the output.
    visible = (
        weight if mask is None else torch.where(mask, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))
    )
    if transposed:
        z = F.pad(F.conv_transpose2d(x, visible, bias, list(stride)), [-size for size in padding])
    else:
        z = F.conv2d(F.pad(x, list(padding)), visible, bias, list(stride))
    return activations.apply(activation, z, 1)
