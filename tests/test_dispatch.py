"""Choosing an implementation, and what is said when none is left."""

from __future__ import annotations

import pytest
import torch

from fastar import _dispatch, ops  # noqa: F401  (importing ops registers them)

CPU = torch.device("cpu")


def test_cpu_tensors_take_the_native_path() -> None:
    assert _dispatch.choose("masked_linear", CPU, torch.float32).name == "cpu"
    assert _dispatch.choose("masked_linear", CPU, torch.float64).name == "reference"


def test_every_declined_implementation_says_why() -> None:
    for op in _dispatch.ops():
        verdicts = _dispatch.verdicts(op, CPU, torch.float32)
        assert any(v.reason is None for v in verdicts)
        assert all(v.reason is None or len(v.reason) > 5 for v in verdicts)


def test_forced() -> None:
    with _dispatch.forced("masked_linear", "reference"):
        assert _dispatch.choose("masked_linear", CPU, torch.float32).name == "reference"
    assert _dispatch.choose("masked_linear", CPU, torch.float32).name == "cpu"
    with pytest.raises(ValueError, match="name: expected one of"), _dispatch.forced("masked_linear", "abacus"):
        pass


def test_no_implementation_left_lists_the_reasons() -> None:
    with (
        _dispatch.forced("masked_linear", "cpu"),
        pytest.raises(RuntimeError, match=r"no implementation for torch\.float64 on cpu .*cpu: no float64"),
    ):
        _dispatch.choose("masked_linear", CPU, torch.float64)


def test_unknown_op() -> None:
    with pytest.raises(ValueError, match="op: expected one of"):
        _dispatch.implementations("masked_quadratic")
