"""ConvNADE: an orderless model of convolutions over an image and the mask of its known pixels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastar import _checks
from fastar.distributions import Distribution, make
from fastar.models import _order
from fastar.models.orderless import Orderless
from fastar.reference import activation as activations
from fastar.sampling import Builder, Program
from fastar.sampling.index import Index
from fastar.sampling.instructions import Draw, Store, TappedLinear


class ConvNADE(Orderless):
    """params at a pixel = convolutions of [x where known, known], padded with zeros: any order.

    Args:
        size: (height, width).
        hidden: channels of the hidden convolutions, at least one.
        head: distribution of each pixel: a `fastar.distributions` object, its name or its configuration.
        kernel_size: of all convolutions, or of each, the last one's included.
        padding: of all convolutions, or of each: "same", for odd kernels; "valid", which makes the image smaller;
            "full", which makes it larger. In the end it has its own size again.
        activation: of the hidden convolutions.

    x [B, 1, H, W]; ``model(x, known)`` [B, H * W, params] in one pass.

    A sample computes a hidden pixel anew when a drawn one reaches it through the kernels and the next draw needs it:
    work in proportion to what the kernels reach and not to the image, and no gain where they reach all of it.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "mnist": {
            "size": [28, 28],
            "hidden": [64] * 7,
            "kernel_size": [8, 4, 6, 7, 7, 6, 4, 8],
            "padding": ["valid"] * 4 + ["full"] * 4,
        },
    }

    def __init__(
        self,
        size: tuple[int, int] | Sequence[int],
        hidden: int | Sequence[int],
        head: Distribution | str | Mapping[str, Any] = "bernoulli",
        *,
        kernel_size: int | Sequence[int] = 3,
        padding: str | Sequence[str] = "same",
        activation: str = "relu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        channels = [hidden] if isinstance(hidden, int) else list(hidden)
        law = make(head)
        super().__init__(
            size=list(size),
            hidden=channels,
            head=law.to_config(),
            kernel_size=kernel_size if isinstance(kernel_size, int) else list(kernel_size),
            padding=padding if isinstance(padding, str) else list(padding),
            activation=activation,
        )
        if len(size) != 2:
            raise ValueError(f"size: expected (height, width), got {tuple(size)}")
        self.height, self.width = (_checks.positive("size", one) for one in size)
        self.dim = self.height * self.width
        self.data_shape = (1, self.height, self.width)
        self.distribution = law
        if not channels:
            raise ValueError("hidden: expected at least one hidden convolution")
        if activations.check(activation) == "concat_elu":
            raise ValueError("activation: concat_elu doubles the channels, which these layers do not expect")
        self.activation = activation
        if law.levels is not None and law.levels > 2:
            self.scale, self.shift = 2 / (law.levels - 1), -1.0
        count = len(channels) + 1
        kernels = [kernel_size] * count if isinstance(kernel_size, int) else list(kernel_size)
        kinds = [padding] * count if isinstance(padding, str) else list(padding)
        for name, given in (("kernel_size", kernels), ("padding", kinds)):
            if len(given) != count:
                raise ValueError(f"{name}: expected one for each of {count} convolutions, got {len(given)}")
        pads = [_padding(kernel, kind) for kernel, kind in zip(kernels, kinds, strict=True)]
        # The planes' sizes, the image's first.
        self.sizes = [(self.height, self.width)]
        for kernel, pad in zip(kernels, pads, strict=True):
            grown = 2 * pad - kernel + 1
            self.sizes.append((self.sizes[-1][0] + grown, self.sizes[-1][1] + grown))
        if min(min(one) for one in self.sizes) < 1 or self.sizes[-1] != self.sizes[0]:
            raise ValueError(f"padding: expected the image's size in the end, got planes of {self.sizes}")
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, kernel, padding=pad, device=device, dtype=dtype)
            for (a, b), kernel, pad in zip(itertools.pairwise([2, *channels, law.params]), kernels, pads, strict=True)
        )

    def params_of(self, x: Tensor, known: Tensor, wanted: Tensor | None) -> Tensor:
        h = torch.stack([x, known.to(x.dtype)], 1).unflatten(2, (self.height, self.width))
        *hidden, last = self.layers
        for layer in hidden:
            h = activations.APPLY[self.activation](layer(h))
        params: Tensor = last(h).flatten(2).transpose(1, 2)
        return params if wanted is None else params[torch.arange(len(params), device=params.device), wanted]

    def lower(self, order: _order.Order = None) -> Program:
        # The code is unrolled over the pixels: which of a plane are out of date when is known now.
        chosen, head = _order.permutation(order, self.dim), self.distribution.head
        b = Builder("ConvNADE", self.distribution.value, self.dim)
        views = [_View(layer) for layer in self.layers if isinstance(layer, nn.Conv2d)]
        last = len(views) - 1
        planes = [b.state("x", *self.sizes[0], 2)]
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Conv2d)
            b.weight(f"{number}.weight", layer.weight.detach().flatten(2).transpose(1, 2).contiguous())
            if layer.bias is not None:
                b.weight(f"{number}.bias", layer.bias)
            if number < last:
                planes.append(b.state(f"h{number}", *self.sizes[number + 1], layer.out_channels))
        out = b.scratch("params", head.params).at()
        # Pixels of each plane whose value is not that of the pixels drawn so far; of the image's there are none.
        stale = [torch.full(size, number > 0) for number, size in enumerate(self.sizes[:-1])]

        def compute(number: int, pixels: Tensor) -> None:
            view, source, target = views[number], planes[number], planes[number + 1]
            weight, bias = f"{number}.weight", f"{number}.bias"
            for h, w in _rectangles(pixels, self.sizes[number]):
                at, taps = view.taps((h.start, w.start), (len(h), len(w)), self.sizes[number])
                with b.loop("h", len(h)) as i, b.loop("w", len(w)) as j:
                    seen = source.at(i + at[0], j + at[1])
                    y = target.at(i + h.start, j + w.start)
                    b.add(TappedLinear(y, seen, taps, weight, bias, activation=self.activation))

        for t, pixel in enumerate(chosen.tolist()):
            place = divmod(pixel, self.width)
            wanted = torch.zeros(self.sizes[-1], dtype=torch.bool)
            wanted[place] = True
            due = []
            for number in range(last, 0, -1):
                wanted = views[number].seen_by(wanted) & stale[number]
                stale[number] &= ~wanted
                due.append((number - 1, wanted))
            for number, pixels in reversed(due):
                compute(number, pixels)
            at, taps = views[last].taps(place, (1, 1), self.sizes[last])
            b.add(
                TappedLinear(out, planes[last].at(*at), taps, f"{last}.weight", f"{last}.bias"),
                Draw(head, Index(t), out),
            )
            if t + 1 == self.dim:
                break
            x = planes[0].at(*place)
            b.add(
                Store(x.channels(0, 1), Index(t), self.scale, self.shift),
                Store(x.channels(1, 1), Index(t), 0.0, 1.0),
            )
            changed = torch.zeros(self.sizes[0], dtype=torch.bool)
            changed[place] = True
            for number in range(1, last + 1):
                changed = views[number - 1].that_see(changed)
                stale[number] |= changed
        natural = _order.is_natural(chosen)
        layout = None if natural else b.table("order", chosen.tolist())
        return b.build(shape=(1, self.height, self.width), layout=layout)


class _View:
    # Which pixels of its input a convolution's pixel sees: (h, w) those from (h - pad, w - pad), kernel by kernel.
    def __init__(self, layer: nn.Conv2d) -> None:
        self.kernel, self.pad = layer.kernel_size[0], int(layer.padding[0])

    def seen_by(self, pixels: Tensor) -> Tensor:
        """The pixels of the input that some of these of the output see."""
        return self._spread(pixels, self.kernel - 1 - self.pad)

    def that_see(self, pixels: Tensor) -> Tensor:
        """The pixels of the output that see some of these of the input."""
        return self._spread(pixels, self.pad)

    def _spread(self, pixels: Tensor, pad: int) -> Tensor:
        found: Tensor = F.max_pool2d(F.pad(pixels[None].float(), (pad,) * 4), self.kernel, 1)[0] > 0
        return found

    def taps(
        self, first: tuple[int, int], extent: tuple[int, int], size: tuple[int, int]
    ) -> tuple[tuple[int, int], tuple[tuple[int, ...], ...]]:
        """Where in its input a rectangle's first pixel is said to look, inside the plane, and the taps from there."""
        at = tuple(min(one, whole - n) for one, n, whole in zip(first, extent, size, strict=True))
        h, w = (one - place - self.pad for one, place in zip(first, at, strict=True))
        taps = tuple((h + i, w + j) for i in range(self.kernel) for j in range(self.kernel))
        return (at[0], at[1]), taps


def _rectangles(pixels: Tensor, most: tuple[int, int]) -> Iterator[tuple[range, range]]:
    # Rectangles of at most this size that cover them, disjoint: a run in a row, with equal runs of the rows below.
    left = pixels.tolist()
    for h, w in torch.nonzero(pixels).tolist():
        if not left[h][w]:
            continue
        run = next((k for k, one in enumerate(left[h][w : w + most[1]]) if not one), most[1])
        width = min(run, len(left[h]) - w)
        below = left[h : h + most[0]]
        height = next((k for k, row in enumerate(below) if not all(row[w : w + width])), len(below))
        for row in below[:height]:
            row[w : w + width] = [False] * width
        yield range(h, h + height), range(w, w + width)


def _padding(kernel: int, kind: str) -> int:
    if kind not in ("same", "valid", "full"):
        raise ValueError(f"padding: expected same, valid or full, got {kind!r}")
    if _checks.positive("kernel_size", kernel) % 2 == 0 and kind == "same":
        raise ValueError(f"kernel_size: expected an odd number for padding='same', got {kernel}")
    return {"same": kernel // 2, "valid": 0, "full": kernel - 1}[kind]
