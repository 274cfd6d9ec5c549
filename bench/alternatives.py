"""What a user can do today to make a PyTorch function faster without us."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function under torch.compile, as one graph; pass a module-level function, so that it is compiled once."""
    return torch.compile(function, fullgraph=True, dynamic=False)


class CudaGraph:
    """A call without arguments, captured into a CUDA graph when first called and replayed from then on."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: object = None

    def __call__(self) -> object:
        if self._graph is None:
            self._capture()
        else:
            self._graph.replay()
        return self._result

    def _capture(self) -> None:
        # Libraries allocate their workspaces in the first calls, which must not happen while capturing.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._result = self._call()
        graph.replay()
        self._graph = graph
