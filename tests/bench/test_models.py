"""The table of models: its naive sampler draws from the model, and the README holds what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from model_properties import assert_frequencies, every_x, index_of, randomise

from fastar.bench import models as table
from fastar.models import FVSBN, MADE, ConvNADE, DocNADE, Model

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench/results/models_cpu.json"


@pytest.mark.parametrize(
    ("model", "length"),
    [
        (FVSBN(3, order=[2, 0, 1]), None),
        (MADE(3, 8, {"kind": "categorical", "levels": 3}), None),
        (ConvNADE((2, 2), 4), None),
        (DocNADE(3, 4), 3),
    ],
)
def test_the_naive_sampler_draws_from_the_model(
    model: Model, length: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "ROWS", 4000)
    model = randomise(model, 2.0)
    sampler = table.naive_sampler(model, length)
    levels = model.distribution.levels
    assert levels is not None
    shape = [length or 0 if isinstance(size, str) else size for size in model.data_shape]
    with torch.no_grad():
        p = model.log_prob(every_x(shape, levels)).double().exp()
    assert_frequencies(index_of(sampler(), levels), p)


def test_a_row_is_measured_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "SECONDS", 0.0)
    row = table.Row("MAF", "mixture", 1, {"hidden": [8], "layers": 2}, batch=500)
    result = table.measure(row, tmp_path / "maf")
    again = table.measure(row, tmp_path / "maf")
    assert again["held_out"] == result["held_out"] > result["least_possible"]
    assert result["fast_s"] > 0
    assert result["naive_s"] > 0
    assert table.measure(table.Row("IAF", "mixture", 1, {"hidden": [8], "layers": 2}, batch=500), tmp_path / "iaf")
    text = table.markdown([result], {"processor": "a processor", "torch": "2"})
    assert f"| `MAF` | mixture | {result['held_out']:.3f} nats/dim (least possible" in text


def test_rows_measured_later_take_their_places() -> None:
    about = {"processor": "a processor", "torch": "2"}
    rows = [{"model": name, "data": "digits-binary", "threads": 1, "held_out": 1} for name in ("MADE", "FVSBN")]
    kept = {"machine": about, "models": rows}
    new = [{**rows[0], "held_out": 5}, {**rows[0], "held_out": 6, "model": "structured MADE"}]
    found = table.merged(kept, new, about)
    assert [one["model"] for one in found] == ["FVSBN", "MADE", "structured MADE"]
    assert [one["held_out"] for one in found] == [1, 5, 6]
    with pytest.raises(ValueError, match=r"was measured on .* with 1 threads, this is .* with 2"):
        table.merged(kept, [{**rows[0], "threads": 2}], about)


@pytest.mark.skipif(not RESULTS.exists(), reason="no measurement of the models is kept under bench/results")
def test_the_readmes_table_is_what_was_measured() -> None:
    kept = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert table.markdown(kept["models"], kept["machine"]) in (ROOT / "README.md").read_text(encoding="utf-8")
