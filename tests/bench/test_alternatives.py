"""The helpers that make alternatives out of plain functions."""

from __future__ import annotations

import pytest
import torch

from fastar.bench.alternatives import CudaGraph, compiled


def _double(x: torch.Tensor) -> torch.Tensor:
    return x + x


def test_a_function_is_compiled_once() -> None:
    assert compiled(_double) is compiled(_double)


@pytest.mark.gpu
def test_a_graph_replays_on_the_same_inputs() -> None:
    x = torch.ones(4, device="cuda")
    graph = CudaGraph(lambda: _double(x))
    first = graph()
    assert isinstance(first, torch.Tensor)
    assert first.tolist() == [2.0] * 4
    x.fill_(3.0)
    again = graph()
    assert again is first
    assert first.tolist() == [6.0] * 4
