"""Philox-4x32-10: the random words of (seed, row, position, draw), and the uniform numbers made of them.

Counter-based, so that a number depends on nothing but its name: not on the batch, its split, the threads, or on how
many numbers were drawn before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four words for a counter of four and a key of two 32-bit words, all held in int64."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The product of two 32-bit words wraps in int64 but keeps all 64 bits.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32) & _LOW ^ c1 ^ k0, p1 & _LOW, (p0 >> 32) & _LOW ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def as_int64(number: int, name: str = "seed") -> int:
    """An integer of 0 to 2^64 - 1 as the int64 of the same bits."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name}: expected an integer, got {type(number).__name__}")
    if not 0 <= number < 1 << 64:
        raise ValueError(f"{name}: expected 0 to 2^64 - 1, got {number}")
    return number - (1 << 64) if number >= 1 << 63 else number


def words(seed: Tensor, row: Tensor, position: int, draw: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four words of each row; seed and row are int64, taken as 64 bits."""
    counter = (row & _LOW, (row >> 32) & _LOW, torch.full_like(row, position), torch.full_like(row, draw))
    return philox(counter, (seed & _LOW, (seed >> 32) & _LOW))


def discrete(seed: Tensor, row: Tensor, position: int, draw: int) -> Tensor:
    """u = (floor(w0 / 2^9) + 1/2) / 2^23 in float64: exact in float32 too, and never 0 or 1."""
    w0, _, _, _ = words(seed, row, position, draw)
    return ((w0 >> 9).double() + 0.5) / (1 << 23)


def continuous(seed: Tensor, row: Tensor, position: int, draw: int) -> Tensor:
    """u = (floor(w0 / 2^6) 2^26 + floor(w1 / 2^6) + 1/2) / 2^52 in float64, never 0 or 1."""
    w0, w1, _, _ = words(seed, row, position, draw)
    return (((w0 >> 6) * (1 << 26) + (w1 >> 6)).double() + 0.5) / (1 << 52)
