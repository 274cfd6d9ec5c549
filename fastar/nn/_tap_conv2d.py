"""What the convolutions over surviving taps share: parameters, initialisation, and moving the plan with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fastar import _checks
from fastar.ops.masked_conv2d import check_halves, tap_conv2d
from fastar.ops.tap_plan import Geometry, TapPlan
from fastar.reference import activation as activations


def pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """One positive integer for both sides, or one for each."""
    sizes = (value, value) if isinstance(value, int) else tuple(value)
    if len(sizes) != 2:
        raise ValueError(f"{name}: expected one or two positive integers, got {value!r}")
    height, width = (_checks.positive(name, one) for one in sizes)
    return height, width


class TapConv2d(nn.Module):
    """A convolution over the taps of a plan. Parameters are those of its torch.nn twin, and drawn as there."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        plan: Callable[[Sequence[int]], TapPlan],
        geometry: Geometry,
        bias: bool,
        activation: str | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.in_channels = _checks.positive("in_channels", in_channels)
        self.out_channels = _checks.positive("out_channels", out_channels)
        self.kernel_size = kernel_size
        self.geometry = geometry
        self.activation = activations.check(activation, gated=True)
        if self.activation == activations.GATE:
            check_halves("out_channels", out_channels)
        channels = (in_channels, out_channels) if geometry.transposed else (out_channels, in_channels)
        self.weight = nn.Parameter(torch.empty(*channels, *kernel_size, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        # The plan's tensor is no buffer: it is made, not learned, and `to_empty` on a layer that was built on the meta
        # device must not wipe it.
        self.plan = self._beside_weight(plan(self.weight.shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias as the torch.nn twin does, from the same random numbers."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def dense_mask(self) -> Tensor:
        """The mask as bool of the weight's shape, formed for the asking."""
        mask = self.plan.dense(self.weight.shape, self.weight.device)
        return torch.ones(self.weight.shape, dtype=torch.bool, device=self.weight.device) if mask is None else mask

    def forward(self, x: Tensor) -> Tensor:
        return tap_conv2d(x, self.weight, self.bias, self.plan, self.geometry, self.activation)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TapConv2d:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.plan = self._beside_weight(self.plan)
        return self

    def _beside_weight(self, plan: TapPlan) -> TapPlan:
        # On the meta device the plan stays where it is: there it would lose what it says.
        return plan if self.weight.is_meta else plan.to(self.weight.device)

    def extra_repr(self) -> str:
        return self._describe(taps=list(self.plan.taps))

    def _describe(self, **options: object) -> str:
        parts = [str(self.in_channels), str(self.out_channels), f"kernel_size={self.kernel_size}"]
        parts += [f"{name}={value!r}" for name, value in options.items() if value is not None]
        if self.bias is None:
            parts.append("bias=False")
        if self.activation != "none":
            parts.append(f"activation={self.activation}")
        return ", ".join(parts)
