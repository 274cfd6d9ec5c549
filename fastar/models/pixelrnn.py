"""PixelRNN: images pixel by pixel, colour by colour, by LSTMs that run over rows or diagonals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastar import _checks
from fastar.distributions import Categorical
from fastar.models._images import ImageModel
from fastar.nn import DiagonalBiLSTM, MaskedConv2d, RowLSTM

SCANS = ("row", "diagonal")


class PixelRNN(ImageModel):
    """p(x) = prod over rows, columns and colours of softmax(LSTMs over what came before) [x].

    The paper's network: a convolution of type "A" to 2 * hidden channels; `depth` layers, each an LSTM of `hidden`
    units whose output a 1 x 1 convolution widens and adds to the layer's input; twice relu and 1 x 1; the logits.

    Args:
        shape: (channels, height, width).
        levels: values of a colour.
        hidden: units of an LSTM.
        depth: layers.
        scan: "row" (`RowLSTM`, which sees a triangle above a pixel) or "diagonal" (`DiagonalBiLSTM`, which sees all
            earlier features; with the first convolution's mask the last pixel of the row above is in none of them).
        kernel_size: of the first convolution.
        row_kernel_size: columns that a row LSTM takes in at once.
        head_width: channels of the last hidden layers; 2 * hidden unless given.
        colour_layout: channel c of a layer sees with colour c mod channels ("interleaved"; the logits are then
            level * channels + colour) or with the c-th of equal groups ("contiguous"; colour * levels + level).
        cond_dim: size of a vector to condition on, or number of classes; each layer has a matrix for it.
        cond_map: channels of a map [B, cond_map, H, W] to condition on; each layer has a 1 x 1 convolution for it.

    x [B, C, H, W] int; ``model(x)`` [B, C, levels, H, W].
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar10-row": {"shape": [3, 32, 32], "hidden": 128, "depth": 12, "head_width": 1024},
        "cifar10-diagonal": {"shape": [3, 32, 32], "hidden": 128, "depth": 12, "scan": "diagonal", "head_width": 1024},
        "mnist": {"shape": [1, 28, 28], "levels": 2, "hidden": 16, "depth": 7, "scan": "diagonal", "head_width": 32},
    }

    def __init__(
        self,
        shape: Sequence[int],
        levels: int = 256,
        *,
        hidden: int = 64,
        depth: int = 7,
        scan: str = "row",
        kernel_size: int = 7,
        row_kernel_size: int = 3,
        head_width: int | None = None,
        colour_layout: str = "interleaved",
        cond_dim: int = 0,
        cond_map: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            shape=list(shape) if isinstance(shape, Sequence) else shape,
            levels=levels,
            hidden=hidden,
            depth=depth,
            scan=scan,
            kernel_size=kernel_size,
            row_kernel_size=row_kernel_size,
            head_width=head_width,
            colour_layout=colour_layout,
            cond_dim=cond_dim,
            cond_map=cond_map,
        )
        if scan not in SCANS:
            raise ValueError(f"scan: expected one of {', '.join(SCANS)}, got {scan!r}")
        self.set_up(shape, Categorical(levels), cond_dim, cond_map)
        self.colour_major = colour_layout == "contiguous"
        colours = self.shape[0]
        masked: dict[str, Any] = {"colours": colours, "colour_layout": colour_layout, "device": device, "dtype": dtype}
        width = 2 * _checks.positive("hidden", hidden)
        wide = width if head_width is None else _checks.positive("head_width", head_width)
        rows = row_kernel_size if scan == "row" else None
        layers = [
            _Layer(width, hidden, rows, cond_dim, cond_map, masked) for _ in range(_checks.positive("depth", depth))
        ]
        last = nn.Sequential(
            MaskedConv2d(width, wide, 1, "B", activation="relu", **masked),
            MaskedConv2d(wide, wide, 1, "B", activation="relu", **masked),
            MaskedConv2d(wide, colours * levels, 1, "B", **masked),
        )
        self.network = _Network(MaskedConv2d(colours, width, kernel_size, "A", **masked), layers, last)


class _Layer(nn.Module):
    # x + widen(lstm(x)), with what the conditions add to the input of the LSTM.
    def __init__(
        self, width: int, hidden: int, rows: int | None, cond_dim: int, cond_map: int, masked: dict[str, Any]
    ) -> None:
        super().__init__()
        placed = {name: masked[name] for name in ("device", "dtype")}
        self.lstm: nn.Module = (
            DiagonalBiLSTM(width, hidden, mask_type="B", **masked)
            if rows is None
            else RowLSTM(width, hidden, rows, mask_type="B", **masked)
        )
        self.widen = MaskedConv2d(hidden, width, 1, "B", **masked)
        self.cond = nn.Linear(cond_dim, width, bias=False, **placed) if cond_dim else None
        self.cond_map = nn.Conv2d(cond_map, width, 1, bias=False, **placed) if cond_map else None

    def forward(self, x: Tensor, cond: Tensor | None = None, cond_map: Tensor | None = None) -> Tensor:
        y = x
        if self.cond is not None:
            y = y + self.cond(cond)[:, :, None, None]
        if self.cond_map is not None:
            y = y + self.cond_map(cond_map)
        return x + self.widen(self.lstm(y))  # type: ignore[no-any-return]


class _Network(nn.Module):
    def __init__(self, first: MaskedConv2d, layers: Sequence[_Layer], last: nn.Sequential) -> None:
        super().__init__()
        self.first, self.layers, self.last = first, nn.ModuleList(layers), last

    def forward(self, x: Tensor, cond: Tensor | None = None, cond_map: Tensor | None = None) -> Tensor:
        y = self.first(x)
        for layer in self.layers:
            y = layer(y, cond, cond_map)
        return self.last(F.relu(y))  # type: ignore[no-any-return]
