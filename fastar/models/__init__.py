"""Autoregressive models, one file per family."""

from __future__ import annotations

import os

import torch

from fastar import _identity

_identity.require()

from fastar.models import checkpoint  # noqa: E402
from fastar.models.categorical_sbn import CategoricalSBN  # noqa: E402
from fastar.models.char_rnn import CharRNN  # noqa: E402
from fastar.models.conv_nade import ConvNADE  # noqa: E402
from fastar.models.deep_nade import DeepNADE  # noqa: E402
from fastar.models.doc_nade import DocNADE  # noqa: E402
from fastar.models.flows import IAF, MAF  # noqa: E402
from fastar.models.fvsbn import FVSBN  # noqa: E402
from fastar.models.gated_pixelcnn import GatedPixelCNN  # noqa: E402
from fastar.models.made import MADE  # noqa: E402
from fastar.models.model import Model  # noqa: E402
from fastar.models.nade import NADE, RNADE  # noqa: E402
from fastar.models.pixelcnn import PixelCNN  # noqa: E402
from fastar.models.pixelcnnpp import PixelCNNpp  # noqa: E402
from fastar.models.pixelrnn import PixelRNN  # noqa: E402
from fastar.models.transformer import Transformer  # noqa: E402
from fastar.models.wavenet import WaveNet  # noqa: E402

__all__ = [
    "FVSBN",
    "IAF",
    "MADE",
    "MAF",
    "NADE",
    "RNADE",
    "CategoricalSBN",
    "CharRNN",
    "ConvNADE",
    "DeepNADE",
    "DocNADE",
    "GatedPixelCNN",
    "Model",
    "PixelCNN",
    "PixelCNNpp",
    "PixelRNN",
    "Transformer",
    "WaveNet",
    "by_name",
    "load",
]


def by_name(name: str) -> type[Model]:
    """The model class of this name."""
    found = globals().get(name) if name in __all__ else None
    if not isinstance(found, type) or not issubclass(found, Model) or found is Model:
        names = [one for one in __all__ if one[0].isupper() and one != "Model"]
        raise ValueError(f"model: expected one of {', '.join(names)}, got {name!r}")
    return found


def load(folder: str | os.PathLike[str], *, device: torch.device | str | None = None) -> Model:
    """The model of a checkpoint, whichever it is."""
    header, tensors = checkpoint.read(folder)
    return by_name(str(header.get("model"))).from_checkpoint(header, tensors, device=device, source=str(folder))
