"""One Gaussian by its mean and log-scale: the base of flows, and the head of a MADE over reals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastar.distributions.distribution import Distribution
from fastar.sampling import Head


@dataclass(frozen=True)
class Normal(Distribution):
    """N(x; m, exp(s))."""

    kind: ClassVar[str] = "normal"

    @property
    def head(self) -> Head:
        """Mean and log-scale."""
        return Head("normal")

    def log_prob(self, params: Tensor, x: Tensor, dim: int = -1) -> Tensor:
        """log p(x) of x in the shape of `params` without `dim`, in float32 at least."""
        mean, log_scale = params.to(torch.promote_types(params.dtype, torch.float32)).unbind(dim)
        z = (x - mean) * torch.exp(-log_scale)
        return -0.5 * z * z - log_scale - 0.5 * math.log(2 * math.pi)
