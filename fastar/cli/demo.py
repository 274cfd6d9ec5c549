"""`fastar demo`: three small models learn to draw digits, to write text and to sing vowels."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fastar.cli import _demo_digits, _demo_sequences, pictures
from fastar.data import audio, digits, sets

# 8192 hidden units are 77 million weights, and with their gradients and Adam's moments 1.2 GB.
MOST_HIDDEN = 8192
# Positions of a piece of text and of a piece of sound to learn from.
TEXT_LENGTH, SOUND_LENGTH = 64, 256


def write(
    drawn: _demo_digits.Outcome, written: _demo_sequences.Outcome, sung: _demo_sequences.Outcome, out: Path
) -> Path:
    """The PNG, and beside it the sounds one after the other as a WAV file, whose path is returned."""
    sound = out.with_suffix(".wav")
    scores = (drawn.epochs[-1].held_out, written.best, sung.best)
    names = ("digits by a MADE", "text by a recurrent network", "vowels by a WaveNet")
    pictures.write_png(
        out,
        ", ".join(f"{name} ({score:.2f} bits per dim)" for name, score in zip(names, scores, strict=True)),
        [_demo_digits.panel(drawn), _demo_sequences.panel(written), _demo_sequences.panel(sung)],
    )
    audio.write_wav(sound, _demo_sequences.signals(sung, sung.samples).flatten(), sung.data.rate or audio.RATE)
    return sound


def _check(out: Path, epochs: int, hidden: int, seed: int) -> None:
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out: expected a file name that ends in .png, got {str(out)!r}")
    if not out.parent.is_dir():
        raise ValueError(f"--out: the folder {str(out.parent)!r} does not exist")
    for file in (out, out.with_suffix(".wav")):
        if file.is_dir():
            raise ValueError(f"--out: expected a file name, and {str(file)!r} is a folder")
        if not os.access(file if file.exists() else file.parent, os.W_OK):
            raise ValueError(f"--out: no permission to write {str(file)!r}")
    for name, value, limit in (("--epochs", epochs, 10**6), ("--hidden", hidden, MOST_HIDDEN)):
        if not 1 <= value <= limit:
            raise ValueError(f"{name}: expected an integer from 1 to {limit}, got {value}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed: expected an integer from 0 to 2^63 - 1, got {seed}")


def demo(
    out: Annotated[Path, typer.Option(help="The PNG to write; the sounds go beside it, as .wav.")] = Path("demo.png"),
    epochs: Annotated[int, typer.Option(help="Passes over the digits; over text and sound a fraction of them.")] = 60,
    hidden: Annotated[
        int, typer.Option(help="Units of each hidden layer for the digits; a fraction of them for text and sound.")
    ] = 512,
    seed: Annotated[int, typer.Option(help="The same seed gives the same samples.")] = 0,
) -> None:
    """Train three small models, on 8x8 digits, text and sound, sample from each, and show what they learned."""
    console = Console(highlight=False)
    try:
        _check(out, epochs, hidden, seed)
        data = digits.load()
    except (ImportError, ValueError) as error:
        raise _failure(error, 2 if isinstance(error, ValueError) else 1) from error
    drawn = _demo_digits.run(data, hidden, epochs, seed, console)
    _demo_digits.show(drawn, console)
    text, sound = sets.find("topics", TEXT_LENGTH), sets.find("vowels", SOUND_LENGTH)
    written = _demo_sequences.run(_demo_sequences.writing(hidden, epochs), text, seed, console)
    _demo_sequences.show(written, console)
    sung = _demo_sequences.run(_demo_sequences.singing(hidden, epochs), sound, seed, console)
    _demo_sequences.show(sung, console)
    try:
        beside = write(drawn, written, sung, out)
    except OSError as error:
        raise _failure(error, 1) from error
    for file in (out, beside):
        console.print(f"wrote {file.resolve()}", markup=False, soft_wrap=True)


def _failure(error: Exception, status: int) -> typer.Exit:
    print(f"fastar demo: {error}", file=sys.stderr)
    return typer.Exit(status)
