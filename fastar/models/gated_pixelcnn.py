"""GatedPixelCNN: images by two stacks of gated convolutions that leave no blind spot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastar import _checks
from fastar.distributions import Categorical
from fastar.models._images import ImageModel
from fastar.nn import GatedPixelCNNBlock, MaskedConv2d


class GatedPixelCNN(ImageModel):
    """p(x) = prod over rows, columns and colours of softmax(gated stacks over what came before) [x].

    A block of type "A" on the image, `depth` - 1 of type "B", and of the horizontal stack relu, 1 x 1, relu, 1 x 1.

    Args:
        shape: (channels, height, width).
        levels: values of a colour.
        width: channels of both stacks.
        depth: number of blocks.
        kernel_size: of the first block.
        block_kernel_size: of the others.
        head_width: channels of the last hidden layer; `width` unless given.
        colour_layout: channel c of a layer sees with colour c mod channels ("interleaved"; the logits are then
            level * channels + colour) or with the c-th of equal groups ("contiguous"; colour * levels + level).
        vertical: how the vertical stack's kernels are stored: "masked", "cropped" or "factored".
        cond_dim: size of a vector to condition on, or number of classes.
        cond_map: channels of a map [B, cond_map, H, W] to condition on.

    x [B, C, H, W] int; ``model(x)`` [B, C, levels, H, W].
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "imagenet32": {"shape": [3, 32, 32], "width": 384, "depth": 20, "head_width": 1024},
    }

    def __init__(
        self,
        shape: Sequence[int],
        levels: int = 256,
        *,
        width: int = 128,
        depth: int = 10,
        kernel_size: int = 7,
        block_kernel_size: int = 5,
        head_width: int | None = None,
        colour_layout: str = "interleaved",
        vertical: str = "masked",
        cond_dim: int = 0,
        cond_map: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            shape=list(shape) if isinstance(shape, Sequence) else shape,
            levels=levels,
            width=width,
            depth=depth,
            kernel_size=kernel_size,
            block_kernel_size=block_kernel_size,
            head_width=head_width,
            colour_layout=colour_layout,
            vertical=vertical,
            cond_dim=cond_dim,
            cond_map=cond_map,
        )
        self.set_up(shape, Categorical(levels), cond_dim, cond_map)
        self.colour_major = colour_layout == "contiguous"
        colours = self.shape[0]
        masked: dict[str, Any] = {"colours": colours, "colour_layout": colour_layout, "device": device, "dtype": dtype}
        given = {"vertical": vertical, "cond_channels": cond_dim, "cond_map_channels": cond_map, **masked}
        _checks.positive("width", width)
        rest = range(_checks.positive("depth", depth) - 1)
        first = GatedPixelCNNBlock(colours, width, kernel_size, "A", **given)
        others = (GatedPixelCNNBlock(width, width, block_kernel_size, "B", **given) for _ in rest)
        wide = width if head_width is None else _checks.positive("head_width", head_width)
        self.network = _Network(
            [first, *others],
            MaskedConv2d(width, wide, 1, "B", activation="relu", **masked),
            MaskedConv2d(wide, colours * levels, 1, "B", **masked),
        )


class _Network(nn.Module):
    def __init__(self, blocks: Sequence[GatedPixelCNNBlock], post: MaskedConv2d, last: MaskedConv2d) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.post, self.last = post, last

    def forward(self, x: Tensor, cond: Tensor | None = None, cond_map: Tensor | None = None) -> Tensor:
        vertical = horizontal = x
        for block in self.blocks:
            vertical, horizontal = block(vertical, horizontal, cond, cond_map)
        return self.last(self.post(F.relu(horizontal)))  # type: ignore[no-any-return]
