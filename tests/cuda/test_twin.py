"""The host twin of the CUDA vocabulary: right kernels give right results, and planted mistakes are found."""

from __future__ import annotations

import ctypes
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import philox_oracle
import pytest
import torch
from torch import Tensor

from fastar import native
from fastar.native import cuda, cuda_build

SEEDS = range(8)
Launch = Callable[[str, int, Tensor, Tensor, Tensor], str | None]


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Launch:
    """Runs a kernel of planted.cu: its error, or None."""
    library = tmp_path_factory.mktemp("planted") / "planted.so"
    sources = [
        Path(__file__).parent / "planted.cu",
        *(cuda.CSRC / "twin" / f"{one}.cpp" for one in ("fibres", "memory")),
    ]
    recipe = cuda_build.TwinRecipe(cuda.CSRC)
    command = [*recipe.compiler(), *cuda_build.TWIN_OPTIONS, f"-I{cuda.CSRC}", "-x", "c++", *map(str, sources)]
    done = subprocess.run([*command, "-o", str(library)], capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"
    run = ctypes.CDLL(str(library)).run
    run.restype = ctypes.c_char_p
    run.argtypes = [ctypes.c_char_p, ctypes.c_uint64, *[ctypes.c_void_p] * 3]

    def call(name: str, seed: int, into: Tensor, out: Tensor, flag: Tensor) -> str | None:
        error = run(name.encode(), seed, into.data_ptr(), out.data_ptr(), flag.data_ptr())
        return None if error is None else error.decode()

    return call


def _expected(name: str, into: Tensor) -> Tensor:
    if name.startswith("reverse"):
        return into.view(4, 64).flip(1).flatten()
    if name.startswith(("copy", "ring")):
        return 2 * into
    if name.startswith("pass round"):
        mine = into.view(2, 4, 32)
        for _ in range(4):
            place = mine[:, :, :8].reshape(2, 32)
            mine = (0.5 * (place + place.roll(-9, 1)))[:, None].expand(2, 4, 32)
        return mine.flatten()
    return into.view(2, 4, 32).sum(1).flatten()


@pytest.mark.parametrize("name", ["reverse", "copy", "ring", "gather", "pass round"])
@pytest.mark.parametrize("seed", SEEDS)
def test_right_kernels_give_the_same_in_every_order(launch: Launch, name: str, seed: int) -> None:
    into = torch.randn(256)
    expected = _expected(name, into)
    out = torch.zeros_like(expected)
    assert launch(name, seed, into, out, torch.zeros(1, dtype=torch.int32)) is None
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(
    "name",
    [
        "reverse without barrier",
        "copy read early",
        "ring read early",
        "gather without wait",
        "pass round without wait",
    ],
)
def test_a_planted_race_shows_as_what_is_not_a_number(launch: Launch, name: str) -> None:
    into = torch.randn(256)
    found = 0
    for seed in SEEDS:
        out = torch.zeros_like(_expected(name, into))
        error = launch(name, seed, into, out, torch.zeros(1, dtype=torch.int32))
        found += error is not None or bool(out.isnan().any())
    assert found == len(SEEDS)


def test_a_flag_is_waited_for(launch: Launch) -> None:
    into, flag = torch.zeros(256), torch.zeros(1, dtype=torch.int32)
    for seed in SEEDS:
        flag.zero_()
        assert launch("flag", seed, into, into, flag) is None
        assert int(flag) == 3


@pytest.mark.parametrize(("name", "found"), [("hand over", False), ("no release", True), ("no acquire", True)])
def test_a_missing_release_or_acquire_shows_as_what_was_there_before(launch: Launch, name: str, found: bool) -> None:
    into = torch.randn(256)
    for seed in SEEDS:
        out = torch.full((64,), float("nan"))
        assert launch(name, seed, into, out, torch.zeros(1, dtype=torch.int32)) is None
        # Seeds alternate between memory that shows every write at once and memory that shows it as late as it may.
        assert bool(out[:32].isnan().all()) == (found and seed % 2 == 1)
        if not found or seed % 2 == 0:
            assert torch.equal(out[:32], into[:32])
        assert torch.equal(out[32:], into[:32])


def _relay(launch: Launch, name: str, seed: int) -> tuple[str | None, bool]:
    # The twin's error, and whether the numbers are right.
    into, out = torch.randn(96), torch.full((3, 96), float("nan"))
    error = launch(name, seed, into, out, torch.zeros(65, 32, dtype=torch.int32))
    rounds = [into]
    for _ in range(3):
        rounds.append(0.5 * (rounds[-1] + rounds[-1].roll(-41)))
    return error, torch.equal(out, torch.stack(rounds[1:]))


@pytest.mark.parametrize("seed", SEEDS)
def test_edges_of_a_grid_bring_what_was_written(launch: Launch, seed: int) -> None:
    assert _relay(launch, "relay", seed) == (None, True)


@pytest.mark.parametrize("name", ["relay with early arrivals", "relay without waits"])
def test_an_edge_that_says_nothing_shows_as_what_was_there_before(launch: Launch, name: str) -> None:
    # Odd seeds show every write as late as it may be seen.
    assert [_relay(launch, name, seed) for seed in range(1, 16, 2)] == 8 * [(None, False)]


def test_a_missing_arrival_says_who_waits_for_whom(launch: Launch) -> None:
    error, _ = _relay(launch, "relay without an arrival", 0)
    assert error is not None
    assert error.startswith("deadlock: no thread can go on\n")
    assert re.search(r"block 0, thread 0: waits for the flag at \w+ to reach 3, it is 2, last written by block", error)
    assert re.search(r"block 3, thread 0: waits for the flag at \w+ to reach 8, it is 6", error)


def test_a_planted_deadlock_says_who_waits_for_whom(launch: Launch) -> None:
    into, flag = torch.zeros(256), torch.zeros(1, dtype=torch.int32)
    error = launch("half at a barrier", 0, into, into, flag)
    assert error is not None
    assert "block 0, thread 0 to 31: each waits at barrier 0, where 32 of 64 threads are" in error
    assert "block 0, thread 32 to 63: each has ended" in error
    error = launch("flag never raised", 0, into, into, flag)
    assert error is not None
    assert error.startswith("deadlock: no thread can go on\n")
    assert "to reach 4, it is 3, last written by block" in error


@pytest.mark.parametrize(("name", "dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_matrix_fragments(launch: Launch, name: str, dtype: torch.dtype) -> None:
    into, out = torch.randn(384), torch.zeros(128)
    assert launch(name, 0, into, out, torch.zeros(1, dtype=torch.int32)) is None
    a, b = into[:256].view(16, 16).to(dtype).float(), into[256:].view(16, 8).to(dtype).float()
    torch.testing.assert_close(out.view(16, 8), a @ b)


@pytest.mark.skipif(native.why_missing() is not None, reason=str(native.why_missing()))
@pytest.mark.parametrize("continuous", [False, True])
def test_the_uniforms_of_the_device_are_those_of_the_contract(continuous: bool) -> None:
    seed, row_offset = 2**63 + 12345, 2**32 - 2
    found = torch.zeros(3, 5, 2, dtype=torch.float64)
    cuda.twin().fill_uniforms(
        device=0,
        uniforms=found.data_ptr(),
        seed=seed,
        row_offset=row_offset,
        rows=3,
        positions=5,
        draws=2,
        continuous=continuous,
        stream=0,
    )
    cuda.twin().wait(0, 0)
    oracle = philox_oracle.continuous if continuous else philox_oracle.discrete
    for row, position, draw in torch.cartesian_prod(torch.arange(3), torch.arange(5), torch.arange(2)).tolist():
        assert found[row, position, draw].item() == oracle(seed, row_offset + row, position, draw)
