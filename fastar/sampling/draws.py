"""The draw rules: support, temperature, top-k, top-p, renormalise, draw; and the log-probability of a value.

Everything is computed in float64 from whatever dtype the parameters come in. Parameters are [rows, head.params], values
[rows, head.channels]: float64, holding integers where the program's values are integers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastar.sampling import mixtures
from fastar.sampling.categorical import pick, probabilities
from fastar.sampling.instructions import Head


class SamplingError(RuntimeError):
    """A draw that has no answer: not-a-number parameters, or a support without probability."""


@dataclass(frozen=True)
class Options:
    """What the caller of a run asks of every draw."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    greedy: bool = False

    def __post_init__(self) -> None:
        if not (isinstance(self.temperature, int | float) and 0 < self.temperature < math.inf):
            raise ValueError(f"temperature: expected a positive finite number, got {self.temperature}")
        if self.top_k is not None and (
            isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 1
        ):
            raise ValueError(f"top_k: expected a positive integer or None, got {self.top_k}")
        if self.top_p is not None and not (isinstance(self.top_p, int | float) and 0 < self.top_p <= 1):
            raise ValueError(f"top_p: expected a number in (0, 1] or None, got {self.top_p}")

    def check(self, head: Head) -> None:
        """Refuse what makes no sense for the head."""
        if head.kind not in DISCRETE and head.kind != "given" and (self.top_k, self.top_p) != (None, None):
            raise ValueError(f"{'top_k' if self.top_k else 'top_p'}: the head {head.kind} is no choice among levels")


@dataclass(frozen=True)
class Support:
    """What one position may take: levels, a boolean [rows or 1, levels], or a range, [rows or 1, channels] each."""

    levels: Tensor | None = None
    low: Tensor | None = None
    high: Tensor | None = None


DISCRETE = ("bernoulli", "categorical")
PLAIN = Options()


def is_continuous(head: Head, draw: int) -> bool:
    """Whether a draw takes the finer, continuous kind of uniform number."""
    return head.kind == "normal" or (head.kind not in DISCRETE and draw > 0)


def level_logits(head: Head, params: Tensor) -> Tensor:
    """The logits over the levels of a discrete head; a Bernoulli has 0 and its logit."""
    z = params.double()
    return torch.cat([torch.zeros_like(z), z], 1) if head.kind == "bernoulli" else z


def law(head: Head, params: Tensor, options: Options = PLAIN, levels: Tensor | None = None) -> Tensor:
    """The probabilities [rows, levels] that a discrete head is drawn from."""
    return probabilities(level_logits(head, params), levels, options.temperature, options.top_k, options.top_p)


def draw(
    head: Head,
    params: Tensor,
    u: Tensor,
    options: Options = PLAIN,
    support: Support | None = None,
    integer: bool = True,
) -> Tensor:
    """Values [rows, channels] from uniforms [rows, head.draws]."""
    refuse_nan(params)
    support = support or Support()
    if head.kind not in DISCRETE:
        return mixtures.draw(
            head, params.double(), u, options.temperature, options.greedy, support.low, support.high, integer
        )
    p = law(head, params, options, support.levels)
    if not bool((p.sum(1) > 0).all()):
        row = int((p.sum(1) > 0).int().argmin())
        raise SamplingError(f"row {row}: the levels that the support allows all have probability 0")
    if options.greedy:
        z = level_logits(head, params)
        k = (z if support.levels is None else torch.where(support.levels, z, -math.inf)).argmax(1)
    elif head.kind == "bernoulli":
        k = (u[:, 0] < p[:, 1]).long()
    else:
        k = pick(p, u[:, 0])
    return k[:, None].double()


def log_prob(head: Head, params: Tensor, value: Tensor, integer: bool = True) -> Tensor:
    """The model's own log-probability of values [rows, channels], in float64."""
    refuse_nan(params)
    if head.kind not in DISCRETE:
        return mixtures.log_prob(head, params.double(), value, integer)
    return torch.log_softmax(level_logits(head, params), 1).gather(1, value.long())[:, 0]


def refuse_nan(params: Tensor) -> None:
    """SamplingError where a parameter is not a number."""
    if bool(params.isnan().any()):
        row = int(params.isnan().any(1).int().argmax())
        raise SamplingError(f"row {row}: a parameter of the draw is NaN")
