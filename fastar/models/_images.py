"""What models of images share: their data, their conditions, and how they are lowered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastar import _checks
from fastar.distributions import Distribution
from fastar.models import _condition
from fastar.models.model import Model
from fastar.sampling import Program, image


class ImageModel(Model):
    """A network from [B, C, H, W] to the parameters of every pixel, all of whose layers lower over images.

    A subclass sets `network`, called as ``network(y, cond=, cond_map=)`` with y the image scaled to [-1, 1] (bits as
    they are), and `colour_major`.
    """

    params_dim: ClassVar[int] = 2
    network: nn.Module
    colour_major: bool = True

    def set_up(self, shape: Sequence[int], distribution: Distribution, cond_dim: int, cond_map: int) -> None:
        """Check and keep what every image model is given."""
        if isinstance(shape, int) or len(shape) != 3:
            raise ValueError(f"shape: expected (channels, height, width), got {shape!r}")
        channels, height, width = (_checks.positive("shape", size) for size in shape)
        self.shape = channels, height, width
        self.data_shape = self.shape
        self.distribution = distribution
        for name, size in (("cond_dim", cond_dim), ("cond_map", cond_map)):
            if size != 0:
                _checks.positive(name, size)
        self.cond_dim, self.cond_map = cond_dim, cond_map
        levels = distribution.head.levels or 2
        self.scale, self.shift = (1.0, 0.0) if levels == 2 else (2 / (levels - 1), -1.0)

    def check(self, x: Tensor, cond: Any = None) -> None:
        _checks.shape("x", _checks.tensor("x", x), ["B", *self.data_shape])
        self.distribution.check(x)

    def forward(self, x: Tensor, cond: Any = None) -> Tensor:
        self.check(x, cond)
        flat = self._flat(x, cond)
        colours = self.shape[0] // self.distribution.head.channels
        size = (colours, -1) if self.colour_major else (-1, colours)
        params: Tensor = flat.unflatten(1, size)
        return params if self.colour_major else params.transpose(1, 2)

    def _flat(self, x: Tensor, cond: Any) -> Tensor:
        vector, spatial = self._conditions(cond, len(x))
        y = x.to(self.dtype) * self.scale + self.shift
        flat: Tensor = self.network(
            y,
            None if vector is None else vector.to(y),
            None if spatial is None else spatial.to(y),
        )
        return flat

    def _conditions(self, cond: Any, rows: int) -> tuple[Tensor | None, Tensor | None]:
        # A vector, a map, or where the model has both a pair of them.
        owner = f"this {type(self).__name__}"
        vector, spatial = _condition.pair(owner, cond, bool(self.cond_dim), bool(self.cond_map), "map")
        if self.cond_map:
            if spatial is None:
                raise ValueError(f"cond: {owner} needs it, a map {[rows, self.cond_map, *self.shape[1:]]}")
            _checks.dtype("cond", _checks.tensor("cond", spatial), _checks.FLOATS)
            _checks.shape("cond", spatial, [rows, self.cond_map, *self.shape[1:]])
        return _condition.vector(owner, vector, self.cond_dim, rows), spatial

    def lower(self) -> Program:
        inputs: dict[str, tuple[int, ...]] = {"cond": (self.cond_dim,)} if self.cond_dim else {}
        if self.cond_map:
            inputs["cond_map"] = (*self.shape[1:], self.cond_map)
        return image(
            self.network,
            self.distribution.head,
            self.shape,
            name=type(self).__name__,
            colour_major=self.colour_major,
            scale=self.scale,
            shift=self.shift,
            inputs=inputs,
        )

    def condition(self, cond: Any, n: int, length: Any) -> Mapping[str, Tensor]:
        """The program's inputs."""
        vector, spatial = self._conditions(cond, n)
        inputs = {} if vector is None else {"cond": vector.to(torch.float32)}
        if spatial is not None:
            inputs["cond_map"] = spatial.permute(0, 2, 3, 1).to(torch.float32).contiguous()
        return inputs
