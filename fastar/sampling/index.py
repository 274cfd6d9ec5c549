"""Index expressions over loop variables, and references to channels of a buffer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fastar.sampling import codec

Ranges = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Index:
    """floor((const + sum coefficient * variable) / divisor); terms sorted by variable, without zeros."""

    const: int = 0
    terms: tuple[tuple[str, int], ...] = ()
    divisor: int = 1

    def __add__(self, other: int | Index) -> Index:
        if isinstance(other, int):
            return replace(self, const=self.const + other * self.divisor)
        if self.divisor != 1 or other.divisor != 1:
            raise ValueError(f"index: a sum with a divided index is not an index: ({self}) + ({other})")
        terms = dict(self.terms)
        for var, coefficient in other.terms:
            terms[var] = terms.get(var, 0) + coefficient
        kept = tuple(sorted((var, c) for var, c in terms.items() if c))
        return Index(self.const + other.const, kept)

    __radd__ = __add__

    def __mul__(self, factor: int) -> Index:
        if self.divisor != 1:
            raise ValueError(f"index: a multiple of a divided index is not an index: ({self}) * {factor}")
        return Index(self.const * factor, tuple((v, c * factor) for v, c in self.terms if factor))

    __rmul__ = __mul__

    def __neg__(self) -> Index:
        return self * -1

    def __sub__(self, other: int | Index) -> Index:
        return self + (-other)

    def __rsub__(self, other: int) -> Index:
        return -self + other

    def __floordiv__(self, divisor: int) -> Index:
        if divisor < 1:
            raise ValueError(f"index: expected a positive divisor, got {divisor}")
        return replace(self, divisor=self.divisor * divisor)

    @property
    def constant(self) -> int | None:
        """The value, if no variable occurs."""
        return None if self.terms else self.const // self.divisor

    def at(self, variables: Mapping[str, int]) -> int:
        """The value for these values of the variables."""
        return (self.const + sum(c * variables[v] for v, c in self.terms)) // self.divisor

    def bounds(self, ranges: Ranges) -> tuple[float, float]:
        """Least and greatest value while each variable stays in its range, ends included."""
        low: float = self.const
        high: float = self.const
        for var, c in self.terms:
            ends = (c * ranges[var][0], c * ranges[var][1])
            low, high = low + min(ends), high + max(ends)
        return _floor(low, self.divisor), _floor(high, self.divisor)

    def __str__(self) -> str:
        text = ""
        for var, c in self.terms:
            part = var if abs(c) == 1 else f"{abs(c)}*{var}"
            text += f"{'-' if c < 0 else '+' if text else ''}{part}"
        if self.const or not text:
            text += f"{self.const:+d}" if text else str(self.const)
        return text if self.divisor == 1 else f"({text})/{self.divisor}"

    def to_json(self) -> Any:
        """An integer where it is constant."""
        if not self.terms:
            return self.const // self.divisor
        return {"const": self.const, "terms": dict(self.terms), "divisor": self.divisor}

    @staticmethod
    def from_json(data: Any) -> Index:
        """The index that `to_json` wrote."""
        if isinstance(data, int) and not isinstance(data, bool):
            return Index(data)
        whole = isinstance(data, dict) and isinstance(data.get("terms"), dict)
        if not whole or not all(
            type(n) is int for n in (data.get("const"), data.get("divisor"), *data["terms"].values())
        ):
            raise ValueError(f"index: expected an integer or its const, terms and divisor, got {data!r:.80}")
        terms = tuple(sorted((str(v), c) for v, c in data["terms"].items() if c))
        return Index(data["const"], terms, data["divisor"])


def _floor(value: float, divisor: int) -> float:
    return value if math.isinf(value) else value // divisor


def index(value: int | Index) -> Index:
    """An integer as an Index."""
    return Index(value) if isinstance(value, int) else value


def variable(name: str) -> Index:
    """The Index that is a loop's variable."""
    return Index(terms=((name, 1),))


@dataclass(frozen=True)
class Ref:
    """Channels [offset, offset + width) of the vector at coordinates `at` of a buffer."""

    buffer: str
    at: tuple[Index, ...]
    offset: Index
    width: int

    def channels(self, start: int | Index, width: int) -> Ref:
        """A part of these channels, counted from their first."""
        return replace(self, offset=self.offset + start, width=width)

    def __str__(self) -> str:
        place = "".join(f"[{one}]" for one in self.at)
        if self.offset.constant == 0:
            return f"{self.buffer}{place}:{self.width}"
        return f"{self.buffer}{place}+{self.offset}:{self.width}"

    def to_json(self) -> Any:
        """As in docs/step-programs.md, "Files"."""
        return {
            "buffer": self.buffer,
            "at": [one.to_json() for one in self.at],
            "offset": self.offset.to_json(),
            "width": self.width,
        }

    @staticmethod
    def from_json(data: Any) -> Ref:
        """The reference that `to_json` wrote."""
        return codec.decode(Ref, "ref", data)
