"""PixelCNN++: images pixel by pixel, colours at once, by two streams over several scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm as with_weight_norm

from fastar import _checks
from fastar.distributions import LogisticMixture
from fastar.models._images import ImageModel
from fastar.nn import ShiftedConv2d

# The kernels of the two streams: the rows above, and above and to the left.
KERNELS = {"down": (2, 3), "down_right": (2, 2)}


class PixelCNNpp(ImageModel):
    """p(x) = prod over pixels of a mixture of discretised logistics, coupled over colours (Salimans et al., 2017).

    A stream u over the rows above and a stream ul over what comes before, which also reads u. On the way down `depth`
    gated residual blocks at each scale and a convolution of stride 2 between scales; on the way up as many (one more
    below the smallest) that take what was computed on the way down, and transposed convolutions.

    Args:
        shape: (channels, height, width); 2 ** (scales - 1) divides height and width.
        levels: values of a colour.
        components: logistics in the mixture.
        width: channels of both streams.
        depth: blocks per scale.
        scales: image sizes.
        dropout: within blocks, while training.
        cond_dim: size of a vector to condition on, or number of classes.
        weight_norm: learn every convolution's direction and length; see `initialise`.

    x [B, C, H, W] int; ``model(x)`` [B, params, H, W].
    """

    params_dim: ClassVar[int] = 1
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10": {"shape": [3, 32, 32], "width": 160, "depth": 5, "dropout": 0.5},
    }

    def __init__(
        self,
        shape: Sequence[int],
        levels: int = 256,
        *,
        components: int = 10,
        width: int = 160,
        depth: int = 5,
        scales: int = 3,
        dropout: float = 0.0,
        cond_dim: int = 0,
        weight_norm: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            shape=list(shape) if isinstance(shape, Sequence) else shape,
            levels=levels,
            components=components,
            width=width,
            depth=depth,
            scales=scales,
            dropout=dropout,
            cond_dim=cond_dim,
            weight_norm=weight_norm,
        )
        for name, size in (("width", width), ("depth", depth), ("scales", scales)):
            _checks.positive(name, size)
        channels = shape[0] if isinstance(shape, Sequence) and len(shape) == 3 else 1
        law = LogisticMixture(components=components, channels=channels, steps=levels)
        self.set_up(shape, law, cond_dim, 0)
        factor = 2 ** (scales - 1)
        if any(size % factor for size in self.shape[1:]):
            raise ValueError(f"shape: expected height and width divisible by {factor}, got {list(self.shape[1:])}")
        placed: dict[str, Any] = {"device": device, "dtype": dtype}
        self.network = _Network(channels + 1, width, law.params, depth, scales, dropout, cond_dim, placed)
        if weight_norm:
            for layer in _convolutions(self):
                with_weight_norm(layer, dim=1 if getattr(layer, "geometry", None) and layer.geometry.transposed else 0)  # type: ignore[union-attr]

    def forward(self, x: Tensor, cond: Any = None) -> Tensor:
        self.check(x, cond)
        return self._flat(x, cond)

    @torch.no_grad()
    def initialise(self, x: Tensor, cond: Any = None) -> None:
        """Scale and shift every convolution so that on this batch its outputs have mean 0 and deviation 1.

        (0.1 where a block's output is gated.) What the published model does before its first training step.
        """
        handles = [layer.register_forward_hook(_standardise) for layer in _convolutions(self)]
        try:
            self(x, cond)
        finally:
            for handle in handles:
                handle.remove()


def _convolutions(model: nn.Module) -> list[nn.Module]:
    return [layer for layer in model.modules() if isinstance(layer, ShiftedConv2d | nn.Conv2d)]


def _standardise(layer: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
    std, mean = torch.std_mean(out.float(), dim=(0, 2, 3), correction=0)
    factor = (getattr(layer, "initial_scale", 1.0) / (std + 1e-10)).to(out.dtype)
    mean = mean.to(out.dtype)
    transposed = isinstance(layer, ShiftedConv2d) and layer.geometry.transposed
    by_output = factor.view((1, -1, 1, 1) if transposed else (-1, 1, 1, 1))
    if parametrize.is_parametrized(layer):
        layer.parametrizations.weight.original0.mul_(by_output)  # type: ignore[union-attr, operator]
    else:
        layer.weight.mul_(by_output)  # type: ignore[operator]
    layer.bias.copy_((layer.bias - mean) * factor)  # type: ignore[union-attr, operator]
    return (out - mean[:, None, None]) * factor[:, None, None]


def _twice(x: Tensor) -> Tensor:
    return F.elu(torch.cat([x, -x], dim=1))


class _Block(nn.Module):
    # x + a sigmoid(b), (a, b) = conv(concat_elu(conv(concat_elu(x)) + nin(concat_elu(other)))) + V cond.
    def __init__(
        self, direction: str, width: int, other: int, dropout: float, cond_dim: int, placed: dict[str, Any]
    ) -> None:
        super().__init__()
        kernel = KERNELS[direction]
        self.first = ShiftedConv2d(2 * width, width, kernel, direction, **placed)
        self.other = nn.Conv2d(2 * other, width, 1, **placed) if other else None
        self.drop = nn.Dropout(dropout)
        self.second = ShiftedConv2d(2 * width, 2 * width, kernel, direction, **placed)
        self.second.initial_scale = 0.1  # type: ignore[assignment]
        self.cond = nn.Linear(cond_dim, 2 * width, bias=False, **placed) if cond_dim else None

    def forward(self, x: Tensor, other: Tensor | None = None, cond: Tensor | None = None) -> Tensor:
        y = self.first(_twice(x))
        if self.other is not None:
            y = y + self.other(_twice(other))  # type: ignore[arg-type]
        y = self.second(self.drop(_twice(y)))
        if self.cond is not None:
            y = y + self.cond(cond)[:, :, None, None]
        a, b = y.chunk(2, dim=1)
        return x + a * torch.sigmoid(b)  # type: ignore[no-any-return]


class _Network(nn.Module):
    def __init__(
        self,
        channels: int,
        width: int,
        outputs: int,
        depth: int,
        scales: int,
        dropout: float,
        cond_dim: int,
        placed: dict[str, Any],
    ) -> None:
        super().__init__()
        self.u_first = ShiftedConv2d(channels, width, (2, 3), "down", **placed)
        self.ul_above = ShiftedConv2d(channels, width, (1, 3), "down", **placed)
        self.ul_left = ShiftedConv2d(channels, width, (2, 1), "down_right", **placed)

        def blocks(direction: str, other: int, count: int) -> nn.ModuleList:
            return nn.ModuleList(_Block(direction, width, other, dropout, cond_dim, placed) for _ in range(count))

        def between(direction: str, transposed: bool) -> ShiftedConv2d:
            size = KERNELS[direction]
            return ShiftedConv2d(width, width, size, direction, stride=2, transposed=transposed, **placed)

        steps = range(scales - 1)
        self.down_u = nn.ModuleList(blocks("down", 0, depth) for _ in range(scales))
        self.down_ul = nn.ModuleList(blocks("down_right", width, depth) for _ in range(scales))
        # At the smallest scale the way up begins with what the last block gave.
        counts = [depth, *(depth + 1 for _ in steps)]
        self.up_u = nn.ModuleList(blocks("down", width, count) for count in counts)
        self.up_ul = nn.ModuleList(blocks("down_right", 2 * width, count) for count in counts)
        self.shrink_u = nn.ModuleList(between("down", False) for _ in steps)
        self.shrink_ul = nn.ModuleList(between("down_right", False) for _ in steps)
        self.grow_u = nn.ModuleList(between("down", True) for _ in steps)
        self.grow_ul = nn.ModuleList(between("down_right", True) for _ in steps)
        self.last = nn.Conv2d(width, outputs, 1, **placed)

    def forward(self, x: Tensor, cond: Tensor | None = None, cond_map: Tensor | None = None) -> Tensor:
        # A channel of ones tells the image from the zeros around it.
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        us = [F.pad(self.u_first(x), (0, 0, 1, 0))[:, :, :-1]]
        above, left = F.pad(self.ul_above(x), (0, 0, 1, 0))[:, :, :-1], F.pad(self.ul_left(x), (1, 0))[:, :, :, :-1]
        uls = [above + left]
        for scale in range(len(self.down_u)):
            for u_block, ul_block in self._pairs(self.down_u[scale], self.down_ul[scale]):
                us.append(u_block(us[-1], None, cond))
                uls.append(ul_block(uls[-1], us[-1], cond))
            if scale < len(self.shrink_u):
                us.append(self.shrink_u[scale](us[-1]))
                uls.append(self.shrink_ul[scale](uls[-1]))
        u, ul = us.pop(), uls.pop()
        for scale in range(len(self.up_u)):
            for u_block, ul_block in self._pairs(self.up_u[scale], self.up_ul[scale]):
                u = u_block(u, us.pop(), cond)
                ul = ul_block(ul, torch.cat([u, uls.pop()], dim=1), cond)
            if scale < len(self.grow_u):
                u, ul = self.grow_u[scale](u), self.grow_ul[scale](ul)
        return self.last(F.elu(ul))  # type: ignore[no-any-return]

    @staticmethod
    def _pairs(u_blocks: nn.Module, ul_blocks: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
        return list(zip(u_blocks.children(), ul_blocks.children(), strict=True))
