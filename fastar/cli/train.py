"""`fastar train`: a model on a data set, with a checkpoint that survives."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from fastar.cli import pictures
from fastar.cli._training import Plan, Progress, Trainer, start
from fastar.data import sets

CURVE = "curve.png"


def train(
    model: Annotated[str, typer.Argument(help="A class of fastar.models, such as MADE.")],
    data: Annotated[str, typer.Option(help="A data set by name, or a file or folder of yours.")] = "digits",
    out: Annotated[Path | None, typer.Option(help="The folder to write; by default MODEL-DATA here.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training set.")] = 20,
    batch: Annotated[int, typer.Option(help="Examples per step.")] = 64,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-3,
    weight_decay: Annotated[float, typer.Option(help="AdamW's.")] = 1e-2,
    seed: Annotated[int, typer.Option(help="The same seed gives the same weights.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A model's argument, as hidden=[256,256].")] = None,
    preset: Annotated[str | None, typer.Option(help="A published configuration of the model.")] = None,
    labels: Annotated[bool, typer.Option("--labels", help="Condition on the examples' classes.")] = False,
    length: Annotated[int | None, typer.Option(help="Symbols or samples of a piece of text or sound.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop after this long; the same command carries on.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="Threads of torch.")] = None,
    restart: Annotated[bool, typer.Option(help="Begin anew where the folder holds a training.")] = False,
) -> None:
    """Train a model, or carry on where the same command was stopped or killed."""
    console = Console(highlight=False)
    try:
        _check(epochs, batch, lr, weight_decay, seed, minutes, threads)
        if threads is not None:
            torch.set_num_threads(threads)
        found = sets.find(data, length, labels=labels)
        folder = out or Path(f"{model}-{Path(data).name}".lower())
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--out: expected a folder, {folder} is a file")
        if restart and (folder / "training").is_dir():
            shutil.rmtree(folder / "training")
        plan = Plan(epochs, batch, lr, weight_decay, seed)
        built = start(model, found, _settings(set_ or []), preset, plan, device)
        trainer = Trainer(built, found, plan, folder)
        resumed = trainer.resume()
    except (ValueError, TypeError, ImportError, OSError) as error:
        print(f"fastar train: {error}", file=sys.stderr)
        raise typer.Exit(2 if isinstance(error, ValueError | TypeError) else 1) from error
    console.print(
        f"[bold]{model}[/], {built.num_parameters():,} parameters, on {len(trainer.x):,} examples of {found.name};"
        f" {len(trainer.test):,} held out, into {folder}"
        + (f"; carrying on from step {trainer.progress.step:,}" if resumed else ""),
        soft_wrap=True,
    )
    try:
        with _stopped_by_signals(trainer):
            finished = _run(trainer, console, math.inf if minutes is None else 60 * minutes)
    except (RuntimeError, OSError) as error:
        print(f"fastar train: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    held_out = trainer.progress.held_out
    if held_out:
        best = min(range(len(held_out)), key=held_out.__getitem__)
        console.print(
            f"held out [bold]{held_out[best]:.3f} {trainer.unit}[/] after epoch {best + 1}; fastar sample {folder}",
            soft_wrap=True,
        )
    if not finished:
        why = "stopped" if trainer.asked_to_stop else "time is up"
        console.print(f"{why} at step {trainer.progress.step:,}; the same command carries on from here")
    if trainer.asked_to_stop:
        raise typer.Exit(130)


@contextlib.contextmanager
def _stopped_by_signals(trainer: Trainer) -> Iterator[None]:
    """Ctrl-C and a polite kill end the training after the step that is under way."""

    def ask(number: int, frame: object) -> None:
        trainer.asked_to_stop = True

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(trainer: Trainer, console: Console, seconds: float) -> bool:
    columns: list[ProgressColumn] = [
        TextColumn("training"),
        BarColumn(),
        TextColumn("epoch {task.fields[epoch]}/" + str(trainer.plan.epochs)),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[score]}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    ]
    began, first = time.monotonic(), trainer.progress.step
    epochs = len(trainer.progress.held_out)
    with Bar(*columns, console=console) as bar:
        task = bar.add_task("", total=trainer.steps, completed=first, epoch=0, rate="", score="")

        def report(p: Progress) -> None:
            nonlocal epochs
            rate = (p.step - first) * trainer.plan.batch / max(1e-9, time.monotonic() - began)
            score = f"{p.nats / p.seen / trainer.divisor:.3f}" if p.seen else f"{p.train[-1]:.3f}"
            held_out = f", {p.held_out[-1]:.3f} held out" if p.held_out else ""
            bar.update(
                task,
                completed=p.step,
                epoch=min(trainer.plan.epochs, p.step // trainer.steps_per_epoch + 1),
                rate=f"{rate:,.0f} examples/s",
                score=f"{score} {trainer.unit}{held_out}",
            )
            if len(p.held_out) > epochs:
                epochs = len(p.held_out)
                write_curve(trainer)

        return trainer.run(report, seconds)


def write_curve(trainer: Trainer) -> None:
    """The learning curve as a PNG in the training's folder."""
    p = trainer.progress
    curves = [pictures.Curve("training", p.train), pictures.Curve("held out", p.held_out)]
    title = f"{type(trainer.model).__name__} on {trainer.data.name}"
    pictures.write_chart(trainer.folder / CURVE, title, curves, trainer.unit)


def _settings(pairs: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ValueError(f"--set: expected NAME=VALUE, got {pair!r}")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            # A bare word is a string: cell=lstm.
            found[name] = value
    return found


def _check(
    epochs: int, batch: int, lr: float, weight_decay: float, seed: int, minutes: float | None, threads: int | None
) -> None:
    for name, value in (("--epochs", epochs), ("--batch", batch)):
        if value < 1:
            raise ValueError(f"{name}: expected a positive integer, got {value}")
    if threads is not None and threads < 1:
        raise ValueError(f"--threads: expected a positive integer, got {threads}")
    for name, number in (("--lr", lr), ("--minutes", 1.0 if minutes is None else minutes)):
        if not 0 < number < math.inf:
            raise ValueError(f"{name}: expected a positive number, got {number}")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"--weight-decay: expected a number of at least 0, got {weight_decay}")
    if not 0 <= seed < 2**40:
        raise ValueError(f"--seed: expected an integer from 0 to 2^40 - 1, got {seed}")
