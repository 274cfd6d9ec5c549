"""ConvNADE: an orderless model of convolutions over an image and the mask of its known pixels."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastar import _checks
from fastar.distributions import Distribution, make
from fastar.models import _order
from fastar.models.orderless import Orderless
from fastar.reference import activation as activations
from fastar.sampling import Builder, Program
from fastar.sampling.builder import Handle
from fastar.sampling.index import Index
from fastar.sampling.instructions import Draw, Store, TappedLinear


class ConvNADE(Orderless):
    """params at a pixel = convolutions of [x where known, known], padded with zeros: any order.

    Args:
        size: (height, width).
        hidden: channels of the hidden convolutions, at least one.
        head: distribution of each pixel: a `fastar.distributions` object, its name or its configuration.
        kernel_size: of all convolutions; odd.
        activation: of the hidden convolutions.

    x [B, 1, H, W]; ``model(x, known)`` [B, H * W, params] in one pass.
    """

    def __init__(
        self,
        size: tuple[int, int] | Sequence[int],
        hidden: int | Sequence[int],
        head: Distribution | str | Mapping[str, Any] = "bernoulli",
        *,
        kernel_size: int = 3,
        activation: str = "relu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        channels = [hidden] if isinstance(hidden, int) else list(hidden)
        law = make(head)
        super().__init__(
            size=list(size), hidden=channels, head=law.to_config(), kernel_size=kernel_size, activation=activation
        )
        if len(size) != 2:
            raise ValueError(f"size: expected (height, width), got {tuple(size)}")
        self.height, self.width = (_checks.positive("size", one) for one in size)
        self.dim = self.height * self.width
        self.data_shape = (1, self.height, self.width)
        self.distribution = law
        if not channels:
            raise ValueError("hidden: expected at least one hidden convolution")
        if _checks.positive("kernel_size", kernel_size) % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number, got {kernel_size}")
        if activations.check(activation) == "concat_elu":
            raise ValueError("activation: concat_elu doubles the channels, which these layers do not expect")
        self.activation, self.radius = activation, kernel_size // 2
        if law.levels is not None and law.levels > 2:
            self.scale, self.shift = 2 / (law.levels - 1), -1.0
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, kernel_size, padding=self.radius, device=device, dtype=dtype)
            for a, b in itertools.pairwise([2, *channels, law.params])
        )

    def params_of(self, x: Tensor, known: Tensor, wanted: Tensor | None) -> Tensor:
        h = torch.stack([x, known.to(x.dtype)], 1).unflatten(2, (self.height, self.width))
        *hidden, last = self.layers
        for layer in hidden:
            h = activations.APPLY[self.activation](layer(h))
        params: Tensor = last(h).flatten(2).transpose(1, 2)
        return params if wanted is None else params[torch.arange(len(params), device=params.device), wanted]

    def lower(self, order: _order.Order = None) -> Program:
        # All hidden layers are computed once for an image of which nothing is known; a drawn pixel then changes a
        # window of each, wider by the kernel's radius from layer to layer. The code is unrolled over the pixels.
        chosen, head = _order.permutation(order, self.dim), self.distribution.head
        b = Builder("ConvNADE", self.distribution.value, self.dim)
        H, W, r = self.height, self.width, self.radius
        taps = tuple((dh, dw) for dh in range(-r, r + 1) for dw in range(-r, r + 1))
        planes = [b.state("x", H, W, 2)]
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Conv2d)
            b.weight(f"{number}.weight", layer.weight.detach().flatten(2).transpose(1, 2).contiguous())
            if layer.bias is not None:
                b.weight(f"{number}.bias", layer.bias)
            if number + 1 < len(self.layers):
                planes.append(b.state(f"h{number}", H, W, layer.out_channels))
        out = b.scratch("params", head.params).at()
        last = len(self.layers) - 1

        def window(number: int, source: Handle, target: Handle, h: range, w: range) -> None:
            with b.loop("h", len(h)) as i, b.loop("w", len(w)) as j:
                at = (i + h.start, j + w.start)
                weight, bias = f"{number}.weight", f"{number}.bias"
                b.add(TappedLinear(target.at(*at), source.at(*at), taps, weight, bias, activation=self.activation))

        for number, (source, target) in enumerate(itertools.pairwise(planes)):
            window(number, source, target, range(H), range(W))
        for t, pixel in enumerate(chosen.tolist()):
            h, w = divmod(pixel, W)
            b.add(
                TappedLinear(out, planes[-1].at(h, w), taps, f"{last}.weight", f"{last}.bias"),
                Draw(head, Index(t), out),
            )
            if t + 1 == self.dim:
                break
            x = planes[0].at(h, w)
            b.add(
                Store(x.channels(0, 1), Index(t), self.scale, self.shift),
                Store(x.channels(1, 1), Index(t), 0.0, 1.0),
            )
            for number, (source, target) in enumerate(itertools.pairwise(planes)):
                reach = r * (number + 1)
                rows = range(max(0, h - reach), min(H, h + reach + 1))
                window(number, source, target, rows, range(max(0, w - reach), min(W, w + reach + 1)))
        natural = _order.is_natural(chosen)
        layout = None if natural else b.table("order", chosen.tolist())
        return b.build(shape=(1, H, W), layout=layout)
