"""Choices: a bit, or one of several levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fastar import _checks, ops
from fastar.distributions.distribution import Distribution
from fastar.sampling import Head


@dataclass(frozen=True)
class Bernoulli(Distribution):
    """A bit; its parameter is the logit of 1."""

    kind: ClassVar[str] = "bernoulli"

    @property
    def head(self) -> Head:
        """One logit."""
        return Head("bernoulli")

    @property
    def levels(self) -> int:
        """0 and 1."""
        return 2

    def log_prob(self, params: Tensor, x: Tensor, dim: int = -1) -> Tensor:
        """x l - log(1 + exp(l)) of x in the shape of `params` without `dim`."""
        return ops.bernoulli_log_prob(params.squeeze(dim), x)


@dataclass(frozen=True)
class Categorical(Distribution):
    """One of `levels`; the parameters are the logits."""

    levels: int = 256  # type: ignore[assignment]  # a field here, a property of the base
    kind: ClassVar[str] = "categorical"

    def __post_init__(self) -> None:
        _checks.positive("levels", self.levels)

    @property
    def head(self) -> Head:
        """`levels` logits."""
        return Head("categorical", self.levels)

    def log_prob(self, params: Tensor, x: Tensor, dim: int = -1) -> Tensor:
        """log_softmax(l)[x] of x in the shape of `params` without `dim`."""
        return ops.categorical_log_prob(params, x, dim=dim)
