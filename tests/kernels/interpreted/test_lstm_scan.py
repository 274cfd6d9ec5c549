"""The LSTM scan's Triton kernels in the interpreter, against the reference in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from lstm_scan_oracle import check_against_reference, fast, gradients, model

from fastar import _dispatch
from fastar.kernels import _launch
from fastar.kernels import lstm_scan as kernels

KERNELS = [("rows", 3), ("rows", 5), ("diagonals", 2), ("antidiagonals", 2)]


@pytest.fixture(autouse=True)
def _on_triton() -> Iterator[None]:
    with _dispatch.forced("lstm_scan", "triton"):
        yield


def grads_for(B: int, H: int, rows: int, columns: int, dtype: torch.dtype) -> list[torch.Tensor]:
    return [torch.randn(shape).to(dtype) for shape in ((B, H, rows, columns), (B, H, columns), (B, H, columns))]


@pytest.mark.parametrize(("along", "k"), KERNELS)
# The interpreter gets bfloat16 wrong.
@pytest.mark.parametrize(("dtype", "alone"), [(torch.float32, True), (torch.float16, False)])
def test_scans(dtype: torch.dtype, alone: bool, along: str, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two tiles of lanes and two of hidden units: all steps in one launch, or a launch for each.
    monkeypatch.setattr(kernels, "_TILES_ALONE", 4 if alone else 0)
    rows, columns = (2, 5) if along == "rows" else (5, 2)
    tensors = model(1, 9, rows, columns, k, dtype, with_state=along == "rows" and k == 3)
    check_against_reference(grads_for(1, 9, rows, columns, dtype), tensors, along)


@pytest.mark.parametrize(("along", "k"), KERNELS)
@pytest.mark.parametrize(("B", "rows", "columns"), [(0, 3, 3), (1, 1, 1), (1, 7, 1), (2, 1, 5), (2, 2, 3)])
def test_small_and_empty(B: int, rows: int, columns: int, along: str, k: int) -> None:
    tensors = model(B, 3, rows, columns, k, torch.float32)
    check_against_reference(
        [t[:1].expand(t.shape) for t in grads_for(B, 3, rows, columns, torch.float32)], tensors, along
    )


def test_tiles_of_the_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_blocks", lambda x, lanes, H, most_h, most_k: (16, 32, 16))
    check_against_reference(grads_for(1, 40, 3, 18, torch.float32), model(1, 40, 3, 18, 3, torch.float32), "rows")


def test_deterministic() -> None:
    tensors, grads = model(1, 9, 2, 5, 1, torch.float32), grads_for(1, 9, 2, 5, torch.float32)
    first, second = (gradients(fast, grads, tensors, "rows") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_schedules() -> None:
    """Each tile of each step once and in order, counted on the launches as a card gets them."""
    for H, along, k, launches_each, tiles in (
        (64, "rows", 3, 1, 32 * 4),
        (128, "diagonals", 2, 1, 63 * 8),
        (512, "rows", 3, 32, 32 * 32),
    ):
        x, weight = torch.empty(8, 4 * H, 32, 32, device="meta"), torch.empty(4 * H, H, k, device="meta")
        with _launch.recording(_launch.SM90) as launches:
            kernels.forward(x, weight, None, None, along, False, False)
        assert len(launches) == launches_each
        done = [
            launch.arguments["first"] + program + turn
            for launch in launches
            for program in range(launch.grid[1])
            for turn in range(launch.arguments["turns"])
        ]
        assert done == list(range(tiles))
