"""The demo's digits: a small masked autoregressive network learns to write them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor

from fastar import _dispatch
from fastar.cli import _demo_screen, _demo_speed, pictures
from fastar.cli._demo_speed import Speed
from fastar.data import digits
from fastar.models import MADE
from fastar.nn import MaskedLinear

PIXELS = digits.HEIGHT * digits.WIDTH
BATCH = 64
LEARNING_RATE = 2e-3
# For 1438 pictures: without both, the held-out likelihood turns back after half of the epochs.
DROPOUT, WEIGHT_DECAY = 0.3, 0.1
# A nearest-neighbour classifier reads this many samples of each digit.
READ_PER_DIGIT = 50
# So many of each digit are drawn both natively and by a full pass per position.
TIMED_PER_DIGIT = 10
SHEET_COLUMNS = 10


def network(hidden: int) -> MADE:
    """p(x | digit) = prod_d p(x_d | x_<d, digit) over pixels in raster order: a MADE with a softmax per pixel."""
    # Spread evenly and ascending, so that the layers need no reordering.
    seen = (torch.arange(hidden) * PIXELS // hidden).tolist()
    head = {"kind": "categorical", "levels": digits.LEVELS}
    return MADE(PIXELS, [hidden] * 2, head, cond_dim=digits.CLASSES, degrees=[seen] * 2, dropout=DROPOUT)


@torch.no_grad()
def bits_per_dim(model: MADE, x: Tensor, digit: Tensor) -> float:
    """Mean of -log2 p(x | digit) per pixel, with dropout off."""
    return model.eval().nll_bits_per_dim(x, digit).mean().item()


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training set gave, in bits per dimension: its own mean with dropout on, then held out."""

    train: float
    held_out: float


def train(model: MADE, data: digits.Digits, epochs: int, seed: int) -> Iterator[Epoch]:
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
            bits = model.loss(x[batch], digit[batch]) / (PIXELS * math.log(2))
            optimizer.zero_grad()
            bits.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += bits.item() * len(batch)
        yield Epoch(total / len(x), bits_per_dim(model, data.test.flatten(1), data.test_labels))


@dataclass(frozen=True)
class Outcome:
    """What was measured and made."""

    data: digits.Digits
    untrained: float
    epochs: list[Epoch]
    train_seconds: float
    # READ_PER_DIGIT pictures of each digit in turn.
    samples: Tensor
    speed: Speed
    real_read: float
    samples_read: float


def run(data: digits.Digits, hidden: int, epochs: int, seed: int, console: Console) -> Outcome:
    """Train, sample and judge, with a progress bar on the console. The same seed gives the same digits."""
    with _demo_screen.one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network(hidden)
        console.print(_opening(model, data), "")
        untrained = bits_per_dim(model, data.test.flatten(1), data.test_labels)
        begin = time.perf_counter()
        history: list[Epoch] = []
        with _demo_screen.bar(console, epochs) as advance:
            for epoch in train(model, data, epochs, seed):
                history.append(epoch)
                advance(len(history), epoch.held_out)
        train_seconds = time.perf_counter() - begin
        model.eval()
        asked = torch.arange(digits.CLASSES).repeat(READ_PER_DIGIT)
        samples, _ = _demo_speed.draw(model, len(asked), cond=asked, seed=seed)
        timed = digits.CLASSES * TIMED_PER_DIGIT
        speed = _demo_speed.compare(model, timed, cond=asked[:timed], seed=seed)
    real_read, samples_read = _read(data, samples, asked)
    images = samples.view(-1, *data.train.shape[1:])
    return Outcome(data, untrained, history, train_seconds, images, speed, real_read, samples_read)


def _opening(model: MADE, data: digits.Digits) -> str:
    masked = [layer for layer in model.modules() if isinstance(layer, MaskedLinear)]
    weights = sum(layer.weight.numel() for layer in masked)
    visible = sum(int(layer.dense_mask().sum()) for layer in masked)
    weight = masked[0].weight
    chosen = _dispatch.choose("masked_linear", weight.device, weight.dtype).name
    return (
        f"[bold]A masked autoregressive network (MADE) learns to draw digits.[/] {len(data.train)} pictures of"
        f" {digits.HEIGHT}x{digits.WIDTH} pixels to learn from, {len(data.test)} held out. {len(masked)} masked linear"
        f" layers, {weights:,} weights, {visible / weights:.0%} of them visible; implementation: {chosen}, one thread."
    )


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
    console.print("", headings, drawn, _demo_screen.table(_measured(outcome)), "", sep="\n")


def _measured(outcome: Outcome) -> list[tuple[str, str]]:
    first, last = outcome.untrained, outcome.epochs[-1].held_out
    nats = PIXELS * math.log(2)
    trained = len(outcome.epochs) * len(outcome.data.train)
    return [
        ("held-out bits per dim", _demo_screen.before_and_after(first, last, digits.LEVELS)),
        ("held-out nats", f"{first * nats:.1f} before, [b]{last * nats:.1f}[/] after"),
        ("read as intended", f"{outcome.real_read:.0%} of real digits, [b]{outcome.samples_read:.0%}[/] of samples"),
        ("training", f"{outcome.train_seconds:.1f} s, {trained / outcome.train_seconds:,.0f} digits/s"),
        ("sampling", outcome.speed.describe("digits")),
    ]


def panel(outcome: Outcome) -> pictures.Panel:
    """What the PNG shows: real and drawn, and the learning curves."""
    count = digits.CLASSES * SHEET_COLUMNS
    sheets = [
        pictures.Sheet(heading, _by_digit(images), SHEET_COLUMNS)
        for heading, images in (("real, held out", _real(outcome.data, count)), ("sampled", outcome.samples[:count]))
    ]
    train, held_out = [epoch.train for epoch in outcome.epochs], [epoch.held_out for epoch in outcome.epochs]
    return pictures.Panel(sheets, _demo_screen.curves(outcome.untrained, train, held_out), "bits per dim")


def _by_digit(images: Tensor) -> Tensor:
    """Pictures of the digits in turn, from 0 to 1, as one row per digit."""
    rows = images.view(-1, digits.CLASSES, *images.shape[1:]).transpose(0, 1)
    return rows.flatten(0, 1) / (digits.LEVELS - 1)
