"""Checks of arguments: each raises one error that names the argument, what came, and what was expected."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def tensor(name: str, value: object) -> Tensor:
    """The value, if it is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    return value


def dtype(name: str, value: Tensor, allowed: Sequence[torch.dtype]) -> None:
    """The tensor's dtype is one of `allowed`."""
    if value.dtype not in allowed:
        names = ", ".join(str(one).removeprefix("torch.") for one in allowed)
        raise TypeError(f"{name}: expected dtype {names}, got {str(value.dtype).removeprefix('torch.')}")


def shape(name: str, value: Tensor, expected: Sequence[int | str]) -> None:
    """The tensor's shape is `expected`; a string stands for any size and says what it means."""
    fits = value.dim() == len(expected) and all(
        isinstance(want, str) or have == want for have, want in zip(value.shape, expected, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(one) for one in expected)
        raise ValueError(f"{name}: expected shape [{wanted}], got {list(value.shape)}")


def same_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Both tensors live on one device."""
    if value.device != other.device:
        raise ValueError(f"{name}: expected the device of {other_name}, {other.device}, got {value.device}")


def fits_vector(value: object, like: Tensor, size: int) -> bool:
    """Whether the value is a vector of this size, with the dtype and device of `like`."""
    return (
        isinstance(value, Tensor)
        and value.dtype == like.dtype
        and value.dim() == 1
        and value.size(0) == size
        and value.device == like.device
    )


def positive(name: str, value: object) -> int:
    """The value, if it is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected a positive integer, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value}")
    return value
