"""The native gathers and fingerprints, at every vector level that this CPU can run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fastar.native import core

LEVELS = core().levels_usable()


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    before = core().level()
    core().select_level(request.param)
    yield request.param
    core().select_level(before)


def gather(
    source: Tensor,
    rows: Tensor | None,
    columns: Tensor | None,
    limit: Tensor | None,
    on_source: bool,
    shape: tuple[int, int],
    threads: int,
) -> Tensor:
    out = torch.full(shape, 7, dtype=source.dtype)
    sizes = (out.data_ptr(), out.stride(0), *shape, threads)
    pointers = [0 if t is None else t.data_ptr() for t in (rows, columns, limit)]
    core().gather(source.element_size(), source.data_ptr(), source.stride(0), *pointers, on_source, *sizes)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(1, 1), (3, 17), (64, 64), (130, 333)])
@pytest.mark.parametrize("threads", [1, 3])
def test_gather(level: str, dtype: torch.dtype, size: tuple[int, int], threads: int) -> None:
    rows, columns = size
    source = torch.randn(rows + 2, columns + 5).to(dtype)[:rows, :columns]
    row_index, column_index = (torch.randperm(n).int() for n in size)
    limit = torch.randint(0, columns + 1, (rows,)).int()
    picked = source[row_index.long()][:, column_index.long()]
    assert torch.equal(gather(source, row_index, column_index, None, False, size, threads), picked)
    assert torch.equal(gather(source, None, None, None, False, size, threads), source)
    zero = torch.zeros((), dtype=dtype)
    below = torch.arange(columns) < limit[:, None]
    assert torch.equal(
        gather(source, row_index, column_index, limit, False, size, threads), torch.where(below, picked, zero)
    )
    assert torch.equal(gather(source, None, None, limit, False, size, threads), torch.where(below, source, zero))
    visible = torch.where(below, source, zero)
    assert torch.equal(
        gather(source, row_index, column_index, limit, True, size, threads),
        visible[row_index.long()][:, column_index.long()],
    )
    assert torch.equal(gather(source, row_index, None, limit, True, size, threads), visible[row_index.long()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_masked_copy(level: str, dtype: torch.dtype) -> None:
    source, mask = torch.randn(37, 91).to(dtype), torch.rand(37, 91) < 0.4
    source[~mask] = float("nan")
    out = torch.empty_like(source)
    core().masked_copy(source.element_size(), source.data_ptr(), 91, mask.data_ptr(), 91, out.data_ptr(), 91, 37, 91, 2)
    assert torch.equal(out, torch.where(mask, source, torch.zeros((), dtype=dtype)))


def fingerprint(t: Tensor, threads: int = 1) -> int:
    return int(core().fingerprint(t.data_ptr(), t.nbytes, threads))


def test_fingerprint_is_the_same_at_every_level_and_number_of_threads() -> None:
    data = torch.randn(1_000_003)
    before, values = core().level(), set()
    for name in LEVELS:
        core().select_level(name)
        values |= {fingerprint(data, threads) for threads in (1, 2, 5)}
    core().select_level(before)
    assert len(values) == 1


@pytest.mark.parametrize("size", [1, 3, 1001, 300_007])
def test_fingerprint_sees_every_byte(size: int) -> None:
    data = torch.randint(0, 256, (size,), dtype=torch.uint8)
    seen = {fingerprint(data)}
    places = range(size) if size < 2000 else torch.randint(0, size, (500,)).unique().tolist()
    for at in places:
        data[at] += 1
        seen.add(fingerprint(data))
        data[at] -= 1
    assert len(seen) == len(places) + 1


def test_fingerprint_of_unaligned_memory() -> None:
    data = torch.randint(0, 256, (1000,), dtype=torch.uint8)
    assert fingerprint(data[1:]) == fingerprint(data[1:].clone())


def test_unknown_level_is_named() -> None:
    with pytest.raises(ValueError, match="level: expected one of baseline"):
        core().select_level("avx1024")


def test_a_forked_child_has_workers_of_its_own() -> None:
    data = torch.randn(2_000_000)
    expected = fingerprint(data, 2)
    context = torch.multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(fingerprint(data, 2)))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert queue.get() == expected
