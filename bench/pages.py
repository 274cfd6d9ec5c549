"""Measured tables in pages of the documentation, each between two marks and written by a program."""

from __future__ import annotations

from pathlib import Path


def with_section(page: Path, start: str, end: str, section: str) -> str:
    """The page's text with `section`, its marks included, in the place of what stands there; ValueError without one."""
    before, found, rest = page.read_text(encoding="utf-8").partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        missing = end if found else start
        raise ValueError(f"{page}: there is no line {missing.strip()!r}")
    return before + section + after
