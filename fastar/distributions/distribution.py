"""Distribution: the law of one position, given by some numbers of a network's output."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastar import _checks
from fastar.sampling import Head, Value


@dataclasses.dataclass(frozen=True)
class Distribution(abc.ABC):
    """p(x_t | params_t): how many parameters a position has, log p, and how a sampler draws from it."""

    kind: ClassVar[str]

    @property
    @abc.abstractmethod
    def head(self) -> Head:
        """The same law as a step program's draw."""

    @abc.abstractmethod
    def log_prob(self, params: Tensor, x: Tensor, dim: int = -1) -> Tensor:
        """log p(x) in nats of every position, with a position's parameters along `dim` of `params`."""

    @property
    def levels(self) -> int | None:
        """x takes the integers 0..levels - 1; None where it is real."""
        return None

    @property
    def is_density(self) -> bool:
        """Whether `log_prob` is that of a density; real numbers may also stand for the steps that they are at."""
        return self.head.kind in ("normal", "gaussian", "laplace")

    @property
    def params(self) -> int:
        """Parameters per position."""
        return self.head.params

    @property
    def value(self) -> Value:
        """What one position of a step program holds."""
        return Value("float" if self.levels is None else "int", self.head.channels, self.levels)

    def check(self, x: Tensor) -> None:
        """ValueError or TypeError where x is no data of this kind; values are looked at on the CPU only.

        Looking at values on a GPU would wait for it, and a compiled graph cannot look at all.
        """
        if self.levels is None:
            _checks.dtype("x", x, _checks.FLOATS)
        elif self.levels == 2:
            _checks.dtype("x", x, (torch.bool, *_checks.INTEGERS, *_checks.FLOATS))
        else:
            _checks.dtype("x", x, _checks.INTEGERS)
        if x.device.type != "cpu" or torch.compiler.is_compiling() or x.dtype == torch.bool:
            return
        head = self.head
        if self.levels is None:
            wrong, expected = ~x.isfinite(), "finite numbers"
            if head.low is not None and head.high is not None:
                wrong, expected = wrong | (x < head.low) | (x > head.high), f"numbers from {head.low} to {head.high}"
        else:
            # Bytes hold no 256 to be compared with.
            wide = x if x.is_floating_point() else x.long()
            wrong = (wide < 0) | (wide >= self.levels)
            expected = f"0..{self.levels - 1}"
            if x.is_floating_point():
                wrong, expected = (x != 0) & (x != 1), "0 or 1"
        if bool(wrong.any()):
            at = torch.nonzero(wrong)[0].tolist()
            raise ValueError(f"x: expected {expected}; at {at} came {x[tuple(at)].item()}")

    def to_config(self) -> dict[str, Any]:
        """What `make` builds an equal one from."""
        return {"kind": self.kind, **dataclasses.asdict(self)}


def make(config: Distribution | str | Mapping[str, Any], **options: Any) -> Distribution:
    """A distribution from itself, from its name and options, or from what `to_config` gave."""
    if isinstance(config, Distribution):
        if options:
            raise ValueError(f"head: {config} is made already and takes no {', '.join(options)}")
        return config
    if isinstance(config, Mapping):
        options = {**config, **options}
        config = str(options.pop("kind", "without a kind"))
    if not isinstance(config, str):
        raise TypeError(f"head: expected a distribution, its name or its configuration, got {type(config).__name__}")
    kinds = {cls.kind: cls for cls in Distribution.__subclasses__()}
    if config not in kinds:
        raise ValueError(f"head: expected one of {', '.join(sorted(kinds))}, got {config!r}")
    fields = [field.name for field in dataclasses.fields(kinds[config])]
    unknown = [name for name in options if name not in fields]
    if unknown:
        raise ValueError(f"head: {config} takes {', '.join(fields) or 'no options'}, not {', '.join(unknown)}")
    return kinds[config](**options)
