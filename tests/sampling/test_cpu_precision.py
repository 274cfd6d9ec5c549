"""What narrow weights cost on a trained model: a character model, trained here for a few seconds on source text."""

from __future__ import annotations

import argparse
import inspect

import pytest
import torch
from torch import Tensor, nn

from fastar import native
from fastar.sampling import Head, Program, sequence
from fastar.sampling.cpu import Cpu
from fastar.sampling.request import make

pytestmark = pytest.mark.skipif(native.why_missing() is not None, reason=str(native.why_missing()))

SYMBOLS, WINDOW, STEPS = 96, 32, 100


def _text() -> Tensor:
    # Printable ASCII, everything else a space.
    codes = torch.tensor(list(inspect.getsource(argparse).encode())) - 32
    return torch.where((codes < 0) | (codes >= SYMBOLS), 0, codes)


class CharacterModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(SYMBOLS + 1, 64)
        self.gru = nn.GRU(64, 128, batch_first=True)
        self.hidden = nn.Linear(128, 128)
        self.out = nn.Linear(128, SYMBOLS)

    def forward(self, symbols: Tensor) -> Tensor:
        states, _ = self.gru(self.embed(symbols))
        return self.out(torch.relu(self.hidden(states)))


@pytest.fixture(scope="module")
def trained() -> tuple[Program, Tensor]:
    """The model's program, and windows of text that it was not trained on."""
    torch.manual_seed(0)
    text, model = _text(), CharacterModel()
    windows = text.unfold(0, WINDOW, WINDOW)
    train, test = windows[: len(windows) * 9 // 10], windows[len(windows) * 9 // 10 :][:24]
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    start = torch.full((16, 1), SYMBOLS)
    first = last = 0.0
    for _ in range(STEPS):
        batch = train[torch.randint(len(train), (16,))]
        logits = model(torch.cat([start, batch[:, :-1]], 1))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        last = loss.item()
        first = first or last
    assert last < 0.75 * first, "the model has learnt nothing"
    return sequence(model, Head("categorical", SYMBOLS), name="characters", first=SYMBOLS), test


def _log_probs(program: Program, values: Tensor, precision: str) -> Tensor:
    """Each symbol's own, [rows, positions]."""
    request = make(program, len(values), seed=0, length=values.shape[1], given=values[:, :, None])
    run = Cpu(program, precision, threads=1, rows=len(values)).start(request)
    sums = [run.log_prob.clone()]
    while not run.finished:
        run.advance(1)
        sums.append(run.log_prob.clone())
    return torch.stack(sums, 1).diff(dim=1)


@pytest.mark.parametrize(("precision", "bar"), [("bfloat16", 0.01), ("int8", 0.03)])
def test_narrow_weights_keep_a_trained_models_law(trained: tuple[Program, Tensor], precision: str, bar: float) -> None:
    program, values = trained
    exact, narrow = (_log_probs(program, values, one) for one in ("float32", precision))
    assert -4 < float(exact.mean()) < -1
    assert 0 < float((narrow - exact).abs().mean()) <= bar
