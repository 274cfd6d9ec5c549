"""Training reaches the entropy of data whose law a model can represent, within one per cent."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from fastar.data import tables
from fastar.models import (
    FVSBN,
    IAF,
    MADE,
    MAF,
    NADE,
    RNADE,
    CategoricalSBN,
    CharRNN,
    ConvNADE,
    DeepNADE,
    DocNADE,
    GatedPixelCNN,
    Model,
    PixelCNN,
    PixelCNNpp,
    PixelRNN,
    Transformer,
    WaveNet,
)

D = 8
LINE = (1, 1, D)


def _trained(model: Model, x: torch.Tensor, steps: int, rate: float) -> Model:
    optimizer = torch.optim.Adam(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for step in range(steps):
        optimizer.zero_grad()
        model.loss(x[(step * 500) % len(x) :][:500]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return model.eval()


@pytest.mark.parametrize(
    ("make", "steps", "rate"),
    [
        (lambda: FVSBN(D), 250, 0.2),
        (lambda: NADE(D, 16, order=list(range(D))[::-1]), 250, 0.1),
        (lambda: NADE(D, 8, tied=False), 250, 0.05),
        (lambda: MADE(D, [32, 32], direct=True), 250, 0.03),
        (lambda: MADE(D, [16], markov_graph=[[j for j in (i - 1, i + 1) if 0 <= j < D] for i in range(D)]), 250, 0.03),
        (lambda: MADE(D, [64], num_masks=2, direct=True), 300, 0.05),
        (lambda: CategoricalSBN(D, 2), 250, 0.1),
        (lambda: DeepNADE(D, [64, 64]), 1200, 0.01),
        (lambda: ConvNADE((1, D), [16, 16], kernel_size=7), 400, 0.02),
        (lambda: PixelCNN(LINE, 2, width=8, depth=1, kernel_size=3), 150, 0.05),
        (lambda: GatedPixelCNN(LINE, 2, width=4, depth=2, kernel_size=3, block_kernel_size=3), 150, 0.03),
        (lambda: PixelRNN(LINE, 2, hidden=4, depth=1, kernel_size=3), 150, 0.05),
        (lambda: PixelRNN(LINE, 2, hidden=4, depth=1, kernel_size=3, scan="diagonal"), 150, 0.05),
        (lambda: PixelCNNpp(LINE, 2, components=2, width=6, depth=1, scales=1), 150, 0.02),
        (lambda: CharRNN(2, 8), 150, 0.05),
        (lambda: CharRNN(2, 8, cell="gru"), 150, 0.05),
        (lambda: WaveNet(2, 8, 8, [1]), 150, 0.05),
        (lambda: Transformer(2, D, 8, 1, 2, bos=0), 200, 0.02),
    ],
    ids=[
        *("FVSBN", "NADE", "untied", "MADE", "structured", "ensemble", "CategoricalSBN", "DeepNADE", "ConvNADE"),
        *("PixelCNN", "GatedPixelCNN", "row LSTM", "diagonal LSTM", "PixelCNNpp", "tanh", "GRU", "WaveNet"),
        "Transformer",
    ],
)
def test_a_chain_of_bits(make: Callable[[], Model], steps: int, rate: float) -> None:
    data = tables.chain(20000, D, 0.9, test_fraction=0.5)
    torch.manual_seed(0)
    model = make()
    shape = [D if isinstance(size, str) else size for size in model.data_shape]
    model = _trained(model, data.train.view(-1, *shape), steps, rate)
    with torch.no_grad():
        found = -model.log_prob(data.test.view(-1, *shape)).mean().item()
    assert found < 1.01 * -data.log_prob(data.test).mean().item()


@pytest.mark.parametrize("tree", [False, True])
def test_documents_of_one_word(tree: bool) -> None:
    # What a bag of words can tell: all words are the first one, which is any.
    V, T = 5, 6
    torch.manual_seed(0)
    x = torch.randint(0, V, (4000, 1)).expand(-1, T)
    model = _trained(DocNADE(V, 16, tree), x, 300, 0.2)
    with torch.no_grad():
        assert -model.log_prob(x).mean().item() < 1.01 * math.log(V)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RNADE(2, 16, 2),
        lambda: MADE(2, [16], "normal", order=[1, 0]),
        lambda: MAF(2, [16], 2, "softplus"),
        lambda: IAF(2, [16], 2),
    ],
    ids=["RNADE", "MADE", "MAF", "IAF"],
)
def test_a_correlated_gaussian(make: Callable[[], Model]) -> None:
    data = tables.mixture(16000, 2, 1, test_fraction=0.5, seed=4)
    scaled = data._replace(train=data.train - data.train.mean(0), test=data.test - data.train.mean(0))
    model = _trained(make(), scaled.train, 400, 0.02)
    with torch.no_grad():
        found = -model.log_prob(scaled.test).mean().item()
    least = -data.log_prob(data.test).mean().item()
    # A density has nats of either sign, so the bound is absolute: what one per cent of a bit more per number costs.
    assert found < least + 0.02
