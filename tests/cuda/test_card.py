"""The same kernels on a card, through the sampler's own choice of executor; skipped, visibly, where there is none."""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastar import native
from fastar.bench.cases.sampling import nade, pixelcnn, transformer, wavenet
from fastar.models import CharRNN
from fastar.native import cuda, cuda_build, nvrtc
from fastar.sampling import Sampler
from fastar.sampling.cuda import Cuda
from fastar.sampling.draws import Options
from fastar.sampling.program import Program
from fastar.sampling.request import make
from tests.sampling.consumers_more import CONSUMERS
from tests.sampling.test_cpu_programs import LARGE, _assert_agrees, _request

pytestmark = pytest.mark.gpu

SCHEDULES: dict[str, dict[str, Any]] = {
    "row": {"schedule": "row"},
    "row of four": {"schedule": "row", "rows": 512},
    "cluster": {"schedule": "cluster", "blocks": 8},
    # Planned for no fewer rows than the requests have: what waits for one another has to be there together.
    "grid": {"schedule": "grid", "rows": 8},
    # Little more shared memory than the rings take.
    "grid through rings": {"schedule": "grid", "rows": 8, "blocks": 4, "stages": 8, "shared_bytes": 80 * 1024},
}


def _on_host(run: Any) -> Any:
    names = ("values", "log_prob", "log_weight", "lengths")
    return SimpleNamespace(**{name: getattr(run, name).cpu() for name in names})


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", [*CONSUMERS, *(f"large {one}" for one in LARGE if one != "flow")])
def test_a_free_run_agrees_with_the_reference_on_the_same_prefix(name: str, schedule: str) -> None:
    program = LARGE[name.removeprefix("large ")]() if name.startswith("large ") else CONSUMERS[name][0]().program
    request = _request(name, program)
    run = Cuda(program, **SCHEDULES[schedule]).start(request)
    run.advance()
    _assert_agrees(program, request, _on_host(run), Options())


# The sizes of the benchmark's cases, and positions that the reference takes seconds for.
REAL: dict[str, tuple[Callable[[], Program], int | None, int]] = {
    "NADE": (lambda: nade.program(nade.parameters(784, 500)), None, 9),
    "WaveNet": (lambda: wavenet.program(wavenet.parameters(256, 64, 256, 20), (1, 2, 4, 8, 16) * 4), 40, 17),
    "char-RNN": (lambda: CharRNN(128, 512, 3).lower(), 40, 64),
    "PixelCNN": (lambda: pixelcnn.make_model(8, 8, 128, 8, 256).lower(), None, 3),
    "GPT-2": (lambda: transformer.make_model(transformer.GPT2).lower(), 6, 2),
}


@pytest.mark.parametrize("name", REAL)
def test_real_sizes_agree_with_the_reference(name: str) -> None:
    make_program, length, n = REAL[name]
    program = make_program()
    request = make(program, n, seed=5, length=length)
    run = Cuda(program, rows=n).start(request)
    run.advance()
    _assert_agrees(program, request, _on_host(run), Options())


@pytest.mark.parametrize("name", ["wavenet", "transformer", "flow"])
def test_schedules_agree_bit_for_bit(name: str) -> None:
    program = LARGE[name]()
    runs = [Cuda(program, **options).start(_request(name, program)) for options in SCHEDULES.values()]
    for run in runs:
        run.advance()
        assert torch.equal(run.values, runs[0].values)
        assert torch.equal(run.log_prob, runs[0].log_prob)


def test_a_cuda_graph_replays_a_run() -> None:
    program = LARGE["wavenet"]()
    run = Cuda(program).start(_request("wavenet", program))
    run.advance()
    plain, log_prob = run.values.clone(), run.log_prob.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run.rewind()
        run.launch()
        with pytest.raises(RuntimeError, match="advance: waits"):
            run.advance()
    for _ in range(2):
        run.values.zero_()
        graph.replay()
        run.settle()
        assert run.finished
        assert torch.equal(run.values, plain)
        assert torch.equal(run.log_prob, log_prob)


def test_a_run_stays_on_the_callers_stream() -> None:
    program = LARGE["wavenet"]()
    executor, request = Cuda(program), _request("wavenet", program)
    plain = executor.start(request)
    plain.advance()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run = executor.start(request)
        torch.cuda._sleep(100_000_000)
        run.launch()
        assert not side.query()
        assert torch.cuda.default_stream().query()
        run.settle()
    assert torch.equal(run.values, plain.values)


def _endless() -> Program:
    return wavenet.program(wavenet.parameters(64, 32, 64, 6), (1, 2, 4, 8, 16, 32))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_kernel_hands_over_is_cancelled_and_goes_on(schedule: str) -> None:
    program = _endless()
    request = make(program, 4, seed=1, length=20_000)
    executor = Cuda(program, **SCHEDULES[schedule])
    whole = executor.start(request)
    whole.advance()
    run = executor.start(request)
    for end in (100, 200, 300):
        assert run.advance(100, ahead=True) == 100
        assert not torch.cuda.current_stream().query()
        assert torch.equal(run.values[:, :end], whole.values[:, :end].cpu())
    run.pause()
    assert 300 <= run.done < request.length
    assert torch.cuda.current_stream().query()
    run.advance()
    assert torch.equal(run.values, whole.values)
    assert torch.equal(run.log_prob, whole.log_prob)


def test_ctrl_c_ends_a_kernel_within_a_second() -> None:
    program = _endless()
    run = Cuda(program).start(make(program, 1, seed=1, length=5_000_000))
    began = time.monotonic()
    threading.Timer(0.5, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        run.advance()
    assert time.monotonic() - began < 1.5
    assert 0 < run.done < 5_000_000
    assert run.advance(10) == 10


def test_kernels_of_both_compilers_draw_the_same(tmp_path: Path) -> None:
    card = torch.cuda.get_device_capability()
    image = tmp_path / "kernels.cubin"
    nvrtc.recipe(cuda.CSRC, cuda_build.arch_of(card)).build(image)
    library = native.core().CudaLibrary(cuda.DRIVER, image.read_bytes())
    program = LARGE["wavenet"]()
    runs = [Cuda(program, library=one).start(_request("wavenet", program)) for one in (None, library)]
    for run in runs:
        run.advance()
    assert torch.equal(runs[0].values, runs[1].values)


def test_a_sampler_of_weights_on_the_card_takes_this_executor() -> None:
    program = LARGE["wavenet"]()
    moved: Program = replace(program, weights={name: t.cuda() for name, t in program.weights.items()})
    sampler = Sampler(moved, 4)
    assert "wavenet: cuda (" in sampler.explain()
    values = sampler.sample(seed=3)
    assert isinstance(values, torch.Tensor)
    assert torch.equal(values, sampler.sample(seed=3))
    pieces = list(sampler.stream(7, seed=3))
    assert torch.equal(torch.cat(pieces, 1), values)
