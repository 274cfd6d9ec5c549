"""Training reaches the entropy of data whose law a model can represent, within one per cent."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fastar.data import tables
from fastar.models import FVSBN, MADE, NADE, RNADE, CategoricalSBN, DeepNADE, Model

D = 8


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
    ],
    ids=["FVSBN", "NADE", "untied", "MADE", "structured", "ensemble", "CategoricalSBN", "DeepNADE"],
)
def test_a_chain_of_bits(make: Callable[[], Model], steps: int, rate: float) -> None:
    data = tables.chain(20000, D, 0.9, test_fraction=0.5)
    model = _trained(make(), data.train, steps, rate)
    with torch.no_grad():
        found = -model.log_prob(data.test).mean().item()
    assert found < 1.01 * -data.log_prob(data.test).mean().item()


@pytest.mark.parametrize("make", [lambda: RNADE(2, 16, 2), lambda: MADE(2, [16], "normal", order=[1, 0])])
def test_a_correlated_gaussian(make: Callable[[], Model]) -> None:
    data = tables.mixture(16000, 2, 1, test_fraction=0.5, seed=4)
    scaled = data._replace(train=data.train - data.train.mean(0), test=data.test - data.train.mean(0))
    model = _trained(make(), scaled.train, 400, 0.02)
    with torch.no_grad():
        found = -model.log_prob(scaled.test).mean().item()
    least = -data.log_prob(data.test).mean().item()
    # A density has nats of either sign, so the bound is absolute: what one per cent of a bit more per number costs.
    assert found < least + 0.02
