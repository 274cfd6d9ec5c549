"""What a WaveNet's layer has beside its input, and what its gradients have in common wherever they are taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Layer(NamedTuple):
    """Tensors and numbers of `fastar.ops.wavenet_block` by its names; the backward has no biases of the outputs."""

    weight: Tensor
    bias: Tensor | None
    residual_weight: Tensor
    residual_bias: Tensor | None
    skip_weight: Tensor
    skip_bias: Tensor | None
    conditioning: Tensor | None
    dilation: int
    hop: int
    residual_scale: float
    skip_scale: float

    @property
    def gate(self) -> int:
        """Channels of h."""
        return self.weight.shape[0] // 2

    @property
    def skip(self) -> int:
        """Channels of the skip sum."""
        return self.skip_weight.shape[0]

    @property
    def frames(self) -> int:
        """Frames of the conditioning, one where there is none."""
        return 1 if self.conditioning is None else self.conditioning.shape[2]

    def output_gradients(
        self,
        grads: Sequence[Tensor | None],
        needs: Sequence[bool],
        products: Callable[[Tensor, Tensor], Tensor],
        sums: Callable[[Tensor], Tensor],
    ) -> list[Tensor | None]:
        """Gradients of residual_weight and its bias, skip_weight and its bias, from those of residual and skip.

        `products(grad, matrix)` is the sum over rows and times of grad by h, in the shape of the matrix; `sums(grad)`
        that of grad.
        """
        found: list[Tensor | None] = []
        for grad, matrix, scale, (need_matrix, need_bias) in (
            (grads[0], self.residual_weight, self.residual_scale, needs[:2]),
            (grads[1], self.skip_weight, self.skip_scale, needs[2:]),
        ):
            if grad is None:
                zeros = torch.zeros_like(matrix, memory_format=torch.contiguous_format)
                found += [zeros if need_matrix else None, zeros.new_zeros(len(matrix)) if need_bias else None]
                continue
            found += [
                products(grad, matrix).mul_(scale) if need_matrix else None,
                sums(grad).mul_(scale) if need_bias else None,
            ]
        return found

    def frame_sums(self, grad_z: Tensor) -> Tensor | None:
        """The gradient of the conditioning: each frame's sum over its times."""
        if self.conditioning is None:
            return None
        whole = F.pad(grad_z, (0, self.frames * self.hop - grad_z.shape[2]))
        return whole.reshape(*grad_z.shape[:2], self.frames, self.hop).sum(3)
