"""`fastar sample`: samples of a checkpoint as a picture, a sound, text or a table."""

from __future__ import annotations

import csv
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

from fastar.cli import pictures
from fastar.data import audio, text
from fastar.models import Model, Transformer, by_name, checkpoint

SUFFIX = {"image": ".png", "audio": ".wav", "text": ".txt", "table": ".csv"}


def sample(
    folder: Annotated[Path, typer.Argument(help="What fastar train or save_pretrained wrote.", metavar="CHECKPOINT")],
    out: Annotated[Path | None, typer.Option(help="A .png, .wav, .txt or .csv file.")] = None,
    n: Annotated[int, typer.Option(help="How many samples.")] = 64,
    length: Annotated[int | None, typer.Option(help="Symbols of each, where the model has no length.")] = None,
    label: Annotated[int | None, typer.Option(help="The class of all samples; by default each class in turn.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What every text begins with.")] = None,
    temperature: Annotated[float, typer.Option(help="Below 1: likelier samples.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Only the k likeliest levels.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Only the likeliest levels that together have p.")] = None,
    greedy: Annotated[bool, typer.Option(help="The likeliest level each time.")] = False,
    seed: Annotated[int, typer.Option(help="The same seed gives the same samples.")] = 0,
    backend: Annotated[str, typer.Option(help="auto, or an executor by name.")] = "auto",
) -> None:
    """Sample from a model and write what it drew."""
    console = Console(highlight=False)
    try:
        header, tensors = checkpoint.read(folder)
        model = by_name(str(header.get("model"))).from_checkpoint(header, tensors, source=str(folder)).eval()
        about = header.get("data") or _guess(model)
        target = out or Path(folder) / f"samples{SUFFIX[about['kind']]}"
        _check(target, about, n)
        options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "greedy": greedy}
        if any(isinstance(size, str) for size in model.data_shape):
            options["length"] = math.prod(about["shape"]) if length is None else length
            if isinstance(model, Transformer):
                # A length beyond its context is meant.
                options["overflow"] = "recompute"
        elif length is not None:
            raise ValueError(f"--length: {type(model).__name__} has {math.prod(about['shape'])} positions of its own")
        if prompt is not None:
            options["given"] = _given(prompt, about, n, options.get("length", math.prod(about["shape"])))
        if about.get("classes") is not None:
            options["cond"] = _labels(label, about["classes"], n)
        elif label is not None:
            raise ValueError(f"--label: this {type(model).__name__} was not trained on labels")
        began = time.perf_counter()
        values = model.sample(n, seed=seed, backend=backend, **options)
        seconds = time.perf_counter() - began
        assert isinstance(values, Tensor)
        # Classes in turn are a column each.
        write(target, values, about, None if label is not None else about.get("classes"))
    except (ValueError, TypeError, OSError) as error:
        print(f"fastar sample: {error}", file=sys.stderr)
        raise typer.Exit(1 if isinstance(error, OSError) else 2) from error
    if about["kind"] == "image":
        _show(values, about, console)
    elif about["kind"] == "text":
        console.print(text.decode(values[0], about["alphabet"]), markup=False, soft_wrap=True)
    console.print(
        f"{n} samples in {seconds:.2f} s, {n / seconds:,.0f} per second; wrote {target}", markup=False, soft_wrap=True
    )


def _given(prompt: str, about: Mapping[str, Any], n: int, length: int) -> Tensor:
    if about["kind"] != "text":
        raise ValueError(f"--prompt: this model was trained on {about['kind']}, not on text")
    symbols = text.encode(prompt, about["alphabet"])
    if not len(symbols) <= length:
        raise ValueError(f"--prompt: {len(symbols)} symbols, in texts of {length}; take a longer --length")
    given = torch.full((n, length), -1)
    given[:, : len(symbols)] = symbols
    return given


def _labels(label: int | None, classes: int, n: int) -> Tensor:
    if label is None:
        return torch.arange(n) % classes
    if not 0 <= label < classes:
        raise ValueError(f"--label: expected 0..{classes - 1}, got {label}")
    return torch.full((n,), label)


def write(target: Path, values: Tensor, about: Mapping[str, Any], columns: int | None = None) -> None:
    """Samples as a file of the kind that its name says; pictures in rows of `columns`, in a square by default."""
    kind = target.suffix.lower()
    if kind == ".png":
        height, width = about["shape"][-2:]
        zoom = max(1, 112 // max(height, width))
        columns = min(len(values), columns or math.ceil(math.sqrt(len(values))))
        pictures.write_sheet(target, _unit(values, about), columns, zoom)
    elif kind == ".wav":
        audio.write_wav(target, audio.from_mu_law(values, about["levels"]).flatten(), about["rate"])
    elif kind == ".txt":
        shown = (text.decode(row, about["alphabet"]) for row in values)
        target.write_text("\n\n-----\n\n".join(shown) + "\n", encoding="utf-8")
    else:
        with target.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(values.flatten(1).tolist())


def _unit(values: Tensor, about: Mapping[str, Any]) -> Tensor:
    # Pictures [N, C, H, W] of values from 0 to 1, from whatever shape the model has them in.
    unit: Tensor = values.view(-1, *about["shape"]).float() / (about["levels"] - 1)
    return unit


def _show(values: Tensor, about: Mapping[str, Any], console: Console) -> None:
    height, width = about["shape"][-2:]
    columns = max(1, min(len(values), (console.width + 1) // (width + 1)))
    rows = max(1, min(2, 24 // (height // 2 + 1)))
    grey = _unit(values[: rows * columns], about).mean(1)
    console.print(pictures.half_blocks(pictures.tile(grey, columns), console))


def _guess(model: Model) -> dict[str, Any]:
    # A checkpoint of save_pretrained does not say what its numbers mean: they are shown as numbers.
    fixed = [size for size in model.data_shape if not isinstance(size, str)]
    return {"kind": "table", "shape": fixed or [256], "levels": model.distribution.levels}


def _check(target: Path, about: Mapping[str, Any], n: int) -> None:
    allowed = {SUFFIX[about["kind"]], ".csv"}
    if target.suffix.lower() not in allowed:
        raise ValueError(
            f"--out: samples of this model are written to {' or '.join(sorted(allowed))}, got {str(target)!r}"
        )
    if n < 1:
        raise ValueError(f"--n: expected a positive integer, got {n}")
    if target.is_dir() or not target.parent.is_dir():
        raise ValueError(f"--out: expected a file in a folder that exists, got {str(target)!r}")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise ValueError(f"--out: no permission to write {str(target)!r}")
    if about["kind"] != "table" and torch.tensor(about["shape"]).numel() == 0:
        raise ValueError("CHECKPOINT: says nothing of its data's shape")
