"""The table of models: each trained on data that need no download, and sampled from natively and naively.

    python -m fastar.bench.models --json bench/results/models_cpu.json --readme README.md --threads 1

Trainings lie in the folder `--trained`, and are not repeated where they lie there already: a second run only measures.
With `--only` the other rows stay as the file of `--json` has them, if it was measured on this machine.
The naive way is what a model's user has without a sampler: for every position a full pass over what is known so far,
then one draw; for an IAF one pass of each layer. Both draw the same number of rows in one process, after the same
training.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastar.bench import machine, report
from fastar.bench.pages import with_section
from fastar.cli._training import Plan, Trainer, start
from fastar.data import sets, tables
from fastar.models import IAF, MAF, Model, load
from fastar.models._affine import AffineLayer
from fastar.models.orderless import Orderless
from fastar.sampling import Sampler, draws

ROWS = 64
# A measurement lasts so long at least, and its warm-up too.
SECONDS = 0.3
START, END = "<!-- models: bench/results/models_cpu.json -->\n", "<!-- end of models -->\n"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    model: str
    data: str
    epochs: int
    settings: dict[str, Any] = field(default_factory=dict)
    learning_rate: float = 2e-3
    batch: int = 64
    length: int | None = None
    name: str = ""
    # Of a Markov graph over the pixels: how many rows and columns away two neighbours may be.
    reach: int = 0

    @property
    def label(self) -> str:
        """What the table calls it."""
        return self.name or self.model


def _grid(height: int, width: int, reach: int) -> list[list[int]]:
    # Each pixel's neighbours.
    places = [divmod(i, width) for i in range(height * width)]
    return [
        [j for j, (y, x) in enumerate(places) if max(abs(y - h), abs(x - w)) <= reach and (y, x) != (h, w)]
        for h, w in places
    ]


TABLE = [
    Row("FVSBN", "digits-binary", 60, learning_rate=1e-2),
    Row("NADE", "digits-binary", 60, {"hidden": 128}, 5e-3),
    Row("MADE", "digits-binary", 60, {"hidden": [256], "dropout": 0.3}),
    Row("MADE", "digits-binary", 60, {"hidden": [512]}, 5e-3, name="structured MADE", reach=2),
    Row("DeepNADE", "digits-binary", 100, {"hidden": [256, 256]}),
    Row("ConvNADE", "digits-binary", 60, {"hidden": [32, 32, 32]}, 5e-3),
    Row("CategoricalSBN", "digits", 30, {}),
    Row("MADE", "digits", 60, {"hidden": [512, 512], "dropout": 0.3}),
    Row("PixelCNN", "digits", 12, {"width": 32, "depth": 3}),
    Row("GatedPixelCNN", "digits", 12, {"width": 32, "depth": 3, "kernel_size": 3, "block_kernel_size": 3}),
    Row("PixelRNN", "digits", 12, {"hidden": 16, "depth": 2, "kernel_size": 5}, 5e-3),
    Row("PixelCNNpp", "digits", 12, {"width": 16, "depth": 1, "components": 5}, 5e-3),
    Row("RNADE", "mixture", 30, {"hidden": 64, "components": 8}),
    Row("MAF", "mixture", 30, {"hidden": [64, 64], "layers": 5}),
    Row("IAF", "mixture", 30, {"hidden": [64, 64], "layers": 5}),
    Row("DocNADE", "topics", 4, {"hidden": 64}, length=64),
    Row("WaveNet", "vowels", 16, {"residual": 24, "skip": 48, "dilations": 7}, 5e-3, length=128),
    Row("Transformer", "topics", 4, {"width": 64, "layers": 2, "heads": 4}, length=64),
    Row("CharRNN", "topics", 4, {"hidden": 128, "cell": "lstm"}, 5e-3, length=64),
]


def measure(row: Row, folder: Path) -> dict[str, Any]:
    """Train, unless the folder holds that training, evaluate and time one model."""
    data = sets.find(row.data, row.length)
    plan = Plan(row.epochs, row.batch, row.learning_rate, 1e-2, 0)
    graph = {"markov_graph": _grid(data.train.shape[-2], data.train.shape[-1], row.reach)} if row.reach else {}
    trainer = Trainer(start(row.model, data, {**row.settings, **graph}, None, plan, "cpu"), data, plan, folder)
    trainer.resume()
    trainer.run(lambda progress: None)
    model = load(folder).eval()
    T = None if not any(isinstance(size, str) for size in model.data_shape) else trainer.x.shape[1]
    sampler = Sampler(model, ROWS, threads=torch.get_num_threads())
    fast = _median(lambda: sampler.sample(ROWS, length=T, seed=1))
    laws: dict[str, Callable[[], tables.Known]] = {
        "mixture": tables.mixture,
        "rings": tables.rings,
        "chain": tables.chain,
    }
    known = laws[row.data]() if row.data in laws else None
    return {
        "model": row.label,
        "data": row.data,
        "settings": row.settings,
        "reach": row.reach,
        "parameters": model.num_parameters(),
        "unit": trainer.unit,
        "held_out": min(trainer.progress.held_out),
        "least_possible": None if known is None else -float(known.log_prob(known.test).mean()) / trainer.divisor,
        "rows": ROWS,
        "positions": int(sampler.program.positions or T or 0),
        "fast_s": fast,
        "naive_s": _median(naive_sampler(model, T)),
        "threads": torch.get_num_threads(),
    }


def naive_sampler(model: Model, length: int | None) -> Callable[[], Tensor]:
    """A full pass per position; of an IAF, which needs no more, one of each layer."""
    if isinstance(model, IAF):
        return lambda: _by_one_pass(model)
    if isinstance(model, MAF):
        return lambda: _by_full_passes(model)
    shape = [size if isinstance(size, int) else length or 0 for size in model.data_shape]
    program = model.lower()
    layout = program.weights[program.layout].long() if program.layout else torch.arange(torch.Size(shape).numel())
    head, integer = model.distribution.head, model.distribution.levels is not None

    @torch.no_grad()
    def sample() -> Tensor:
        x = torch.zeros(ROWS, len(layout), dtype=torch.long if integer else torch.float32)
        known = torch.zeros(len(layout), dtype=torch.bool)
        for t, place in enumerate(layout.tolist()):
            if isinstance(model, Orderless):
                params = model(x.view(ROWS, *shape), known.view(*shape))
            elif len(shape) == 1 and length is not None:
                params = model(x[:, : t + 1])
            else:
                params = model(x.view(ROWS, *shape))
            flat = params.movedim(model.params_dim, -1).flatten(1, -2)
            u = torch.rand(ROWS, head.draws, dtype=torch.float64)
            x[:, place] = draws.draw(head, flat[:, place], u, integer=integer)[:, 0].to(x.dtype)
            known[place] = True
        return x

    return sample


@torch.no_grad()
def _by_one_pass(model: IAF) -> Tensor:
    return model.inverse(torch.randn(ROWS, model.dim))[0]


@torch.no_grad()
def _by_full_passes(model: MAF) -> Tensor:
    # MAF's inverse as the field has it: D passes through each layer's network.
    x = torch.randn(ROWS, model.dim)
    for layer in reversed(model.layers):
        assert isinstance(layer, AffineLayer)
        known = torch.zeros_like(x)
        for _ in range(model.dim):
            m, u = layer.network(known).unflatten(1, (model.dim, 2)).unbind(2)
            known = x * torch.exp(u) + m
        x = known
    return x


def _median(run: Callable[[], object]) -> float:
    # Of at least three rounds, after a warm-up, because a core takes its time to reach its pace.
    times: list[float] = []
    for warming in (True, False):
        times.clear()
        while len(times) < (1 if warming else 3) or sum(times) < SECONDS:
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def markdown(results: Sequence[dict[str, Any]], about: dict[str, Any]) -> str:
    """The README's section, made of what `--json` holds."""
    lines = [
        "| model | data | held out | parameters | 64 samples | a full pass per position |",
        "|---|---|---|---|---|---|",
    ]
    for one in results:
        least = one["least_possible"]
        score = f"{one['held_out']:.3f} {one['unit']}" + ("" if least is None else f" (least possible {least:.3f})")
        naive = one["naive_s"]
        slow = f"{report.time_text(naive * 1e6)} ({naive / one['fast_s']:.1f}x)"
        cells = [f"`{one['model']}`", one["data"], score, f"{one['parameters']:,}"]
        lines.append(f"| {' | '.join(cells)} | **{report.time_text(one['fast_s'] * 1e6)}** | {slow} |")
    threads = results[0]["threads"]
    note = f"On {about['processor']}, torch {about['torch']}, {threads} thread{'s' if threads > 1 else ''} either way."
    return START + "\n".join(lines) + f"\n\n{note}\n" + END


def merged(kept: dict[str, Any], new: Sequence[dict[str, Any]], about: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of an earlier run with the new ones in their places; ValueError where the two do not compare."""
    here, there = (about, new[0]["threads"]), (kept["machine"], kept["models"][0]["threads"])
    if here != there:
        raise ValueError(f"was measured on {there[0]} with {there[1]} threads, this is {here[0]} with {here[1]}")
    found = {(one["model"], one["data"]): one for one in [*kept["models"], *new]}
    return [found[row.label, row.data] for row in TABLE if (row.label, row.data) in found]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m fastar.bench.models", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the measurements there")
    parser.add_argument("--readme", type=Path, help="replace the table in this file")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--trained", type=Path, help="keep the trainings there; by default they are thrown away")
    parser.add_argument("--only", help="models whose name contains this")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    rows = [row for row in TABLE if arguments.only is None or arguments.only.lower() in row.label.lower()]
    if not rows:
        parser.error(f"--only: no model's name contains {arguments.only!r}")
    if arguments.readme is not None:
        # Before minutes of training, not behind them.
        try:
            with_section(arguments.readme, START, END, "")
        except (OSError, ValueError) as error:
            parser.error(f"--readme: {error}")
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        trained = arguments.trained or Path(temporary)
        for row in rows:
            results.append(measure(row, trained / f"{row.label}-{row.data}".lower().replace(" ", "-")))
            print(f"{row.label} on {row.data}: {results[-1]['held_out']:.3f} {results[-1]['unit']}", flush=True)
    about = {"processor": machine.describe(torch.device("cpu")).processor, "torch": torch.__version__}
    if arguments.only is not None and arguments.json is not None and arguments.json.exists():
        try:
            results = merged(json.loads(arguments.json.read_text(encoding="utf-8")), results, about)
        except ValueError as error:
            parser.error(f"--only: {arguments.json} {error}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"machine": about, "models": results}, indent=1) + "\n")
    if arguments.readme is not None:
        page = with_section(arguments.readme, START, END, markdown(results, about))
        arguments.readme.write_text(page, encoding="utf-8")
    print(markdown(results, about))


if __name__ == "__main__":
    main()
