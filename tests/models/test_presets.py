"""Published configurations, by their parameter counts."""

from __future__ import annotations

import itertools

import pytest

from fastar.models import FVSBN, MADE, NADE, DeepNADE, DocNADE, Model


@pytest.mark.parametrize(
    ("cls", "name", "count"),
    [
        (FVSBN, "mnist", 784 * 785 // 2),
        (NADE, "mnist", 2 * 784 * 500 + 500 + 784),
        (DeepNADE, "mnist-1x500", 2 * 784 * 500 + 500 + 784 * 500 + 784),
        (DeepNADE, "mnist-2x500", 2 * 784 * 500 + 500 + 500 * 500 + 500 + 784 * 500 + 784),
        (DocNADE, "20newsgroups", 2000 * 50 + 50 + 1999 * 51),
    ],
)
def test_count(cls: type[Model], name: str, count: int) -> None:
    assert cls.preset(name, device="meta").num_parameters() == count


@pytest.mark.parametrize(("name", "sizes"), [("mnist-1x500", [500]), ("mnist-1x8000", [8000])])
def test_made_before_its_masks(name: str, sizes: list[int]) -> None:
    model = MADE.preset(name, device="meta")
    widths = [784, *sizes, 784]
    dense = sum(a * b + b for a, b in itertools.pairwise(widths))
    assert sum(p.numel() for p in model.parameters()) == dense
    # Degrees are uniform, so each product keeps about half of its weights.
    assert 0.45 < model.num_parameters() / dense < 0.55


def test_an_argument_of_a_preset_may_be_changed() -> None:
    model = NADE.preset("mnist", hidden=20, device="meta")
    assert model.num_parameters() == 2 * 784 * 20 + 20 + 784
    assert model.to_config()["hidden"] == 20
