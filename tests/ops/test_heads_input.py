"""Bad input to the heads: one clear error each, whatever the implementation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastar import _dispatch
from fastar.ops import (
    bernoulli_log_prob,
    categorical_log_prob,
    gaussian_mixture_log_prob,
    laplace_mixture_log_prob,
    logistic_mixture_log_prob,
)

IMPLEMENTATIONS = ["cpu", "reference"]

LOGITS, BITS = torch.randn(4, 6), torch.randint(0, 2, (4, 6))
RGB = torch.randn(4, 20, 3, 3)
COLOURS = torch.zeros(4, 3, 3, 3, dtype=torch.int64)


def changed(x: Tensor, value: float, at: tuple[int, ...]) -> Tensor:
    x = x.clone()
    x[at] = value
    return x


BAD: list[tuple[str, type[Exception], str, Callable[[], Any]]] = [
    ("logits no tensor", TypeError, "logits: expected a tensor, got list", lambda: bernoulli_log_prob([1.0], BITS)),
    ("integer logits", TypeError, "logits: expected dtype", lambda: bernoulli_log_prob(BITS, BITS)),
    ("bits of another shape", ValueError, r"x: expected shape \[4, 6\]", lambda: bernoulli_log_prob(LOGITS, BITS[0])),
    ("a bit of 2", ValueError, r"x: expected values in \[0, 1\] for a bernoulli head, got 2 at \[1, 3\]",
     lambda: bernoulli_log_prob(LOGITS, changed(BITS, 2, (1, 3)))),
    ("a bit of 2, summed", ValueError, r"got 2 at \[1, 3\]",
     lambda: bernoulli_log_prob(LOGITS, changed(BITS, 2, (1, 3)), event_dims=1)),
    ("a bit below 0", ValueError, r"got -1 at \[3, 5\]",
     lambda: bernoulli_log_prob(LOGITS, changed(BITS.to(torch.int8), -1, (3, 5)))),
    ("a NaN bit", ValueError, r"got nan at \[0, 0\]",
     lambda: bernoulli_log_prob(LOGITS, changed(BITS.float(), math.nan, (0, 0)))),
    ("event_dims", ValueError, "event_dims: expected 0 to 2", lambda: bernoulli_log_prob(LOGITS, BITS, event_dims=3)),
    ("event_dims no integer", TypeError, "event_dims: expected an integer",
     lambda: bernoulli_log_prob(LOGITS, BITS, event_dims=1.0)),
    ("gradient of bits", ValueError, "x: a bernoulli head has no gradient for its data",
     lambda: bernoulli_log_prob(LOGITS, BITS.float().requires_grad_())),
    ("float levels", TypeError, "x: expected dtype int64", lambda: categorical_log_prob(LOGITS, torch.zeros(4))),
    ("a level too many", ValueError, r"x: expected values in \[0, 5\] for a categorical head, got 6 at \[2\]",
     lambda: categorical_log_prob(LOGITS, torch.tensor([0, 5, 6, 7]))),
    ("a negative level", ValueError, r"got -1 at \[3\]",
     lambda: categorical_log_prob(LOGITS, torch.tensor([0, 5, 1, -1]))),
    ("a level too many, columns", ValueError, r"x: expected values in \[0, 3\].*got 4 at \[5\]",
     lambda: categorical_log_prob(LOGITS, torch.tensor([0, 1, 2, 3, 0, 4]), dim=0)),
    ("levels of another shape", ValueError, r"x: expected shape \[6\]",
     lambda: categorical_log_prob(LOGITS, torch.zeros(4, dtype=torch.int64), dim=0)),
    ("dim", ValueError, r"dim: expected a dimension of logits \[4, 6\], got 2",
     lambda: categorical_log_prob(LOGITS, BITS[:, 0], dim=2)),
    ("no levels", ValueError, "logits: expected at least one parameter in dimension 1",
     lambda: categorical_log_prob(LOGITS[:, :0], BITS[:, 0])),
    ("x elsewhere", ValueError, "x: expected the device of logits",
     lambda: categorical_log_prob(LOGITS, BITS[:, 0].to("meta"))),
    ("parameters in threes", ValueError, "params: expected a multiple of 3 parameters in dimension 1 .* got 5",
     lambda: gaussian_mixture_log_prob(LOGITS[:, :5], torch.zeros(4))),
    ("integer data", TypeError, "x: expected dtype float32", lambda: laplace_mixture_log_prob(LOGITS, BITS[:, 0])),
    ("data of less precision", TypeError, "x: expected dtype float32",
     lambda: gaussian_mixture_log_prob(LOGITS, torch.zeros(4).half())),
    ("NaN data", ValueError, r"x: expected values in \[-inf, inf\] for a gaussian head, got nan at \[2\]",
     lambda: gaussian_mixture_log_prob(LOGITS, changed(torch.zeros(4), math.nan, (2,)))),
    ("parameters in tens", ValueError, "params: expected a multiple of 10 parameters in dimension 1 for 3 channel",
     lambda: logistic_mixture_log_prob(RGB[:, :19], COLOURS, dim=1)),
    ("a level of 256", ValueError, r"x: expected values in \[0, 255\] for a logistic head, got 256 at \[1, 2, 0, 1\]",
     lambda: logistic_mixture_log_prob(RGB, changed(COLOURS, 256, (1, 2, 0, 1)), dim=1)),
    ("a value of 2", ValueError, r"x: expected values in \[-1, 1\] for a logistic head, got 2.0 at \[1, 2, 0, 1\]",
     lambda: logistic_mixture_log_prob(RGB, changed(COLOURS.float(), 2, (1, 2, 0, 1)), dim=1)),
    ("levels", ValueError, "levels: expected at least 2, got 1",
     lambda: logistic_mixture_log_prob(RGB, COLOURS, dim=1, levels=1)),
    ("branch", ValueError, "branch: expected a probability", lambda: logistic_mixture_log_prob(
        RGB, COLOURS, dim=1, branch=1.5)),
    ("floor", ValueError, "min_log_scale: expected a number or None", lambda: logistic_mixture_log_prob(
        RGB, COLOURS, dim=1, min_log_scale=math.nan)),
    ("gradient of colours", ValueError, "x: a logistic head has no gradient for its data",
     lambda: logistic_mixture_log_prob(RGB, COLOURS.float().requires_grad_(), dim=1)),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "call"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bad_input_is_named(implementation: str, error: type[Exception], message: str, call: Callable[[], Any]) -> None:
    with _dispatch.forced("heads", implementation), pytest.raises(error, match=message):
        call()
