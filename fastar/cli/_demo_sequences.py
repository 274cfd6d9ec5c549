"""The demo's text and sound: a recurrent network learns to write, a WaveNet to sing vowels."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor

from fastar.cli import _demo_screen, _demo_speed, pictures
from fastar.cli._demo_speed import Speed
from fastar.cli._training import Plan, Trainer, start
from fastar.data import audio, text
from fastar.data.sets import DataSet
from fastar.models import load

WEIGHT_DECAY = 1e-2


@dataclass(frozen=True)
class Task:
    """A model, what it learns from, and how much it then draws."""

    opening: str
    model: str
    settings: Mapping[str, Any]
    epochs: int
    batch: int
    learning_rate: float
    # Samples that are shown, and their positions.
    rows: int
    length: int
    # Samples that are timed, and their positions: a full pass per position is slow.
    timed_rows: int = 16
    timed_length: int = 128


def writing(hidden: int, epochs: int) -> Task:
    """A recurrent network over characters, of a size and a length of training in proportion to the digits' network."""
    settings = {"hidden": max(1, hidden // 4), "cell": "lstm"}
    opening = "A recurrent network (LSTM) learns to write, from what Python's help() says."
    return Task(opening, "CharRNN", settings, math.ceil(epochs / 15), 64, 5e-3, rows=4, length=640)


def singing(hidden: int, epochs: int) -> Task:
    """A WaveNet over mu-law samples, of a size and a length of training in proportion to the digits' network."""
    residual = max(1, hidden // 16)
    settings = {"residual": residual, "skip": 2 * residual, "dilations": 8}
    opening = "A WaveNet learns to sing vowels."
    return Task(opening, "WaveNet", settings, math.ceil(epochs / 10), 16, 3e-3, rows=4, length=4000)


@dataclass(frozen=True)
class Outcome:
    """What was measured and made."""

    data: DataSet
    untrained: float
    # Per epoch, in bits per dimension.
    train: list[float]
    held_out: list[float]
    train_seconds: float
    samples: Tensor
    speed: Speed

    @property
    def best(self) -> float:
        """Held-out bits per dim of the epoch whose weights the samples are of."""
        return min(self.held_out)


def run(task: Task, data: DataSet, seed: int, console: Console) -> Outcome:
    """Train and sample, with a progress bar on the console. The same seed gives the same samples."""
    with _demo_screen.one_thread(), torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        plan = Plan(task.epochs, task.batch, task.learning_rate, WEIGHT_DECAY, seed)
        trainer = Trainer(start(task.model, data, task.settings, None, plan, "cpu"), data, plan, folder)
        console.print(_opening(task, trainer), "")
        untrained = trainer.evaluate()
        begin = time.perf_counter()
        with _demo_screen.bar(console, trainer.steps) as advance:
            trainer.run(lambda progress: advance(progress.step, (progress.held_out or [untrained])[-1]))
        train_seconds = time.perf_counter() - begin
        model = load(folder).eval()
        samples, _ = _demo_speed.draw(model, task.rows, task.length, seed=seed)
        speed = _demo_speed.compare(model, task.timed_rows, task.timed_length, seed=seed)
    progress = trainer.progress
    return Outcome(data, untrained, progress.train, progress.held_out, train_seconds, samples, speed)


def _opening(task: Task, trainer: Trainer) -> str:
    pieces, positions = trainer.x.shape
    return (
        f"[bold]{task.opening}[/] {pieces:,} pieces of {positions} {_unit(trainer.data)} to learn from,"
        f" {len(trainer.test)} held out; {trainer.model.num_parameters():,} parameters, one thread."
    )


def _unit(data: DataSet) -> str:
    return "characters" if data.kind == "text" else "samples"


def show(outcome: Outcome, console: Console) -> None:
    """What was drawn, and below it what was measured."""
    if outcome.data.kind == "text":
        encoding = console.encoding or "utf-8"
        written = "\n".join(lines(outcome, outcome.samples[0])[:8]).encode(encoding, "replace").decode(encoding)
        console.print("", Text("written", style="bold"), Text(written, no_wrap=True, overflow="crop"), sep="\n")
    else:
        real, sung = (_outline(outcome, x[0], console) for x in (outcome.data.test, outcome.samples))
        console.print("", Text("real", style="bold"), real, Text("sung", style="bold"), sung, sep="\n")
    dims = math.prod(outcome.data.train.shape[1:])
    trained = len(outcome.held_out) * len(outcome.data.train) * dims
    rows = [
        ("held-out bits per dim", _demo_screen.before_and_after(outcome.untrained, outcome.best, outcome.data.levels)),
        ("training", f"{outcome.train_seconds:.1f} s, {trained / outcome.train_seconds:,.0f} {_unit(outcome.data)}/s"),
        ("sampling", outcome.speed.describe("texts" if outcome.data.kind == "text" else "sounds")),
    ]
    console.print("", _demo_screen.table(rows), "", sep="\n")


def lines(outcome: Outcome, symbols: Tensor) -> list[str]:
    """The lines of a piece of text that are not empty."""
    assert outcome.data.alphabet is not None
    return [line for line in text.decode(symbols, outcome.data.alphabet).splitlines() if line.strip()]


def signals(outcome: Outcome, symbols: Tensor) -> Tensor:
    """Symbols [..., T] as sound in [-1, 1]."""
    assert outcome.data.levels is not None
    return audio.from_mu_law(symbols, outcome.data.levels)


def _outline(outcome: Outcome, symbols: Tensor, console: Console) -> Text:
    # Three samples to a character: three or more periods of a voice on 80 columns.
    sound = signals(outcome, symbols)[: console.width * 3]
    outline = sound[: len(sound) // 3 * 3].view(-1, 3).mean(1)
    loudest = outline.abs().max().clamp(min=1e-3)
    return Text(pictures.sparkline(outline / loudest, console), no_wrap=True)


def panel(outcome: Outcome) -> pictures.Panel:
    """What the PNG shows: real and drawn, and the learning curves."""
    content: list[pictures.Passage | pictures.Waves]
    if outcome.data.kind == "text":
        real = outcome.data.test[:12].flatten()
        content = [
            pictures.Passage(heading, [line[:60] for line in lines(outcome, symbols)[:18]])
            for heading, symbols in (("real, held out", real), ("sampled", outcome.samples[0]))
        ]
    else:
        # From all over the held-out sounds, so that different voices are seen.
        length = outcome.data.test.shape[1]
        some = torch.linspace(0, len(outcome.data.test) - 1, len(outcome.samples)).long()
        content = [
            pictures.Waves(heading, signals(outcome, symbols), outcome.data.rate or audio.RATE)
            for heading, symbols in (
                ("real, held out", outcome.data.test[some]),
                ("sampled", outcome.samples[:, :length]),
            )
        ]
    return pictures.Panel(
        content, _demo_screen.curves(outcome.untrained, outcome.train, outcome.held_out), "bits per dim"
    )
