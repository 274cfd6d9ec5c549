"""PixelCNN: images pixel by pixel, colour by colour, by masked convolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastar import _checks
from fastar.distributions import Categorical
from fastar.models._images import ImageModel
from fastar.nn import MaskedConv2d

BLOCKS = ("residual", "plain")


class PixelCNN(ImageModel):
    """p(x) = prod over rows, columns and colours of softmax(masked convolutions of what came before) [x].

    The paper's network: a convolution of type "A"; `depth` residual blocks, each relu, 1 x 1 to half the channels,
    relu, 3 x 3, relu, 1 x 1 back; twice relu and 1 x 1; the logits. With ``block="plain"`` a block is a 3 x 3
    convolution and a relu, and the logits follow at once.

    Args:
        shape: (channels, height, width).
        levels: values of a colour.
        width: channels of the network.
        depth: number of blocks.
        kernel_size: of the first convolution.
        block: "residual" or "plain".
        block_kernel_size: of the blocks' convolutions.
        head_width: channels of the last hidden layers; `width` unless given.
        colour_layout: channel c of a layer sees with colour c mod channels ("interleaved"; the logits are then
            level * channels + colour) or with the c-th of equal groups ("contiguous"; colour * levels + level).
        batch_norm: after every convolution of a block.
        cond_dim: size of a vector to condition on, or number of classes; each block has a matrix for it.
        cond_map: channels of a map [B, cond_map, H, W] to condition on; each block has a 1 x 1 convolution for it.

    x [B, C, H, W] int; ``model(x)`` [B, C, levels, H, W].
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10": {"shape": [3, 32, 32], "width": 256, "depth": 15, "head_width": 1024},
        "mnist": {"shape": [1, 28, 28], "levels": 2, "width": 32, "depth": 7, "head_width": 32},
        "plain-32x32": {"shape": [3, 32, 32], "width": 128, "depth": 8, "block": "plain"},
    }

    def __init__(
        self,
        shape: Sequence[int],
        levels: int = 256,
        *,
        width: int = 128,
        depth: int = 7,
        kernel_size: int = 7,
        block: str = "residual",
        block_kernel_size: int = 3,
        head_width: int | None = None,
        colour_layout: str = "interleaved",
        batch_norm: bool = False,
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
            block=block,
            block_kernel_size=block_kernel_size,
            head_width=head_width,
            colour_layout=colour_layout,
            batch_norm=batch_norm,
            cond_dim=cond_dim,
            cond_map=cond_map,
        )
        if block not in BLOCKS:
            raise ValueError(f"block: expected one of {', '.join(BLOCKS)}, got {block!r}")
        self.set_up(shape, Categorical(levels), cond_dim, cond_map)
        self.colour_major = colour_layout == "contiguous"
        colours = self.shape[0]
        masked: dict[str, Any] = {"colours": colours, "colour_layout": colour_layout, "device": device, "dtype": dtype}
        self.network = _Network(
            colours,
            _checks.positive("width", width),
            colours * levels,
            _checks.positive("depth", depth),
            kernel_size,
            block,
            block_kernel_size,
            width if head_width is None else _checks.positive("head_width", head_width),
            batch_norm,
            cond_dim,
            cond_map,
            masked,
        )


class _Block(nn.Module):
    # What changes the image's features: residual as in the paper, or plain.
    def __init__(
        self,
        width: int,
        kernel_size: int,
        residual: bool,
        batch_norm: bool,
        cond_dim: int,
        cond_map: int,
        masked: dict[str, Any],
    ) -> None:
        super().__init__()
        placed = {name: masked[name] for name in ("device", "dtype")}
        inner = max(1, width // 2) if residual else width
        self.narrow = MaskedConv2d(width, inner, 1, "B", **masked) if residual else None
        self.look = MaskedConv2d(inner, inner, kernel_size, "B", **masked)
        self.widen = MaskedConv2d(inner, width, 1, "B", **masked) if residual else None
        widths = [inner, inner, width] if residual else [inner]
        norms = (nn.BatchNorm2d(size, **placed) if batch_norm else nn.Identity() for size in widths)
        self.norms = nn.ModuleList(norms)
        self.cond = nn.Linear(cond_dim, inner, bias=False, **placed) if cond_dim else None
        self.cond_map = nn.Conv2d(cond_map, inner, 1, bias=False, **placed) if cond_map else None

    def forward(self, x: Tensor, cond: Tensor | None = None, cond_map: Tensor | None = None) -> Tensor:
        if self.narrow is None or self.widen is None:
            return F.relu(self._given(self.norms[0](self.look(x)), cond, cond_map))
        y = F.relu(self.norms[0](self.narrow(F.relu(x))))
        y = F.relu(self._given(self.norms[1](self.look(y)), cond, cond_map))
        return x + self.norms[2](self.widen(y))  # type: ignore[no-any-return]

    def _given(self, y: Tensor, cond: Tensor | None, cond_map: Tensor | None) -> Tensor:
        if self.cond is not None:
            y = y + self.cond(cond)[:, :, None, None]
        return y if self.cond_map is None else y + self.cond_map(cond_map)


class _Network(nn.Module):
    def __init__(
        self,
        colours: int,
        width: int,
        outputs: int,
        depth: int,
        kernel_size: int,
        block: str,
        block_kernel_size: int,
        head_width: int,
        batch_norm: bool,
        cond_dim: int,
        cond_map: int,
        masked: dict[str, Any],
    ) -> None:
        super().__init__()
        residual = block == "residual"
        first = None if residual else "relu"
        self.first = MaskedConv2d(colours, width, kernel_size, "A", activation=first, **masked)
        self.blocks = nn.ModuleList(
            _Block(width, block_kernel_size, residual, batch_norm, cond_dim, cond_map, masked) for _ in range(depth)
        )
        last = [MaskedConv2d(width, outputs, 1, "B", **masked)]
        if residual:
            last = [
                MaskedConv2d(width, head_width, 1, "B", activation="relu", **masked),
                MaskedConv2d(head_width, head_width, 1, "B", activation="relu", **masked),
                MaskedConv2d(head_width, outputs, 1, "B", **masked),
            ]
        self.residual = residual
        self.last = nn.Sequential(*last)

    def forward(self, x: Tensor, cond: Tensor | None = None, cond_map: Tensor | None = None) -> Tensor:
        y = self.first(x)
        for block in self.blocks:
            y = block(y, cond, cond_map)
        return self.last(F.relu(y) if self.residual else y)  # type: ignore[no-any-return]
