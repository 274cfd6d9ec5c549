"""Data sets by name or by path, as the commands take them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastar import _checks
from fastar.data import audio, digits, drawings, images, tables, text

# Symbols of a piece of text, samples of a piece of sound, where nothing else is asked for.
TEXT_LENGTH, AUDIO_LENGTH = 128, 1024
MU_LAW_LEVELS = 256


@dataclass(frozen=True)
class DataSet:
    """Examples [N, ...], split in two, and what they are.

    kind: "image" [N, C, H, W], "text" and "audio" [N, T] symbols (mu-law for sound), "table" [N, D]. `levels` is how
    many integers a number may be, None for real numbers. Labels are int64 [N] below `classes`, where they are known and
    were asked for.
    """

    name: str
    kind: str
    train: Tensor
    test: Tensor
    levels: int | None
    alphabet: str | None = None
    rate: int | None = None
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None
    classes: int | None = None

    def describe(self) -> dict[str, Any]:
        """What is needed to show samples: everything but the examples."""
        about = {
            "name": self.name,
            "kind": self.kind,
            "shape": list(self.train.shape[1:]),
            "levels": self.levels,
            "alphabet": self.alphabet,
            "rate": self.rate,
        }
        return about if self.classes is None else {**about, "classes": self.classes}


def find(name: str, length: int | None = None, *, labels: bool = False) -> DataSet:
    """The data set of this name, or of the file or folder at this path.

    `length` cuts text and sound into pieces. A file's last tenth is the test set. With `labels` the examples come with
    their classes: those of digits, of CIFAR-10, and of IDX images beside whose file lies the one of their labels.
    """
    if length is not None:
        _checks.positive("length", length)
    path = Path(name)
    if name not in NAMES and not path.exists():
        raise ValueError(f"data: {name!r} is no file or folder, and none of {', '.join(NAMES)}")
    found = NAMES[name](length) if name in NAMES else _read(path, length)
    if not labels:
        return dataclasses.replace(found, train_labels=None, test_labels=None, classes=None)
    if found.classes is None:
        raise ValueError(f"data: {name} has no labels; digits, CIFAR-10 and IDX images beside their labels have")
    return found


def _images(
    name: str, train: Tensor, test: Tensor, levels: int, labels: tuple[Tensor, Tensor] | None = None, classes: int = 10
) -> DataSet:
    train, test = (one[:, None] if one.dim() == 3 else one for one in (train, test))
    found = DataSet(name, "image", train, test, levels)
    if labels is None:
        return found
    return dataclasses.replace(found, train_labels=labels[0], test_labels=labels[1], classes=classes)


def _digits(binary: bool) -> DataSet:
    found = digits.load()
    labels = found.train_labels, found.test_labels
    if binary:
        half = digits.LEVELS // 2
        return _images("digits-binary", (found.train >= half).long(), (found.test >= half).long(), 2, labels)
    return _images("digits", found.train, found.test, digits.LEVELS, labels)


def _text(name: str, found: text.Text, length: int | None) -> DataSet:
    shortest = min(len(found.train), len(found.test))
    pieces = [text.windows(one, min(length or TEXT_LENGTH, shortest)) for one in (found.train, found.test)]
    return DataSet(name, "text", pieces[0], pieces[1], len(found.alphabet), found.alphabet)


def _sound(name: str, x: Tensor, rate: int, length: int | None) -> DataSet:
    symbols = audio.mu_law(x, MU_LAW_LEVELS).flatten()
    pieces = text.windows(symbols, min(length or AUDIO_LENGTH, len(symbols)))
    return DataSet(name, "audio", *_last_tenth(pieces, name), MU_LAW_LEVELS, rate=rate)


def _known(name: str, found: tables.Known, levels: int | None) -> DataSet:
    return DataSet(name, "table", found.train, found.test, levels)


def _last_tenth(x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    if len(x) < 2:
        raise ValueError(f"{name}: expected at least 2 examples, to train and to test, got {len(x)}")
    held_out = max(1, len(x) // 10)
    return x[:-held_out], x[-held_out:]


def _read(path: Path, length: int | None) -> DataSet:
    if path.is_dir():
        if next(path.glob("*.bin"), None) is not None:
            return _cifar10(path)
        return _images(str(path), *_last_tenth(images.read_png(path), str(path)), 256)
    kind = path.suffix.lower()
    if kind == ".bin":
        return _cifar10(path)
    if kind == ".wav":
        x, rate = audio.read_wav(path)
        return _sound(str(path), x.mean(0), rate, length)
    if kind == ".csv":
        return DataSet(str(path), "table", *_last_tenth(tables.read_csv(path)[0], str(path)), None)
    if kind == ".txt":
        return _text(str(path), text.read(path), length)
    if "idx" in path.name:
        return _idx(path)
    raise ValueError(
        f"{path}: expected a folder of .png or .bin, or a .bin, .wav, .csv, .txt or IDX (..idx3-ubyte[.gz]) file"
    )


def _cifar10(path: Path) -> DataSet:
    found, labels = (_last_tenth(part, str(path)) for part in images.read_cifar10(path))
    return _images(str(path), *found, 256, labels)


def _idx(path: Path) -> DataSet:
    found = images.read_idx(path)
    if found.dim() != 3 or found.dtype != torch.uint8:
        raise ValueError(f"{path}: expected images of bytes, got {found.dtype} {list(found.shape)}")
    beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    if beside == path or not beside.exists():
        return _images(str(path), *_last_tenth(found, str(path)), 256)
    labels = images.read_idx(beside).long()
    if labels.shape != found.shape[:1] or int(labels.min()) < 0:
        raise ValueError(f"{beside}: expected {len(found)} classes from 0, got {list(labels.shape)} numbers")
    pairs = _last_tenth(found, str(path)), _last_tenth(labels, str(path))
    return _images(str(path), *pairs[0], 256, pairs[1], int(labels.max()) + 1)


NAMES: dict[str, Callable[[int | None], DataSet]] = {
    "digits": lambda length: _digits(binary=False),
    "digits-binary": lambda length: _digits(binary=True),
    "strokes": lambda length: _images("strokes", *drawings.strokes(), 2),
    "silhouettes": lambda length: _images("silhouettes", *drawings.silhouettes(), 2),
    "topics": lambda length: _text("topics", text.topics(), length),
    "chirps": lambda length: _sound("chirps", audio.chirps(), audio.RATE, length),
    "strings": lambda length: _sound("strings", audio.strings(), audio.RATE, length),
    "vowels": lambda length: _sound("vowels", audio.vowels(), audio.RATE, length),
    "mixture": lambda length: _known("mixture", tables.mixture(), None),
    "rings": lambda length: _known("rings", tables.rings(), None),
    "chain": lambda length: _known("chain", tables.chain(), 2),
}
