"""What the host asks of the driver and does with its answers, with the twin in a card's place."""

from __future__ import annotations

import _thread
import re
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastar import native
from fastar.native import cuda, cuda_build
from fastar.sampling import Sampler, backends, cuda_run, space
from fastar.sampling import cuda as cuda_executor
from fastar.sampling.cuda import Cuda
from fastar.sampling.cuda_plan import DoesNotFitError
from fastar.sampling.request import make
from tests.sampling.consumers import wavenet
from tests.sampling.consumers_more import CONSUMERS, transformer
from tests.sampling.test_cpu_programs import LARGE, _request

# Against cuda.h: each of our functions is there, and takes as many bytes in each place; so do structs and numbers.
SAME_AS_THE_TOOLKIT = """
#include <cuda.h>
#include <type_traits>
#include "cuda/driver.h"
using namespace fastar::cuda;
template <typename A, typename B>
constexpr bool same = sizeof(A) == sizeof(B) && std::is_pointer_v<A> == std::is_pointer_v<B>;
template <typename Ours, typename Theirs>
struct Compare;
template <typename... Ours, typename R, typename... Theirs>
struct Compare<driver::Status (*)(Ours...), R (*)(Theirs...)> {
    static_assert(sizeof...(Ours) == sizeof...(Theirs));
    static constexpr bool value = (same<Ours, Theirs> && ...);
};
#define COMPARE(name, ...) \\
    static_assert(Compare<decltype(driver::Functions::name), decltype(&::name)>::value, #name);
FASTAR_CUDA_DRIVER(COMPARE)
static_assert(sizeof(driver::LaunchAttribute) == sizeof(CUlaunchAttribute));
static_assert(offsetof(driver::LaunchAttribute, value) == offsetof(CUlaunchAttribute, value));
static_assert(sizeof(driver::LaunchConfig) == sizeof(CUlaunchConfig));
static_assert(offsetof(driver::LaunchConfig, threads) == offsetof(CUlaunchConfig, blockDimX));
static_assert(offsetof(driver::LaunchConfig, shared_bytes) == offsetof(CUlaunchConfig, sharedMemBytes));
static_assert(offsetof(driver::LaunchConfig, stream) == offsetof(CUlaunchConfig, hStream));
static_assert(offsetof(driver::LaunchConfig, attributes) == offsetof(CUlaunchConfig, attrs));
static_assert(offsetof(driver::LaunchConfig, attribute_count) == offsetof(CUlaunchConfig, numAttrs));
#define NUMBER(ours, theirs) static_assert(int{driver::ours} == static_cast<int>(theirs));
NUMBER(kSuccess, CUDA_SUCCESS)
NUMBER(kInvalidValue, CUDA_ERROR_INVALID_VALUE)
NUMBER(kNotFound, CUDA_ERROR_NOT_FOUND)
NUMBER(kNotReady, CUDA_ERROR_NOT_READY)
NUMBER(kLaunchFailed, CUDA_ERROR_LAUNCH_FAILED)
NUMBER(kMultiprocessors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
NUMBER(kLevel2Bytes, CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)
NUMBER(kMajor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)
NUMBER(kMinor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
NUMBER(kSharedPerMultiprocessor, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)
NUMBER(kRegistersPerMultiprocessor, CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR)
NUMBER(kSharedPerBlock, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
NUMBER(kClusterLaunch, CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH)
NUMBER(kRegisters, CU_FUNC_ATTRIBUTE_NUM_REGS)
NUMBER(kMostDynamicShared, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)
NUMBER(kLargeClusters, CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED)
NUMBER(kCooperative, CU_LAUNCH_ATTRIBUTE_COOPERATIVE)
NUMBER(kClusterSize, CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION)
"""


def test_our_declarations_are_those_of_the_toolkit(tmp_path: Path) -> None:
    nvcc = cuda_build.find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc here")
    source = tmp_path / "same.cpp"
    source.write_text(SAME_AS_THE_TOOLKIT)
    command = [str(nvcc), "-std=c++20", "-c", f"-I{cuda.CSRC}", str(source), "-o", str(tmp_path / "same.o")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _path_of_the_twin() -> str:
    return str(cuda.compiled(cuda_build.TwinRecipe(cuda.CSRC)))


def test_an_old_driver_is_refused(card: Any) -> None:
    card.pretend("driver", 11080, 13000)
    with pytest.raises(RuntimeError, match=r"it supports CUDA 11\.8, and 12\.0 or newer is needed; update the driver"):
        native.core().CudaLibrary(_path_of_the_twin(), b"")


def test_kernels_that_the_driver_does_not_take(card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "DRIVER", _path_of_the_twin())
    monkeypatch.setattr(cuda, "recipe", lambda card: cuda_build.TwinRecipe(cuda.CSRC))
    cuda.library.cache_clear()
    assert cuda.library((9, 0)).is_twin
    cuda.library.cache_clear()
    card.pretend("image", 209, 0)
    with pytest.raises(RuntimeError, match=r"error 209\); the driver, of CUDA 13\.0, does not load .*: update it"):
        cuda.library((9, 0))


def test_a_device_that_is_not_there(twin: Any) -> None:
    with pytest.raises(RuntimeError, match="CUDA device: there is no device 3"):
        twin.describe(3)


def test_a_refused_launch_says_why(card: Any) -> None:
    program = LARGE["nade"]()
    run = Cuda(program, library=card).start(_request("nade", program))
    card.pretend("launch", 701, 0)
    with pytest.raises(RuntimeError, match=r"CUDA launch: the host twin was told to refuse \(error 701\)"):
        run.advance()


def test_tensors_of_another_device_are_refused(twin: Any) -> None:
    program = LARGE["nade"]()
    elsewhere = torch.empty(1, 5, 1, dtype=torch.float64, device="meta")
    request = replace(_request("nade", program, 1), uniforms=elsewhere)
    with pytest.raises(ValueError, match="uniforms: expected a tensor on cpu or on the cpu, got one on meta"):
        Cuda(program, library=twin).start(request)
    with pytest.raises(ValueError, match="device: the cuda executor runs on a CUDA device, not on cpu"):
        Cuda(program, device="cpu")
    torn = program.with_weights({k: w.to("meta") if i else w for i, (k, w) in enumerate(program.weights.items())})
    with pytest.raises(ValueError, match="model: its weights lie on cpu and meta; move them to one device"):
        Sampler(torn, 1)


def test_too_little_memory_is_said_before_it_is_taken(card: Any) -> None:
    program = LARGE["nade"]()
    made = Cuda(program, library=card)
    card.pretend("free", made.packed.bytes, 1 << 40)
    with pytest.raises(MemoryError, match=r"rows of nade take .* MiB, and host twin has .* MiB left; make batch_size"):
        made.start(_request("nade", program, 1000))
    card.pretend("free", 1000, 1 << 40)
    with pytest.raises(MemoryError, match="the weights of nade take"):
        Cuda(program, library=card)


def test_what_does_not_fit_falls_to_the_next_schedule(card: Any) -> None:
    program = LARGE["wavenet"]()
    card.pretend("clusters", 0, 8)
    plan = Cuda(program, library=card)
    assert plan.schedule.name != "cluster"
    assert "not cluster: 1 rows need 16 blocks of" in plan.describe()
    assert "at once, and host twin holds 0" in plan.describe()
    card.pretend("blocks", 0, 1)
    with pytest.raises(DoesNotFitError, match=r"cluster: .*; grid: 1 rows need 16 blocks"):
        Cuda(program, library=card)
    card.pretend("largest cluster", 1, 16)
    with pytest.raises(DoesNotFitError, match="cluster: host twin has no clusters"):
        Cuda(program, schedule="cluster", library=card)


def test_a_grid_that_would_wait_for_absent_blocks_is_refused(card: Any) -> None:
    program = LARGE["nade"]()
    made = Cuda(program, schedule="grid", blocks=4, rows=8, library=card)
    made.start(_request("nade", program, 32))
    with pytest.raises(ValueError, match=r"rows: 40 rows need 20 blocks .* at once, and host twin holds 16; make an"):
        made.start(_request("nade", program, 40))


def test_a_plan_that_fits_nowhere_goes_to_the_next_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(plan: backends.Plan) -> Any:
        raise DoesNotFitError("a block needs more")

    first = replace(backends.BACKENDS[0], declines=lambda plan: None, make=refuse)
    monkeypatch.setattr(backends, "BACKENDS", [first, *backends.BACKENDS[1:]])
    sampler = Sampler(LARGE["nade"](), 2)
    assert "declined  cuda: a block needs more" in sampler.explain()
    assert sampler.backend.name != "cuda"
    with pytest.raises(RuntimeError, match=r"none can run nade \(cuda: a block needs more\)"):
        Sampler(LARGE["nade"](), 2, backend="cuda")


def test_other_devices_are_left_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")
    plan = backends.Plan(LARGE["nade"](), None, device, 1, None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert cuda_executor.why_not_on(device) == "runs on cards from sm_80 on, this one is sm_75"
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert cuda_executor.why_not_on(device) == "runs on NVIDIA's cards"
    assert [one.name for one in backends.BACKENDS if one.declines(plan) is None] == ["reference"]


def _long(twin: Any, n: int = 1, length: int = 200, **options: Any) -> tuple[Any, Any]:
    program = wavenet().program
    return Cuda(program, library=twin, **options), make(program, n, seed=3, length=length)


@pytest.fixture(scope="module")
def whole(twin: Any) -> torch.Tensor:
    """What the runs below give when nothing happens to them."""
    made, request = _long(twin, 3)
    run = made.start(request)
    run.advance()
    return run.values


@pytest.mark.parametrize("schedule", ["row", "cluster", "grid"])
def test_a_cancelled_kernel_ends_and_goes_on(twin: Any, whole: torch.Tensor, schedule: str) -> None:
    made, request = _long(twin, 3, 50, schedule=schedule, blocks=None if schedule == "row" else 2)
    run = made.start(request)
    run._record["report_every"] = 1
    for _ in range(3):
        run.launch()
        run.pause()
        assert run.done < request.length
        assert torch.equal(run.values[:, : run.done], whole[:, : run.done])
    run.advance()
    assert torch.equal(run.values, whole[:, :50])
    assert run.finished


@pytest.mark.parametrize("schedule", ["row", "cluster", "grid"])
@pytest.mark.parametrize("name", ["gated_pixelcnn", "transformer", "made", "lstm", "colours", "flow"])
def test_a_run_cancelled_at_every_position_draws_the_same(twin: Any, name: str, schedule: str) -> None:
    program = LARGE["flow"]() if name == "flow" else CONSUMERS[name][0]().program
    request = _request(name, program, 3)
    made = Cuda(program, schedule=schedule, blocks=None if schedule == "row" else 2, library=twin)
    whole, run = made.start(request), made.start(request)
    whole.advance()
    launches = 0
    while not run.finished:
        run._words[0] = 1  # before the kernel begins, which then ends behind its first position
        run.launch()
        run.settle()
        launches += 1
    assert launches >= request.length // 2
    assert torch.equal(run.values, whole.values)
    assert torch.equal(run.log_prob, whole.log_prob)
    assert torch.equal(run.lengths, whole.lengths)


def test_ctrl_c_ends_a_kernel_within_its_next_report(twin: Any, whole: torch.Tensor) -> None:
    made, request = _long(twin, 3)
    run = made.start(request)
    run._record["report_every"] = 1
    threading.Timer(0.05, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        run.advance()
    assert 0 < run.done < request.length
    run.advance()
    assert torch.equal(run.values, whole)


def test_chunks_are_there_while_the_kernel_goes_on(twin: Any, whole: torch.Tensor) -> None:
    made, request = _long(twin, 3)
    run = made.start(request)
    ahead = 0
    for end in range(20, request.length + 1, 20):
        assert run.advance(20, ahead=True) == 20
        assert run.done == end
        ahead += not made.library.is_done(0, 0)
        assert torch.equal(run.values[:, :end], whole[:, :end])
    assert ahead > 0
    assert run.finished
    assert torch.equal(run.values, whole)


def test_rows_that_end_early_hold_no_chunk_up(twin: Any) -> None:
    program = transformer(A=5, N=16).program
    request = make(program, 20, seed=11, length=16, stop=1)
    plain = Cuda(program, library=twin, rows=1).start(request)
    plain.advance()
    run = Cuda(program, library=twin, rows=1).start(request)
    while not run.finished:
        run.advance(3, ahead=True)
        assert torch.equal(run.values[:, : run.done], plain.values[:, : run.done])
    assert run.done == plain.done
    assert torch.equal(run.lengths, plain.lengths)


def test_a_run_is_repeated_from_its_beginning(twin: Any) -> None:
    made, request = _long(twin, 2, 20)
    run = made.start(request)
    run.advance()
    first, log_prob = run.values.clone(), run.log_prob.clone()
    run.rewind()
    assert run.done == 0
    assert int(run.values.abs().sum()) == 0
    run.launch()
    run.settle()
    assert torch.equal(run.values, first)
    assert torch.equal(run.log_prob, log_prob)


def test_a_run_that_is_let_go_of_is_ended(twin: Any) -> None:
    made, request = _long(twin, 1, 100_000)
    run = made.start(request)
    run._record["report_every"] = 1
    run.launch()
    assert not twin.is_done(0, 0)
    began = time.monotonic()
    del run
    assert twin.is_done(0, 0)
    assert time.monotonic() - began < 5


def test_a_stuck_kernel_is_an_error(card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, request = _long(card)
    run = made.start(request)
    monkeypatch.setattr(cuda_run, "_PATIENCE", 0.05)
    card.pretend("stall", 1, 0)
    run.launch()
    run._words[1:] = 0  # as if it had begun
    with pytest.raises(RuntimeError, match=r"no position was completed for 0 seconds, so the kernel is stuck"):
        run.advance()
    card.pretend("stall", 0, 0)
    card.wait(0, 0)


@pytest.mark.parametrize("name", ["wavenet", "gated_pixelcnn", "flow"])
def test_a_run_taken_again_draws_what_a_new_one_does(twin: Any, name: str) -> None:
    program = LARGE["flow"]() if name == "flow" else CONSUMERS[name][0]().program
    executor, length = Cuda(program, rows=2, library=twin), program.positions or 6
    first = executor._again
    for seed, row_offset in ((3, 0), (2**64 - 1, 2**64 - 2), (3, 5)):
        drawn = executor.sample(3, length, seed, row_offset)
        run = executor.start(make(program, 3, seed=seed, length=length, row_offset=row_offset))
        run.advance()
        assert drawn is not None
        assert torch.equal(drawn, space.to_data(program, run.results()[0], drawn.dtype))
        assert first is None or first is executor._again
        first = executor._again
    executor.repack(program.weights)
    assert executor._again is None


def test_a_run_taken_again_tells_of_a_failed_draw(twin: Any) -> None:
    program = LARGE["transformer"]()
    weights = dict(program.weights)
    weights["fc"] = torch.full_like(weights["fc"], 3e38)
    executor = Cuda(program.with_weights(weights), library=twin)
    assert executor.sample(2, 3, 1, 0) is None
    assert executor.sample(2, 3, 1, 0) is None


def _sampler(twin: Any, program: Any, n: int) -> Sampler:
    sampler = Sampler(program, n)
    sampler.executor = Cuda(program, rows=n, library=twin)
    return sampler


def test_a_sampler_streams_and_takes_a_broken_off_stream_up(twin: Any) -> None:
    program = wavenet().program
    sampler = _sampler(twin, program, 2)
    whole = sampler.sample(seed=4, length=24)
    assert isinstance(whole, torch.Tensor)
    executor = sampler.executor
    assert isinstance(executor, Cuda)
    assert re.fullmatch(
        r"predicted .* us a position for 2 rows, measured .* us for 2 rows over 24 .*", executor.times()
    )
    assert torch.equal(torch.cat(list(sampler.stream(5, seed=4, length=24)), 1), whole)
    held_up = sampler.stream(1, seed=4, length=50_000)
    next(held_up)
    stream = sampler.stream(5, seed=4, length=24)
    pieces = [next(stream)]
    stream.close()
    other = _sampler(twin, program, 2)
    other.load_state_dict(sampler.state_dict())
    pieces += list(other.resume(7))
    assert [one.shape[1] for one in pieces] == [5, 7, 7, 5]
    assert torch.equal(torch.cat(pieces, 1), whole)
