"""What is printed, written and drawn."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("rich")

from rich.console import Console

from fastar.bench import report
from fastar.bench.runner import Result

MakeResult = Callable[..., Result]


@pytest.fixture
def result(make_result: MakeResult) -> Result:
    samples = {"fastar": (2e-3, 1e-3, 3e-3), "eager": (8e-3,) * 3, "pre-masked": (5e-3,) * 3}
    return make_result(samples, absent={"compiled": "no compiler"}, bytes=1e6, flops=1e5)


def printed(results: list[Result]) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(report.tables(results))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_json_has_one_object_per_case(result: Result, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    report.write_json([result, result], path)
    objects = json.loads(path.read_text())
    assert len(objects) == 2
    machine = objects[0].pop("machine")
    assert objects[0] == {
        "case": "toy.sum",
        "device": "cpu",
        "dtype": "float32",
        "threads": 2,
        "ours_us": pytest.approx(2000),
        "alternatives": {"eager": pytest.approx(8000), "pre-masked": pytest.approx(5000)},
        "ratio_to_best": pytest.approx(2.5),
        "floor_us": pytest.approx(1000),
        "ratio_to_floor": pytest.approx(0.5),
        "samples": 3,
        "read_in_turn_bytes_per_s": None,
        "bytes_per_s": pytest.approx(5e8),
        "flops_per_s": pytest.approx(5e7),
    }
    assert machine["processor"] == "a processor"
    assert machine["matrix_flops_per_s"] == 1e9
    assert machine["gpu"] is None


def test_json_without_alternatives(make_result: MakeResult) -> None:
    (written,) = report.to_json([make_result({"fastar": (1.0,)})])
    assert written["alternatives"] == {}
    assert written["ratio_to_best"] is None


def test_table_shows_each_contender_with_its_ratio(result: Result) -> None:
    lines = {name: line for line in printed([result]).splitlines() for name in (line.strip("│ ").split("  ")[0],)}
    assert "2.00 ms" in lines["fastar"]
    assert "1.00x" in lines["fastar"]
    assert "1.50 ms - 2.50 ms" in lines["fastar"]
    assert "8.00 ms" in lines["eager"]
    assert "4.00x" in lines["eager"]
    assert "2.50x" in lines["pre-masked"]
    assert "absent" in lines["compiled"]
    assert "0.50x" in lines["floor"]


def test_table_names_machine_case_unit_and_rates(make_result: MakeResult) -> None:
    text = printed([make_result({"fastar": (1.0,)}, per=10, unit="symbol", bytes=2e9, flops=3e6)])
    assert "a processor, 2 cores, 2 threads; torch 2.13, fastar 0.1" in text
    assert "toy.sum" in text
    assert "per symbol" in text
    assert "3.00 MFLOP/s of 1.00 GFLOP/s; 2.00 GB/s of 1.00 GB/s (copy 500 MB/s)" in text


def test_notes_name_the_absent_and_the_noisy(result: Result, make_result: MakeResult) -> None:
    absent, noisy = report.notes([result])
    assert absent == "toy.sum: compiled is absent: no compiler"
    assert noisy.endswith("quartiles over 10% of the median apart for fastar")
    assert report.notes([make_result({"fastar": (1.0, 1.0)})]) == []


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (0.1234, "0.12 us"),
        (9.994, "9.99 us"),
        (9.996, "10.0 us"),
        (99.96, "100 us"),
        (999.4, "999 us"),
        (999.6, "1.00 ms"),
        (164_200.0, "164 ms"),
        (2.5e6, "2.50 s"),
        (1.5e9, "1500 s"),
    ],
)
def test_time_text(us: float, text: str) -> None:
    assert report.time_text(us) == text


@pytest.mark.parametrize(
    ("rate", "text"), [(5.0, "5.00 B/s"), (9.999e8, "1.00 GB/s"), (2.345e9, "2.35 GB/s"), (7.7e14, "770 TB/s")]
)
def test_rate_text(rate: float, text: str) -> None:
    assert report.rate_text(rate, "B") == text


def test_plot_is_a_picture_with_a_panel_per_case(result: Result, tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    heights = []
    for count in (1, 2):
        path = tmp_path / f"{count}.png"
        report.plot([result] * count, path)
        picture = image.imread(path)
        heights.append(picture.shape[0])
        # More than a white sheet.
        assert picture[..., :3].std() > 0.05
    assert heights[1] > heights[0] * 1.5
