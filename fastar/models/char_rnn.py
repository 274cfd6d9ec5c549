"""CharRNN: symbols by a stack of recurrent cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastar import _checks
from fastar.distributions import Categorical
from fastar.models.model import Model
from fastar.sampling import Builder, Program
from fastar.sampling.index import variable
from fastar.sampling.instructions import Draw, Linear
from fastar.sampling.lower import Step, Symbols

CELLS: dict[str, type[nn.RNN | nn.LSTM | nn.GRU]] = {"tanh": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class CharRNN(Model):
    """p(x_t | x_<t) = softmax(V h_t + b), h_t = cell(h_{t-1}, embed(x_{t-1})), and h_0 is learned.

    Args:
        symbols: size of the alphabet.
        hidden: units of each layer.
        layers: cells on top of one another.
        cell: "tanh", "lstm" or "gru".
        embedding: size of a symbol's vector; `hidden` unless given.
        dropout: between the layers, while training.

    x [B, T] int; ``model(x)`` [B, T, symbols]. Samples take a `length`; `stop` ends a row at a symbol.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tanh-3x512": {"symbols": 128, "hidden": 512, "layers": 3},
        "lstm-2x512": {"symbols": 128, "hidden": 512, "layers": 2, "cell": "lstm", "embedding": 128, "dropout": 0.5},
        "lstm-3x512": {"symbols": 128, "hidden": 512, "layers": 3, "cell": "lstm"},
    }

    def __init__(
        self,
        symbols: int,
        hidden: int,
        layers: int = 1,
        cell: str = "tanh",
        *,
        embedding: int | None = None,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(symbols=symbols, hidden=hidden, layers=layers, cell=cell, embedding=embedding, dropout=dropout)
        for name, size in (("symbols", symbols), ("hidden", hidden), ("layers", layers)):
            _checks.positive(name, size)
        if cell not in CELLS:
            raise ValueError(f"cell: expected one of {', '.join(CELLS)}, got {cell!r}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: expected a probability in [0, 1), got {dropout}")
        self.distribution = Categorical(symbols)
        self.data_shape = ("T",)
        width = hidden if embedding is None else _checks.positive("embedding", embedding)
        placed: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embed = nn.Embedding(symbols, width, **placed)
        # torch warns of dropout where there is no layer after.
        between = dropout if layers > 1 else 0.0
        self.cells = CELLS[cell](width, hidden, layers, batch_first=True, dropout=between, **placed)
        self.h_0 = nn.Parameter(torch.zeros(layers, 1, hidden, **placed))
        self.c_0 = nn.Parameter(torch.zeros(layers, 1, hidden, **placed)) if cell == "lstm" else None
        self.head = nn.Linear(hidden, symbols, **placed)

    def check(self, x: Tensor, cond: Any = None) -> None:
        super().check(x, cond)
        if x.shape[1] == 0:
            raise ValueError("x: expected at least one position, got 0")

    def forward(self, x: Tensor, cond: None = None) -> Tensor:
        self.check(x, cond)
        h = self._hidden(x[:, :-1])
        first = self.h_0[-1].expand(len(x), -1)[:, None]
        logits: Tensor = self.head(torch.cat([first.to(h.dtype), h], 1))
        return logits

    def next_logits(self, x: Tensor) -> Tensor:
        """Entry t parametrises x_{t+1}: [B, T, symbols]."""
        self.check(x)
        logits: Tensor = self.head(self._hidden(x))
        return logits

    def _hidden(self, x: Tensor) -> Tensor:
        if x.shape[1] == 0:
            return self.h_0.new_zeros(len(x), 0, self.h_0.shape[2])
        first = [t.expand(-1, len(x), -1).contiguous() for t in (self.h_0, self.c_0) if t is not None]
        y: Tensor = self.cells(self.embed(x.long()), tuple(first) if len(first) > 1 else first[0])[0]
        return y

    def lower(self) -> Program:
        b = Builder("CharRNN", self.distribution.value, None)
        step = Step(b, variable("t"))
        logits = step.scratch(self.distribution.params)
        with b.loop("t", None) as t:
            # At the first position there is no symbol to take in: it is drawn from the learned state.
            with b.when(t, 1):
                x = step.child("embed", self.embed, Symbols(t - 1, None))
                given = [step.parameter(p, name) for name, p in (("h_0", self.h_0), ("c_0", self.c_0)) if p is not None]
                y, _ = step.child("cells", self.cells, (x, *given))
            b.add(
                Linear(logits, y.ref, b.weight("head.weight", self.head.weight), b.weight("head.bias", self.head.bias))
            )
            b.add(Draw(self.distribution.head, t, logits))
        return b.build()
