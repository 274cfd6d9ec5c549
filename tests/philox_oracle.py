"""Philox-4x32-10 in Python's own integers: slow, obvious, and what every other implementation is compared with."""

from __future__ import annotations

MASK = 2**32 - 1


def words(seed: int, row: int, position: int, draw: int) -> tuple[int, int, int, int]:
    """The four words of one draw."""
    key0, key1 = seed & MASK, seed >> 32
    c0, c1, c2, c3 = row & MASK, row >> 32, position, draw
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = (key0 + 0x9E3779B9) & MASK, (key1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def discrete(seed: int, row: int, position: int, draw: int) -> float:
    """u of a discrete draw."""
    return (words(seed, row, position, draw)[0] // 2**9 + 0.5) / 2**23


def continuous(seed: int, row: int, position: int, draw: int) -> float:
    """u of a continuous draw."""
    w0, w1, _, _ = words(seed, row, position, draw)
    return (w0 // 2**6 * 2**26 + w1 // 2**6 + 0.5) / 2**52
