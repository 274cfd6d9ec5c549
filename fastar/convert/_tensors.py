"""A foreign state dict, from which tensors are taken by name until none is left."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastar import _checks

# What wrappers of a module put before its names.
WRAPPERS = ("_orig_mod.", "module.")


class Tensors:
    """Tensors by name, the names without wrappers; what then begins with one of `ignore` does not count."""

    def __init__(
        self, tensors: Mapping[str, Tensor], ignore: Sequence[str] = (), wrappers: Sequence[str] = WRAPPERS
    ) -> None:
        if not isinstance(tensors, Mapping):
            raise TypeError(f"tensors: expected a state dict, got {type(tensors).__name__}")
        self._left: dict[str, Tensor] = {}
        for name, value in tensors.items():
            bare = name
            while wrapper := next((one for one in wrappers if bare.startswith(one)), None):
                bare = bare.removeprefix(wrapper)
            if not bare.startswith(tuple(ignore)):
                self._left[bare] = _checks.tensor(f"tensors[{name!r}]", value).detach()
        if not self._left:
            raise ValueError("tensors: expected a state dict, got no tensors")

    def __contains__(self, name: str) -> bool:
        return name in self._left

    @property
    def names(self) -> list[str]:
        """Of what is left, in the order of the state dict."""
        return list(self._left)

    def count(self, pattern: str) -> int:
        """How many whole numbers from 0 on, in the place of ``{}``, begin a name."""
        number = 0
        while any(name.startswith(pattern.format(number)) for name in self._left):
            number += 1
        return number

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one that stays; () where there is none of this name."""
        return tuple(self._left[name].shape) if name in self._left else ()

    def take(self, name: str, *shape: int | str) -> Tensor:
        """The tensor of this name, checked against a shape where one is given; it is left no more."""
        if name not in self._left:
            raise ValueError(f"tensors: expected one called {name!r}, got {_listing(self.names)}")
        value = self._left.pop(name)
        if shape:
            _checks.shape(f"tensors[{name!r}]", value, list(shape))
        return value

    def optional(self, name: str, *shape: int | str) -> Tensor | None:
        """As `take`; None where there is none."""
        return self.take(name, *shape) if name in self._left else None

    def weight(self, path: str, *shape: int | str) -> Tensor:
        """A layer's weight; where weight norm keeps direction and length apart, their product."""
        for length, direction in (("weight_g", "weight_v"), (_ORIGINAL.format(0), _ORIGINAL.format(1))):
            if f"{path}.{length}" in self._left:
                g, v = self.take(f"{path}.{length}"), self.take(f"{path}.{direction}", *shape)
                return torch._weight_norm(v, g, 0)
        return self.take(f"{path}.weight", *shape)

    def drop(self, pattern: str) -> None:
        """Take all whose whole name a regular expression matches: buffers that hold nothing learned."""
        for name in [one for one in self._left if re.fullmatch(pattern, one)]:
            del self._left[name]

    def finish(self) -> None:
        """ValueError unless everything was taken."""
        if self._left:
            raise ValueError(f"tensors: no use for {_listing(self.names)}; name them in `ignore` if none is needed")


_ORIGINAL = "parametrizations.weight.original{}"
_SHOWN = 6


def _listing(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
