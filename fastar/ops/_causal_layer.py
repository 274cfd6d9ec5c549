"""What a causal convolution has beside its input, as its implementations take it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


class Convolution(NamedTuple):
    """Tensors and numbers of `fastar.ops.causal_conv1d` by its names; the activation is one that is fused."""

    weight: Tensor
    bias: Tensor | None = None
    initial_state: Tensor | None = None
    sequence_index: Tensor | None = None
    dilation: int = 1
    groups: int = 1
    activation: str = "none"

    @property
    def outputs(self) -> int:
        """Output channels."""
        return self.weight.shape[0]

    @property
    def taps(self) -> int:
        """Taps of the kernel."""
        return self.weight.shape[2]

    @property
    def reach(self) -> int:
        """How many times back the oldest tap looks."""
        return (self.taps - 1) * self.dilation

    @property
    def depthwise(self) -> bool:
        """Whether each group has one input, and few outputs."""
        return self.weight.shape[1] == 1 and self.outputs <= 4 * self.groups

    @property
    def offsets(self) -> list[int]:
        """Where each tap looks, relative to its output."""
        return [k * self.dilation - self.reach for k in range(self.taps)]

    def with_contiguous_past(self) -> Convolution:
        """The same with state and index contiguous."""
        if self.initial_state is not None:
            return self._replace(initial_state=self.initial_state.contiguous())
        if self.sequence_index is not None:
            return self._replace(sequence_index=self.sequence_index.contiguous())
        return self
