"""Which model arguments a data set implies, and a data set's examples as a model takes them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastar.data.sets import DataSet
from fastar.models import Model

# What a model has no default for, in a size that two CPU cores train within minutes.
SIZES: dict[str, dict[str, Any]] = {
    "NADE": {"hidden": 256},
    "RNADE": {"hidden": 64, "components": 10},
    "MADE": {"hidden": [512, 512], "dropout": 0.3},
    "DeepNADE": {"hidden": [256, 256]},
    "ConvNADE": {"hidden": [32, 32, 32]},
    "DocNADE": {"hidden": 128},
    "MAF": {"hidden": [64, 64], "layers": 5},
    "IAF": {"hidden": [64, 64], "layers": 5},
    "CharRNN": {"hidden": 256, "cell": "lstm"},
    "PixelCNN": {"width": 32, "depth": 4},
    "GatedPixelCNN": {"width": 32, "depth": 4},
    "PixelCNNpp": {"width": 32, "depth": 1, "components": 5},
    "PixelRNN": {"hidden": 16, "depth": 3},
    "WaveNet": {"residual": 32, "skip": 64, "dilations": 9},
    "Transformer": {"width": 128, "layers": 4, "heads": 4, "bos": 0},
}

_HELD = {"text": "text", "audio": "sound", "table": "tables"}
# What a model calls the number of its classes.
_CLASSES = ("cond_dim", "global_cond", "classes")


def config(cls: type[Model], data: DataSet, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the model's constructor: the data's, then its usual sizes, then `settings`, the last one winning."""
    shape = list(data.train.shape[1:])
    implied: dict[str, Any] = {
        "dim": math.prod(shape),
        "shape": shape,
        "levels": data.levels,
        "symbols": data.levels,
        "vocabulary": data.levels,
        "context": math.prod(shape),
    }
    if len(shape) == 3:
        implied |= {"size": shape[1:], "image": shape[1:] if shape[0] == 1 else None}
    if data.levels is None:
        implied["head"] = {"kind": "gaussian", "components": 10}
    else:
        implied["head"] = {"kind": "bernoulli"} if data.levels == 2 else {"kind": "categorical", "levels": data.levels}
    known = inspect.signature(cls).parameters
    found = {name: value for name, value in implied.items() if name in known and name not in settings}
    missing = [name for name, value in found.items() if value is None and name != "image"]
    if missing:
        raise ValueError(f"data: {cls.__name__} takes integer levels, and {data.name} holds real numbers")
    if {"size", "shape"} & set(known) and len(shape) != 3:
        raise ValueError(f"data: {cls.__name__} takes images, and {data.name} holds {_HELD[data.kind]}")
    if "size" in known and shape[0] != 1:
        raise ValueError(f"data: {cls.__name__} takes grey images, and those of {data.name} have {shape[0]} channels")
    usual = dict(SIZES.get(cls.__name__, {}))
    if data.classes is not None:
        found |= classes(cls, data)
        # A class stands in its place.
        usual.pop("bos", None)
    return {**found, **usual, **settings}


def classes(cls: type[Model], data: DataSet) -> dict[str, Any]:
    """The argument by which the model is conditioned on the data's classes, where they are known."""
    if data.classes is None:
        return {}
    name = next((one for one in _CLASSES if one in inspect.signature(cls).parameters), None)
    if name is None:
        raise ValueError(f"--labels: {cls.__name__} is conditioned on nothing")
    return {name: data.classes}


def examples(model: Model, x: Tensor) -> Tensor:
    """Examples in the shape and dtype that the model takes: images as vectors or sequences where it knows no other."""
    if not x.is_floating_point():
        x = x.long()
        if model.distribution.levels is None:
            raise ValueError(f"data: {type(model).__name__} takes real numbers, and the data are integer levels")
    elif model.distribution.levels is not None:
        raise ValueError(f"data: {type(model).__name__} takes integer levels, and the data are real numbers")
    else:
        x = x.to(model.dtype)
    return x.flatten(1) if len(model.data_shape) == 1 else x


def per_dim(model: Model, x: Tensor) -> tuple[float, str]:
    """What nats are divided by for the screen, and the unit: bits per dim of levels, nats per dim of real numbers."""
    numbers = math.prod(x.shape[1:])
    return (numbers, "nats/dim") if model.distribution.is_density else (numbers * math.log(2), "bits/dim")


def device_of(name: str) -> torch.device:
    """The device of this name, if it is there."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device: expected cpu or cuda, got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: there is no CUDA device here")
    return device
