"""Output heads: what a position's parameters mean, its log-probability by the fused ops, and the draw of a sampler."""

from fastar import _identity

_identity.require()

from fastar.distributions.discrete import Bernoulli, Categorical  # noqa: E402
from fastar.distributions.distribution import Distribution, make  # noqa: E402
from fastar.distributions.mixtures import GaussianMixture, LaplaceMixture, LogisticMixture  # noqa: E402
from fastar.distributions.normal import Normal  # noqa: E402

__all__ = [
    "Bernoulli",
    "Categorical",
    "Distribution",
    "GaussianMixture",
    "LaplaceMixture",
    "LogisticMixture",
    "Normal",
    "make",
]
