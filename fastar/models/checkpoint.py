"""Checkpoints on disk: tensors as safetensors, everything else as JSON, replaced together or not at all.

A folder holds ``config.json`` and the weights that it names. The weights' name carries the digest of their bytes, so a
new checkpoint never touches the old one's files; the rename of ``config.json`` is the moment at which it counts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

CONFIG = "config.json"
FORMAT = "fastar checkpoint"
VERSION = 1


def write(folder: str | os.PathLike[str], content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint; if anything fails, the one that the folder held is still whole."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    # Copies, because the file format refuses tensors that share memory (a tied output layer).
    data = save({name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    weights = f"weights-{digest[:16]}.safetensors"
    header = {"format": FORMAT, "version": VERSION, **content, "weights": weights, "sha256": digest}
    text = json.dumps(header, indent=1)
    _replace(path / weights, data)
    _replace(path / CONFIG, text.encode())
    for other in path.glob("weights-*.safetensors*"):
        if other.name != weights:
            other.unlink()


def read(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `write` wrote; ValueError that names the file where it is missing, foreign, damaged or cut short."""
    path = Path(folder)
    header = _header(path / CONFIG)
    weights = path / str(header["weights"])
    try:
        data = weights.read_bytes()
    except OSError as error:
        raise ValueError(f"{weights}: named by {CONFIG}, and cannot be read ({error.strerror})") from error
    if hashlib.sha256(data).hexdigest() != header["sha256"]:
        raise ValueError(f"{weights}: not the bytes that {CONFIG} speaks of; damaged or cut short")
    try:
        return header, load(data)
    except SafetensorError as error:
        raise ValueError(f"{weights}: not a safetensors file ({error})") from error


def _header(file: Path) -> dict[str, Any]:
    try:
        header = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file}: no checkpoint there ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"{file}: not JSON, so damaged or cut short ({error})") from error
    wanted = {"format": FORMAT, "version": VERSION}
    if not isinstance(header, dict) or {key: header.get(key) for key in wanted} != wanted:
        raise ValueError(f"{file}: expected {FORMAT!r}, version {VERSION}; this is another program's file")
    if not all(isinstance(header.get(key), str) for key in ("weights", "sha256")):
        raise ValueError(f"{file}: does not name its weights")
    return header


def _replace(file: Path, data: bytes) -> None:
    new = file.with_name(file.name + ".new")
    try:
        with new.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(new, file)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
