"""Training that can be killed at any moment: what is on disk is whole, and at most a minute old.

A resumed run takes the same batches, learning rates and random numbers as one that never stopped, so the two end with
the same weights.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastar.cli import _fitting
from fastar.data.sets import DataSet
from fastar.models import Model, by_name, checkpoint

# Seconds between checkpoints; half of what may be lost, as a step in between may be long.
EVERY = 30.0
# A step whose gradient is longer is shortened to this.
LONGEST_GRADIENT = 10.0
_WARM_UP = 0.05
_EVALUATED = 1000
_STATE = "training"
# Entries of a checkpoint that are not the model's.
_PREFIX = "training."


@dataclass(frozen=True)
class Plan:
    """What a training is: two with equal plans, models and data follow the same path."""

    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    seed: int


@dataclass
class Progress:
    """How far it is."""

    initialised: bool = False
    step: int = 0
    # Nats per example so far in this epoch, and over how many.
    nats: float = 0.0
    seen: int = 0
    # Per finished epoch, in the unit of the screen.
    train: list[float] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)


class Trainer:
    """A model, its examples and a plan; `run` carries on from wherever the folder's checkpoint is."""

    def __init__(self, model: Model, data: DataSet, plan: Plan, folder: Path) -> None:
        self.model, self.data, self.plan, self.folder = model, data, plan, folder
        self.x, self.test = (_fitting.examples(model, part) for part in (data.train, data.test[:_EVALUATED]))
        self.labels, self.test_labels = data.train_labels, data.test_labels
        model.check(self.x[:1], None if self.labels is None else self.labels[:1])
        self.divisor, self.unit = _fitting.per_dim(model, self.x)
        self.optimizer = torch.optim.AdamW(model.parameters(), plan.learning_rate, weight_decay=plan.weight_decay)
        self.progress = Progress()
        self.steps_per_epoch = math.ceil(len(self.x) / plan.batch)
        self.saved = time.monotonic()
        # Set from a signal's handler: between two steps all is consistent, within one it is not.
        self.asked_to_stop = False
        torch.manual_seed(plan.seed)

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.plan.epochs * self.steps_per_epoch

    def run(self, report: Callable[[Progress], object], seconds: float = math.inf) -> bool:
        """Train to the end, or for so long; whether it is the end. The folder is up to date in either case."""
        stop = time.monotonic() + seconds
        order = self._order()
        if not self.progress.initialised:
            self.progress.initialised = True
            self.model.initialise(*self._examples(self.x, self.labels, order[: self.plan.batch]))
        if len(self.progress.held_out) < self.progress.step // self.steps_per_epoch:
            # Killed while it was evaluated.
            self._finish_epoch()
        while self.progress.step < self.steps and time.monotonic() < stop and not self.asked_to_stop:
            batch = self.progress.step % self.steps_per_epoch
            if batch == 0:
                order = self._order()
            self._step(order[batch * self.plan.batch : (batch + 1) * self.plan.batch])
            if batch + 1 == self.steps_per_epoch:
                # Evaluating may take long, and what it follows must not be older than it has to be.
                if time.monotonic() - self.saved > EVERY / 2:
                    self.save()
                self._finish_epoch()
            if time.monotonic() - self.saved > EVERY:
                self.save()
            report(self.progress)
        self.save()
        return self.progress.step == self.steps

    def _order(self) -> Tensor:
        epoch = self.progress.step // self.steps_per_epoch
        generator = torch.Generator().manual_seed(self.plan.seed * 1_000_003 + epoch)
        return torch.randperm(len(self.x), generator=generator)

    def _examples(self, x: Tensor, labels: Tensor | None, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        device = self.model.device
        return x[rows].to(device), None if labels is None else labels[rows].to(device)

    def _step(self, rows: Tensor) -> None:
        done = self.progress.step / self.steps
        for group in self.optimizer.param_groups:
            warm = min(1.0, (done + 1 / self.steps) / _WARM_UP)
            group["lr"] = self.plan.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * done))
        self.model.train()
        self.optimizer.zero_grad()
        loss = self.model.loss(*self._examples(self.x, self.labels, rows))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), LONGEST_GRADIENT)
        self.optimizer.step()
        nats = float(loss.detach())
        if not math.isfinite(nats):
            raise RuntimeError(f"the loss became {nats} in step {self.progress.step}; try a smaller --lr")
        self.progress.nats += nats * len(rows)
        self.progress.seen += len(rows)
        self.progress.step += 1

    def _finish_epoch(self) -> None:
        p = self.progress
        p.train.append(p.nats / p.seen / self.divisor)
        p.nats, p.seen = 0.0, 0
        # What evaluating may draw must not shift what the next steps draw.
        with torch.random.fork_rng(devices=[]):
            p.held_out.append(self.evaluate())
        if p.held_out[-1] <= min(p.held_out):
            self._write(self.folder, {}, {})

    @torch.no_grad()
    def evaluate(self) -> float:
        """Held-out -log p, in the unit of the screen."""
        self.model.eval()
        batches = torch.arange(len(self.test)).split(self.plan.batch)
        parts = [self.model.log_prob(*self._examples(self.test, self.test_labels, rows)).sum() for rows in batches]
        return -float(torch.stack(parts).sum()) / len(self.test) / self.divisor

    def save(self) -> None:
        """Write all that carrying on needs."""
        tensors = {"random": torch.get_rng_state()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in state.items()}
        header = {"plan": dataclasses.asdict(self.plan), "progress": dataclasses.asdict(self.progress)}
        self._write(self.folder / _STATE, header, tensors)
        if not self.progress.held_out:
            # No epoch has chosen a best model yet; this one can be looked at meanwhile.
            self._write(self.folder, {}, {})
        self.saved = time.monotonic()

    def _write(self, folder: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        own = {f"{_PREFIX}{name}": t for name, t in tensors.items()}
        checkpoint.write(folder, {**self._about(), **header}, {**self.model.state_dict(), **own})

    def _about(self) -> dict[str, Any]:
        return {
            "model": type(self.model).__name__,
            "config": self.model.to_config(),
            "data": self.data.describe(),
        }

    def resume(self) -> bool:
        """Take up the training that the folder holds, if it holds one; ValueError where it is another one."""
        if not (self.folder / _STATE / checkpoint.CONFIG).exists():
            return False
        header, tensors = checkpoint.read(self.folder / _STATE)
        mine = {**self._about(), "plan": dataclasses.asdict(self.plan)}
        for name, value in json.loads(json.dumps(mine)).items():
            if header.get(name) != value:
                raise ValueError(
                    f"--out: {self.folder} holds another training ({_difference(header.get(name), value)}); "
                    "take another folder, or --restart"
                )
        own = {name: t for name, t in tensors.items() if not name.startswith(_PREFIX)}
        self.model.load_state_dict(own)
        state: dict[int, dict[str, Tensor]] = {}
        for name, t in tensors.items():
            if name.startswith(f"{_PREFIX}optimizer."):
                number, _, key = name.removeprefix(f"{_PREFIX}optimizer.").partition(".")
                state.setdefault(int(number), {})[key] = t
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        torch.set_rng_state(tensors[f"{_PREFIX}random"])
        self.progress = Progress(**header["progress"])
        return True


def _difference(have: Any, want: Any) -> str:
    if isinstance(have, Mapping) and isinstance(want, Mapping):
        name = next(key for key in {**have, **want} if have.get(key) != want.get(key))
        return f"{name} {have.get(name)}, here {want.get(name)}"
    return f"{have}, here {want}"


def start(
    cls_name: str, data: DataSet, settings: Mapping[str, Any], preset: str | None, plan: Plan, device: str
) -> Model:
    """A new model for the data, with weights of the plan's seed."""
    cls = by_name(cls_name)
    torch.manual_seed(plan.seed)
    where = _fitting.device_of(device)
    if preset is not None:
        return cls.preset(preset, device=where, **{**_fitting.classes(cls, data), **settings})
    return cls.from_config(_fitting.config(cls, data, settings), device=where)
