"""`fastar demo`: a small masked autoregressive network learns to write digits."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from fastar import _dispatch
from fastar.cli import pictures
from fastar.data import digits
from fastar.nn import MaskedLinear

PIXELS = digits.HEIGHT * digits.WIDTH
BATCH = 64
LEARNING_RATE = 2e-3
# For 1438 pictures: without both, the held-out likelihood turns back after half of the epochs.
DROPOUT, WEIGHT_DECAY = 0.3, 0.1
# A nearest-neighbour classifier reads this many samples of each digit.
READ_PER_DIGIT = 50
SHEET_COLUMNS = 10
# 8192 hidden units are 77 million weights, and with their gradients and Adam's moments 1.2 GB.
MOST_HIDDEN = 8192


class DigitModel(nn.Module):
    """p(x | digit) = prod_d p(x_d | x_<d, digit) over pixels in raster order: a MADE with a softmax per pixel.

    Pixel d has degree d + 1 and the digit, one-hot, has degree 0. A hidden unit of degree k sees the digit and the
    first k pixels; the logits of pixel d see the hidden units of degrees up to d.
    """

    def __init__(
        self,
        hidden: int,
        pixels: int = PIXELS,
        levels: int = digits.LEVELS,
        classes: int = digits.CLASSES,
        dropout: float = DROPOUT,
    ) -> None:
        super().__init__()
        self.pixels, self.levels, self.classes = pixels, levels, classes
        pixel = torch.arange(1, pixels + 1)
        # Spread evenly and ascending, so that the layers need no reordering.
        seen = torch.arange(hidden) * pixels // hidden
        given = torch.cat([torch.zeros(classes, dtype=torch.long), pixel])
        logit = pixel.repeat_interleave(levels)
        self.layers = nn.Sequential(
            MaskedLinear(classes + pixels, hidden, in_degrees=given, out_degrees=seen, activation="relu"),
            nn.Dropout(dropout),
            MaskedLinear(hidden, hidden, in_degrees=seen, out_degrees=seen, activation="relu"),
            nn.Dropout(dropout),
            MaskedLinear(hidden, pixels * levels, in_degrees=seen, out_degrees=logit, strict=True),
        )

    def forward(self, x: Tensor, digit: Tensor) -> Tensor:
        """Logits [B, pixels, levels] from pictures [B, pixels] of levels and their digits [B]."""
        scaled = x.float() * (2 / (self.levels - 1)) - 1
        logits: Tensor = self.layers(torch.cat([F.one_hot(digit, self.classes).float(), scaled], 1))
        return logits.view(-1, self.pixels, self.levels)

    def log_prob(self, x: Tensor, digit: Tensor) -> Tensor:
        """log p(x | digit) [B] in nats."""
        return -F.cross_entropy(self(x, digit).transpose(1, 2), x, reduction="none").sum(1)

    @torch.no_grad()
    def sample(self, digit: Tensor, seed: int) -> Tensor:
        """A picture [B, pixels] for each digit, pixel by pixel in raster order."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.zeros(len(digit), self.pixels, dtype=torch.long)
        for d in range(self.pixels):
            x[:, d] = torch.multinomial(self(x, digit)[:, d].softmax(1), 1, generator=generator)[:, 0]
        return x


@torch.no_grad()
def bits_per_dim(model: DigitModel, x: Tensor, digit: Tensor) -> float:
    """Mean of -log2 p(x | digit) per pixel, with dropout off."""
    model.eval()
    return -model.log_prob(x, digit).mean().item() / (model.pixels * math.log(2))


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training set gave, in bits per dimension: its own mean with dropout on, then held out."""

    train: float
    held_out: float


def train(model: DigitModel, data: digits.Digits, epochs: int, seed: int) -> Iterator[Epoch]:
    """Train by maximum likelihood, one `Epoch` at a time."""
    x, digit = data.train.flatten(1), data.train_labels
    steps = epochs * math.ceil(len(x) / BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    shuffle = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        model.train()
        total = 0.0
        for batch in torch.split(torch.randperm(len(x), generator=shuffle), BATCH):
            bits = -model.log_prob(x[batch], digit[batch]).mean() / (model.pixels * math.log(2))
            optimizer.zero_grad()
            bits.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += bits.item() * len(batch)
        yield Epoch(total / len(x), bits_per_dim(model, data.test.flatten(1), data.test_labels))


@dataclass(frozen=True)
class Outcome:
    """What the demo measured and made."""

    data: digits.Digits
    untrained: float
    epochs: list[Epoch]
    train_seconds: float
    # READ_PER_DIGIT pictures of each digit in turn, and how long they took.
    samples: Tensor
    sample_seconds: float
    real_read: float
    samples_read: float


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    # The products are small: a second thread gains a sixth on an idle machine, and on a busy one the two wait for each
    # other many times as long as they work.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run(data: digits.Digits, hidden: int, epochs: int, seed: int, console: Console) -> Outcome:
    """Train, sample and judge, with a progress bar on the console. The same seed gives the same digits."""
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitModel(hidden)
        console.print(_opening(model, data), "")
        untrained = bits_per_dim(model, data.test.flatten(1), data.test_labels)
        begin = time.perf_counter()
        history = _train_with_bar(model, data, epochs, seed, console)
        train_seconds = time.perf_counter() - begin
        model.eval()
        begin = time.perf_counter()
        asked = torch.arange(digits.CLASSES).repeat(READ_PER_DIGIT)
        samples = model.sample(asked, seed)
        sample_seconds = time.perf_counter() - begin
    real_read, samples_read = _read(data, samples, asked)
    return Outcome(
        data, untrained, history, train_seconds, samples.view(-1, *data.train.shape[1:]), sample_seconds, real_read,
        samples_read,
    )  # fmt: skip


def _opening(model: DigitModel, data: digits.Digits) -> str:
    masked = [layer for layer in model.layers if isinstance(layer, MaskedLinear)]
    weights = sum(layer.weight.numel() for layer in masked)
    visible = sum(int(layer.dense_mask().sum()) for layer in masked)
    weight = masked[0].weight
    chosen = _dispatch.choose("masked_linear", weight.device, weight.dtype).name
    return (
        f"[bold]A masked autoregressive network (MADE) learns to write digits.[/] {len(data.train)} pictures of"
        f" {digits.HEIGHT}x{digits.WIDTH} pixels to learn from, {len(data.test)} held out. {len(masked)} masked linear"
        f" layers, {weights:,} weights, {visible / weights:.0%} of them visible; implementation: {chosen}, one thread."
    )


def _train_with_bar(model: DigitModel, data: digits.Digits, epochs: int, seed: int, console: Console) -> list[Epoch]:
    history: list[Epoch] = []
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[bits]}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=epochs, bits="")
        for epoch in train(model, data, epochs, seed):
            history.append(epoch)
            progress.update(task, advance=1, bits=f"{epoch.held_out:.2f} bits/dim")
    return history


def _read(data: digits.Digits, samples: Tensor, asked: Tensor) -> tuple[float, float]:
    """How much of the held-out set, and of the samples, a classifier that knows real digits reads as what it is."""
    from sklearn.neighbors import KNeighborsClassifier

    reader = KNeighborsClassifier(n_neighbors=3).fit(data.train.flatten(1).numpy(), data.train_labels.numpy())
    real = reader.score(data.test.flatten(1).numpy(), data.test_labels.numpy())
    return float(real), float(reader.score(samples.numpy(), asked.numpy()))


def _real(data: digits.Digits, count: int) -> Tensor:
    """`count` held-out pictures, the digits 0 to 9 in turn."""
    by_digit = [data.test[data.test_labels == digit] for digit in range(digits.CLASSES)]
    return torch.stack([by_digit[i % digits.CLASSES][i // digits.CLASSES] for i in range(count)])


def show(outcome: Outcome, console: Console) -> None:
    """Real digits beside samples, and below them what was measured."""
    gap = 3
    cell = digits.WIDTH + pictures.GAP_COLUMNS
    columns = max(1, min(SHEET_COLUMNS, ((console.width - gap) // 2 + pictures.GAP_COLUMNS) // cell))
    # All ten digits at least once from five columns on; more where the screen is high enough for all that is printed.
    rows = min(4, max(2 if columns >= 5 else 3, (console.height - 13) // (digits.HEIGHT // 2 + 1)))
    count = rows * columns

    def tiled(images: Tensor) -> Tensor:
        return pictures.tile(images[:count] / (digits.LEVELS - 1), columns)

    left, right = tiled(_real(outcome.data, count)), tiled(outcome.samples)
    headings = Text("real".ljust(left.shape[1] + gap) + "sampled", style="bold", no_wrap=True)
    drawn = pictures.half_blocks(pictures.beside(left, right, gap), console)
    console.print("", headings, drawn, _measured(outcome), sep="\n")


def _measured(outcome: Outcome) -> Table:
    first, last, guess = outcome.untrained, outcome.epochs[-1].held_out, math.log2(digits.LEVELS)
    nats = PIXELS * math.log(2)
    trained, sampled = len(outcome.epochs) * len(outcome.data.train), len(outcome.samples)
    table = Table.grid(padding=(0, 2))
    for name, value in (
        (
            "held-out bits per dim",
            f"{first:.2f} before, [b]{last:.2f}[/] after ({guess:.2f} is guessing)",
        ),
        ("held-out nats", f"{first * nats:.1f} before, [b]{last * nats:.1f}[/] after"),
        ("read as intended", f"{outcome.real_read:.0%} of real digits, [b]{outcome.samples_read:.0%}[/] of samples"),
        ("training", f"{outcome.train_seconds:.1f} s, {trained / outcome.train_seconds:,.0f} digits/s"),
        ("sampling", f"{outcome.sample_seconds:.2f} s, {sampled / outcome.sample_seconds:,.0f} digits/s"),
    ):
        table.add_row(name, value)
    return table


def write(outcome: Outcome, out: Path) -> None:
    """The PNG: a sheet of real digits, a sheet of samples, and the learning curve."""
    count = digits.CLASSES * SHEET_COLUMNS
    held_out = [outcome.untrained, *(epoch.held_out for epoch in outcome.epochs)]
    pictures.write_png(
        out,
        f"8x8 digits by a MADE of masked linear layers, {held_out[-1]:.2f} bits per dim on held-out digits",
        [
            pictures.Sheet("real, held out", _by_digit(_real(outcome.data, count)), SHEET_COLUMNS),
            pictures.Sheet("sampled", _by_digit(outcome.samples[:count]), SHEET_COLUMNS),
        ],
        [
            pictures.Curve("training, with dropout", [epoch.train for epoch in outcome.epochs]),
            pictures.Curve("held out", held_out, first=0),
        ],
        unit="bits per dim",
    )


def _by_digit(images: Tensor) -> Tensor:
    """Pictures of the digits in turn, from 0 to 1, as one row per digit."""
    rows = images.view(-1, digits.CLASSES, *images.shape[1:]).transpose(0, 1)
    return rows.flatten(0, 1) / (digits.LEVELS - 1)


def _check(out: Path, epochs: int, hidden: int, seed: int) -> None:
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out: expected a file name that ends in .png, got {str(out)!r}")
    if out.is_dir():
        raise ValueError(f"--out: expected a file name, and {str(out)!r} is a folder")
    if not out.parent.is_dir():
        raise ValueError(f"--out: the folder {str(out.parent)!r} does not exist")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise ValueError(f"--out: no permission to write {str(out)!r}")
    for name, value, limit in (("--epochs", epochs, 10**6), ("--hidden", hidden, MOST_HIDDEN)):
        if not 1 <= value <= limit:
            raise ValueError(f"{name}: expected an integer from 1 to {limit}, got {value}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"--seed: expected an integer from 0 to 2^63 - 1, got {seed}")


def demo(
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("digits.png"),
    epochs: Annotated[int, typer.Option(help="Passes over the training set.")] = 60,
    hidden: Annotated[int, typer.Option(help="Units in each of the two hidden layers.")] = 512,
    seed: Annotated[int, typer.Option(help="The same seed gives the same digits.")] = 0,
) -> None:
    """Train a small masked autoregressive network on 8x8 digits, sample from it, and show both."""
    console = Console(highlight=False)
    try:
        _check(out, epochs, hidden, seed)
        data = digits.load()
    except (ImportError, ValueError) as error:
        raise _failure(error, 2 if isinstance(error, ValueError) else 1) from error
    outcome = run(data, hidden, epochs, seed, console)
    show(outcome, console)
    try:
        write(outcome, out)
    except OSError as error:
        raise _failure(error, 1) from error
    console.print(f"\nwrote {out.resolve()}", markup=False, soft_wrap=True)


def _failure(error: Exception, status: int) -> typer.Exit:
    print(f"fastar demo: {error}", file=sys.stderr)
    return typer.Exit(status)
