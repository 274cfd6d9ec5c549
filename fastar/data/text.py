"""Text as symbols: the documentation topics that come with the interpreter, and text files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class Text:
    """Symbols int64 [N], split in two, and the characters that they stand for."""

    train: Tensor
    test: Tensor
    alphabet: str

    def decode(self, symbols: Tensor) -> str:
        """The characters of symbols [T]."""
        return decode(symbols, self.alphabet)


def encode(text: str, alphabet: str) -> Tensor:
    """int64 [N]: each character's place in the alphabet; ValueError for one that is not in it."""
    place = {character: k for k, character in enumerate(alphabet)}
    try:
        return torch.tensor([place[character] for character in text], dtype=torch.int64)
    except KeyError as error:
        raise ValueError(f"text: {error.args[0]!r} is none of the alphabet's {len(alphabet)} characters") from None


def decode(symbols: Tensor, alphabet: str) -> str:
    """The characters of symbols [T]."""
    return "".join(alphabet[k] for k in symbols.tolist())


def topics(test_fraction: float = 0.1) -> Text:
    """What ``help("topics")`` knows of the language, one topic after the other; the last part is the test text."""
    from pydoc_data.topics import topics as found

    return _split("\n\n".join(found[name] for name in sorted(found)), test_fraction)


def read(path: str | os.PathLike[str], test_fraction: float = 0.1, *, encoding: str = "utf-8") -> Text:
    """A text file, of the characters that occur in it."""
    try:
        text = Path(path).read_text(encoding=encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not {encoding} text, byte {error.start} is {error.object[error.start]:#x}"
        ) from error
    if not text:
        raise ValueError(f"{path}: the file is empty")
    return _split(text, test_fraction)


def windows(symbols: Tensor, length: int) -> Tensor:
    """[N, length]: the symbols cut into pieces; what is left over at the end is dropped."""
    if not 1 <= length <= len(symbols):
        raise ValueError(f"length: expected 1 to {len(symbols)}, the symbols that there are, got {length}")
    return symbols[: len(symbols) // length * length].view(-1, length)


def _split(text: str, test_fraction: float) -> Text:
    if not 0 <= test_fraction <= 1:
        raise ValueError(f"test_fraction: expected a number from 0 to 1, got {test_fraction}")
    alphabet = "".join(sorted(set(text)))
    symbols = encode(text, alphabet)
    train, test = symbols.tensor_split([len(symbols) - round(test_fraction * len(symbols))])
    return Text(train, test, alphabet)
