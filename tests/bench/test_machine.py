"""The description of the machine and the probes of its roofs."""

from __future__ import annotations

import os

import pytest
import torch

from fastar.bench import machine

CPU = torch.device("cpu")


def test_description() -> None:
    described = machine.describe(CPU)
    assert described.processor
    assert 1 <= described.cores <= (os.cpu_count() or 1)
    assert described.gpu is None
    assert described.torch == torch.__version__


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_probes_are_rates_of_a_computer(dtype: torch.dtype) -> None:
    probes = machine.probe(CPU, dtype, quick=True)
    # Wide enough for any machine, narrow enough to catch a wrong unit.
    assert 1e8 < probes.read_bytes_per_s < 1e14
    assert 1e8 < probes.copy_bytes_per_s < 1e14
    assert 1e8 < probes.matrix_flops_per_s < 1e16
    assert probes.bytes_per_s == max(probes.read_bytes_per_s, probes.copy_bytes_per_s)


def test_copy_counts_bytes_read_and_bytes_written(monkeypatch: pytest.MonkeyPatch) -> None:
    class OneSecond:
        def time(self, call: object, repeats: int) -> float:
            return 1.0

    monkeypatch.setattr(machine, "clock_for", lambda device: OneSecond())
    monkeypatch.setattr(machine, "cache_bytes", lambda device: 0)
    probes = machine.probe(CPU, torch.float32, quick=True)
    assert probes == machine.Probes(64 * 2**20, 2 * 64 * 2**20, 2 * 512**3)


def test_busy_neighbours_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)

    def seen(*ticks: tuple[float, float] | None) -> str | None:
        answers = iter(ticks)
        monkeypatch.setattr(machine, "_busy_and_all", lambda: next(answers))
        return machine.neighbours(0.0)

    assert seen((100.0, 1000.0), (150.0, 1100.0)) == (
        "other programs used 2.0 cores just before the run: close them and measure again"
    )
    assert seen((100.0, 1000.0), (102.0, 1100.0)) is None
    assert seen(None, None) is None
    assert seen((100.0, 1000.0), (100.0, 1000.0)) is None


def test_cache_size_is_that_of_a_cache() -> None:
    assert machine.cache_bytes(CPU) == 0 or 1 << 15 <= machine.cache_bytes(CPU) <= 1 << 32
