"""Choosing a configuration: timed once, kept on disk, never while a graph is captured, and possible to switch off."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from fastar.kernels import _launch, _tiles, _tuning
from fastar.kernels._launch import Config

CANDIDATES = [Config(128, 128, 64, 8, 4), Config(64, 128, 64, 4, 4), Config(64, 64, 64, 4, 4)]
CARD = torch.device("cuda", 0)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Config]:
    """A card whose second candidate is fastest; the list gets what was timed."""
    seen: list[Config] = []

    def time(run: object, config: Config) -> float:
        seen.append(config)
        return {0: 3.0, 1: 1.0, 2: 2.0}[CANDIDATES.index(config)]

    monkeypatch.setattr(_tuning, "_time", time)
    monkeypatch.setattr(_tuning, "_chosen", {})
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some Card/80 GB")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("FASTAR_AUTOTUNE", raising=False)
    return seen


def choose(key: tuple[object, ...] = (1,), device: torch.device = CARD) -> Config:
    return _tuning.choose("product", key, CANDIDATES, device, lambda _: None)


def test_the_fastest_is_chosen_and_timed_once(timed: list[Config]) -> None:
    assert [choose(), choose()] == [CANDIDATES[1]] * 2
    assert timed == CANDIDATES
    choose((2,))
    assert len(timed) == 2 * len(CANDIDATES)


def test_another_process_reads_the_choice_from_disk(
    timed: list[Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    choose()
    (file,) = tmp_path.rglob("*.json")
    assert list(json.loads(file.read_text()).values()) == [1]
    monkeypatch.setattr(_tuning, "_chosen", {})
    assert choose() == CANDIDATES[1]
    assert len(timed) == len(CANDIDATES)


@pytest.mark.parametrize("content", ["", "[1]", "{broken"])
def test_a_damaged_file_costs_the_timing_only(timed: list[Config], tmp_path: Path, content: str) -> None:
    file = _tuning._file(CARD)
    file.parent.mkdir(parents=True)
    file.write_text(content)
    assert choose() == CANDIDATES[1]
    assert len(timed) == len(CANDIDATES)


def test_a_cache_that_cannot_be_written_costs_the_timing_only(timed: list[Config], tmp_path: Path) -> None:
    (tmp_path / "fastar").write_text("a file where the folder would be")
    assert choose() == CANDIDATES[1]


def test_nothing_is_timed_where_it_is_off_or_impossible(timed: list[Config], monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(device=torch.device("cpu")) == CANDIDATES[0]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choose() == CANDIDATES[0]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setenv("FASTAR_AUTOTUNE", "0")
    assert choose() == CANDIDATES[0]
    assert timed == []


@pytest.mark.parametrize("target", [_launch.SM80, _launch.SM90, _launch.SM100])
@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.bfloat16, "ieee"), (torch.float32, "ieee"), (torch.float32, "tf32")]
)
@pytest.mark.parametrize("sizes", [(8192, 8192), (1024, 8000), (64, 784), (1, 1)])
def test_the_choice_is_small_and_changes_no_bits(
    target: _launch.Target, dtype: torch.dtype, precision: str, sizes: tuple[int, int]
) -> None:
    candidates = _tiles.configs(target, dtype, precision, *sizes)
    assert 1 <= len(candidates) <= 3
    assert len({one.reduced for one in candidates}) == 1
    for one in candidates:
        assert (one.rows + one.columns) * one.reduced * dtype.itemsize * one.num_stages <= target.shared
