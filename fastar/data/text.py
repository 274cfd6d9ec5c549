"""Text as symbols: the documentation topics that come with the interpreter, and text files."""

from __future__ import annotations

import codecs
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Bytes of a file that are read at once.
_BLOCK = 1 << 16


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
    # An empty alphabet has one that is nobody's.
    codes, known = _codes(text), _codes(alphabet) if alphabet else np.array([-1])
    order = known.argsort(kind="stable")
    place = order[known[order].searchsorted(codes).clip(max=len(known) - 1)]
    wrong = known[place] != codes
    if wrong.any():
        raise ValueError(f"text: {text[int(wrong.argmax())]!r} is none of the alphabet's {len(alphabet)} characters")
    return torch.from_numpy(place.astype(np.int64))


def _codes(text: str) -> np.ndarray[Any, Any]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)


def decode(symbols: Tensor, alphabet: str) -> str:
    """The characters of symbols [T]."""
    return "".join(alphabet[k] for k in symbols.tolist())


def topics(test_fraction: float = 0.1) -> Text:
    """What ``help("topics")`` knows of the language, one topic after the other; the last part is the test text."""
    from pydoc_data.topics import topics as found

    whole = "\n\n".join(found[name] for name in sorted(found))
    alphabet = "".join(sorted(set(whole)))
    return _split(encode(whole, alphabet), alphabet, test_fraction)


def read(path: str | os.PathLike[str], test_fraction: float = 0.1, *, encoding: str = "utf-8") -> Text:
    """A text file, of the characters that occur in it."""
    alphabet: set[str] = set()
    count = 0
    for block in _blocks(path, encoding):
        alphabet.update(block)
        count += len(block)
    if not count:
        raise ValueError(f"{path}: the file is empty")
    letters = "".join(sorted(alphabet))
    symbols = torch.empty(count, dtype=torch.int64)
    done = 0
    for block in _blocks(path, encoding):
        symbols[done : done + len(block)] = encode(block, letters)
        done += len(block)
    return _split(symbols, letters, test_fraction)


def _blocks(path: str | os.PathLike[str], encoding: str) -> Iterator[str]:
    # The file's text in pieces, line ends as they are in Python.
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)
    done = 0
    with open(path, "rb") as file:
        while True:
            data = file.read(_BLOCK)
            before = done - len(decoder.getstate()[0])
            try:
                piece = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                at = before + error.start
                raise ValueError(f"{path}: not {encoding} text, byte {at} is {error.object[error.start]:#x}") from error
            done += len(data)
            if piece:
                yield piece
            if not data:
                return


def windows(symbols: Tensor, length: int) -> Tensor:
    """[N, length]: the symbols cut into pieces; what is left over at the end is dropped."""
    if not 1 <= length <= len(symbols):
        raise ValueError(f"length: expected 1 to {len(symbols)}, the symbols that there are, got {length}")
    return symbols[: len(symbols) // length * length].view(-1, length)


def _split(symbols: Tensor, alphabet: str, test_fraction: float) -> Text:
    if not 0 <= test_fraction <= 1:
        raise ValueError(f"test_fraction: expected a number from 0 to 1, got {test_fraction}")
    train, test = symbols.tensor_split([len(symbols) - round(test_fraction * len(symbols))])
    return Text(train, test, alphabet)
