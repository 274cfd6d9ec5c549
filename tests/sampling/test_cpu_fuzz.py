"""Mutated programs never crash the process: they are refused, or they run, the same with any number of threads."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
import torch

from fastar import native
from fastar.sampling import cpu
from fastar.sampling.draws import SamplingError
from tests.sampling.mutants import mutants

pytestmark = [
    pytest.mark.skipif(native.why_missing() is not None, reason=str(native.why_missing())),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork: what crashes is a child"),
]


def _outcome(executor: cpu.Cpu, request: cpu.Request) -> tuple[torch.Tensor, torch.Tensor] | str:
    run = executor.start(request)
    try:
        run.advance()
    except SamplingError as error:
        return str(error)
    return run.values, run.log_prob


def _run_all(seed: int, count: int, note: Path) -> None:
    ran = 0
    for number, (program, request) in enumerate(mutants(seed, count)):
        note.write_text(str(program))
        if cpu.why_not(program):
            continue
        precision = cpu.PRECISIONS[number % 3]
        first = _outcome(cpu.Cpu(program, precision, threads=1), request)
        second = _outcome(
            cpu.Cpu(program, precision, threads=2, rows=2, sharing=("rows", "steps")[number % 2]), request
        )
        if isinstance(first, str) or isinstance(second, str):
            assert isinstance(first, str) == isinstance(second, str)
        else:
            assert torch.equal(first[0], second[0]), str(program)
        ran += 1
    # A test in which nothing ran would show nothing.
    assert ran > count // 20
    note.write_text("")


def _in_a_child(seed: int, count: int, note: Path) -> None:
    child = multiprocessing.get_context("fork").Process(target=_run_all, args=(seed, count, note))
    child.start()
    child.join()
    assert child.exitcode == 0, f"exit status {child.exitcode} at\n{note.read_text()}"


def test_mutated_programs_are_refused_or_run(tmp_path: Path) -> None:
    _in_a_child(1, 600, tmp_path / "last")


@pytest.mark.exhaustive
def test_many_mutated_programs_are_refused_or_run(tmp_path: Path) -> None:
    _in_a_child(2, 20_000, tmp_path / "last")
