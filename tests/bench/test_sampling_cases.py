"""The sampling cases: their contenders, those of a GPU included as far as a CPU can run them, follow one law."""

from __future__ import annotations

import pytest
import torch

from fastar import native
from fastar.bench import registry
from fastar.bench.alternatives import CudaGraph
from fastar.bench.cases.sampling import _common, wavenet

pytestmark = pytest.mark.skipif(native.why_missing() is not None, reason="fastar._core is not built")


def test_a_contender_of_another_law_is_found() -> None:
    p = wavenet.parameters(10, 8, 12, 2)
    other = {**p, "head": -p["head"]}
    loops = {"right": wavenet.plain(p, (1, 2)), "wrong": wavenet.plain(other, (1, 2))}
    workload = _common.Workload(wavenet.program(p, (1, 2)), 2, 20, loops)
    with pytest.raises(RuntimeError, match="wrong: draws other symbols than ours"):
        _common._check(workload, torch.device("cpu"))


def test_the_cases_of_the_targets_are_there_for_a_gpu() -> None:
    names = [one.name for one in registry.select(["sampling"], "cuda")]
    for part in ("nade-784x500.1024", "made-784-8000-784.64", "wavenet-64x256x20.128.float16", "wavenet-64x128x30"):
        assert any(part in name for name in names), part
    for part in ("wavenet-128x256x30.128", "char-rnn-3x512.64", "pixelcnn-32x32x128x8.64", "gpt2-124m.16.bfloat16"):
        assert any(part in name for name in names), part


def test_a_long_loop_is_captured_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    captured: list[torch.Size] = []

    class Called(CudaGraph):
        def __call__(self) -> object:
            return self._call()

    monkeypatch.setattr(_common, "CudaGraph", Called)
    real = torch.rand
    monkeypatch.setattr(_common.torch, "rand", lambda *shape, device=None: real(*shape))
    p = wavenet.parameters(10, 8, 12, 1)
    program = wavenet.program(p, (1,))

    def loop(u: torch.Tensor) -> torch.Tensor:
        captured.append(u.shape)
        return u

    part = _common._graph(_common.Workload(program, 2, 100, {}, captured=25), loop)
    assert isinstance(part, registry.Part)
    assert part.count == 4
    part.call()
    whole = _common._graph(_common.Workload(program, 2, 100, {}), loop)
    assert callable(whole)
    whole()
    assert captured == [(25, 2), (100, 2)]
