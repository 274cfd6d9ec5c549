"""Reading data classes back from JSON, field by field: unknown, missing and mistyped fields are refused by name."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

T = TypeVar("T")


def decode(cls: type[T], name: str, data: Any) -> T:
    """An object of a data class from {field: value, ...}; absent fields take their defaults."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{name}: expected an object, got {data!r:.80}")
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    missing = {n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING} - set(data)
    unknown = set(data) - set(known)
    if unknown or missing:
        raise ValueError(f"{name}: has unknown fields {sorted(unknown)} or lacks {sorted(missing)}")
    hints = typing.get_type_hints(cls)
    return cls(**{field: _value(f"{name}.{field}", hints[field], value) for field, value in data.items()})


def _value(name: str, hint: Any, data: Any) -> Any:
    if isinstance(hint, types.UnionType):
        if data is None:
            return None
        hint = next(one for one in typing.get_args(hint) if one is not types.NoneType)
    if hasattr(hint, "from_json"):
        return hint.from_json(data)
    if typing.get_origin(hint) is tuple:
        if not isinstance(data, list | tuple):
            raise ValueError(f"{name}: expected a list, got {data!r:.80}")
        item = typing.get_args(hint)[0]
        return tuple(_value(f"{name}[{k}]", item, one) for k, one in enumerate(data))
    whole = hint is float and isinstance(data, int)
    if (isinstance(data, bool) and hint is not bool) or not (isinstance(data, hint) or whole):
        raise ValueError(f"{name}: expected {hint.__name__}, got {data!r:.80}")
    return float(data) if hint is float else data
