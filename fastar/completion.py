"""Completing what is partly known: pictures inside and outside of a frame, text and sound after a beginning.

Each is `Model.sample` with `given`: exact where all that is known comes first in the model's order (a beginning; the
upper rows of a picture; anything for an orderless model), otherwise clamped, with `log_weight` of `return_info=True` as
the importance weight that corrects it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastar import _checks
from fastar.data import audio, text
from fastar.models import Model
from fastar.sampling import SampleResult


def inpaint(model: Model, x: Tensor, known: Tensor, **options: Any) -> Tensor | SampleResult:
    """x [N, ...] with the unknown parts drawn anew; `known` is bool in the shape of x, or of one x."""
    _checks.dtype("known", _checks.tensor("known", known), (torch.bool,))
    if known.shape not in (x.shape, x.shape[1:]):
        raise ValueError(f"known: expected shape {list(x.shape[1:])} or {list(x.shape)}, got {list(known.shape)}")
    model.check(x, options.get("cond"))
    real = model.distribution.levels is None
    given: Tensor = torch.where(known, x if real else x.long(), torch.nan if real else -1)
    return model.sample(len(x), given=given, **options)


def outpaint(model: Model, x: Tensor, top: int = 0, left: int = 0, **options: Any) -> Tensor | SampleResult:
    """The model's whole pictures [N, C, H, W] around x [N, C, h, w], whose first pixel lies at (top, left)."""
    channels, height, width = (int(size) for size in model.data_shape)
    _checks.shape("x", _checks.tensor("x", x), ["N", channels, "h", "w"])
    h, w = x.shape[2:]
    if not (0 <= top <= height - h and 0 <= left <= width - w):
        raise ValueError(f"x: {h}x{w} pixels at ({top}, {left}) do not fit into {height}x{width}")
    whole = x.new_zeros(len(x), channels, height, width)
    known = torch.zeros(channels, height, width, dtype=torch.bool)
    whole[:, :, top : top + h, left : left + w] = x
    known[:, top : top + h, left : left + w] = True
    return inpaint(model, whole, known, **options)


def continue_text(model: Model, prompt: str, alphabet: str, length: int, n: int = 1, **options: Any) -> list[str]:
    """n texts of `length` characters that begin with the prompt."""
    values = _continued(model, text.encode(prompt, alphabet), length, n, **options)
    return [text.decode(row, alphabet) for row in values]


def continue_audio(model: Model, prompt: Tensor, length: int, n: int = 1, **options: Any) -> Tensor:
    """n sounds [n, length] in [-1, 1] that begin with the prompt [t], for a model of mu-law symbols."""
    levels = model.distribution.levels
    if levels is None:
        raise ValueError(f"model: expected one of mu-law symbols, {type(model).__name__} is one of real numbers")
    _checks.shape("prompt", _checks.tensor("prompt", prompt), ["t"])
    values = _continued(model, audio.mu_law(prompt, levels), length, n, **options)
    sounds = audio.from_mu_law(values, levels)
    sounds[:, : len(prompt)] = prompt
    return sounds


def _continued(model: Model, symbols: Tensor, length: int, n: int, **options: Any) -> Tensor:
    if _checks.positive("length", length) < len(symbols):
        raise ValueError(f"length: expected at least the prompt's {len(symbols)}, got {length}")
    given = torch.full((n, length), -1)
    given[:, : len(symbols)] = symbols
    values = model.sample(n, length=length, given=given, **options)
    assert isinstance(values, Tensor)
    return values
