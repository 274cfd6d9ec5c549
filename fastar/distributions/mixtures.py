"""Mixtures over real values or finely quantised ones: K logits, K means and K log-scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fastar import _checks, ops
from fastar.distributions.distribution import Distribution
from fastar.sampling import Head


@dataclass(frozen=True)
class GaussianMixture(Distribution):
    """sum_k softmax(l)_k N(x; m_k, exp(s_k))."""

    components: int = 1
    kind: ClassVar[str] = "gaussian"

    def __post_init__(self) -> None:
        _checks.positive("components", self.components)

    @property
    def head(self) -> Head:
        """3 K parameters."""
        return Head("gaussian", components=self.components)

    def log_prob(self, params: Tensor, x: Tensor, dim: int = -1) -> Tensor:
        """log p(x) of x in the shape of `params` without `dim`."""
        return ops.gaussian_mixture_log_prob(params, x, dim=dim)


@dataclass(frozen=True)
class LaplaceMixture(Distribution):
    """sum_k softmax(l)_k Laplace(x; m_k, exp(s_k))."""

    components: int = 1
    kind: ClassVar[str] = "laplace"

    def __post_init__(self) -> None:
        _checks.positive("components", self.components)

    @property
    def head(self) -> Head:
        """3 K parameters."""
        return Head("laplace", components=self.components)

    def log_prob(self, params: Tensor, x: Tensor, dim: int = -1) -> Tensor:
        """log p(x) of x in the shape of `params` without `dim`."""
        return ops.laplace_mixture_log_prob(params, x, dim=dim)


@dataclass(frozen=True)
class LogisticMixture(Distribution):
    """Discretised logistics as in PixelCNN++: `steps` equal steps from -1 to 1, `channels` colours at a position.

    x holds the steps' numbers, 0..steps - 1, or with `integer=False` their places in [-1, 1]. With several colours x
    has them along the dimension where `params` has the parameters.
    """

    components: int = 10
    channels: int = 1
    steps: int = 256
    min_log_scale: float | None = -7.0
    branch: float = 1e-5
    integer: bool = True
    kind: ClassVar[str] = "logistic"

    def __post_init__(self) -> None:
        for name in ("components", "channels", "steps"):
            _checks.positive(name, getattr(self, name))
        if self.steps < 2:
            raise ValueError(f"steps: expected at least 2, got {self.steps}")

    @property
    def head(self) -> Head:
        """K (1 + 2 C + C (C - 1) / 2) parameters."""
        return Head(
            "logistic",
            levels=self.steps,
            components=self.components,
            channels=self.channels,
            low=-1.0,
            high=1.0,
            min_log_scale=self.min_log_scale,
            branch=self.branch,
        )

    @property
    def levels(self) -> int | None:
        """The steps, where x holds their numbers."""
        return self.steps if self.integer else None

    def log_prob(self, params: Tensor, x: Tensor, dim: int = -1) -> Tensor:
        """log p(x); x in the shape of `params` without `dim`, or with the colours there."""
        return ops.logistic_mixture_log_prob(
            params, x, dim=dim, levels=self.steps, min_log_scale=self.min_log_scale, branch=self.branch
        )
