"""Packed copies of masked weights on the CPU: what is visible, in sorted order, redone only when the weight changed.

A packed copy lives as long as its weight. Whether it is current is decided by a fingerprint of the weight's memory,
read at the speed of memory: version counters are not raised by writes through `.data`, so a copy keyed by them goes
stale without a sign. It takes as much memory as the visible part of the weight, about half of it for a triangle.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from fastar.native import core
from fastar.ops.mask_plan import BLOCK, EMPTY, MaskPlan

# Smaller buffers come out of memory that malloc has kept, already faulted in.
HUGE_BYTES = 8 << 20


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    """``torch.empty``, on huge pages where it is large: faulting small ones in costs more than filling them."""
    out = torch.empty(shape, dtype=dtype)
    if out.nbytes >= HUGE_BYTES:
        core().prefer_huge_pages(out.data_ptr(), out.nbytes)
    return out


class Span(NamedTuple):
    """Rows [begin, end) of the sorted weight see columns [low, high) and nothing outside."""

    begin: int
    end: int
    low: int
    high: int


def spans(plan: MaskPlan, shape: Sequence[int], blocks: int) -> list[Span]:
    """The rows in about `blocks` blocks of at least 2 * BLOCK, each with the columns that any of its rows sees."""
    rows, columns = shape
    step = max(2 * BLOCK, -(-rows // (blocks * BLOCK)) * BLOCK)
    edges = [(begin, min(begin + step, rows)) for begin in range(0, rows, step)]
    if plan.reach is not None:
        reach = plan.reach.tolist()
        return [Span(begin, end, 0, reach[end - 1]) for begin, end in edges]
    if plan.block_map is None:
        return [Span(0, rows, 0, columns)] if rows else []
    found = []
    for begin, end in edges:
        seen = (plan.block_map[begin // BLOCK : -(-end // BLOCK)] != EMPTY).any(0).nonzero()
        low, high = (int(seen[0]) * BLOCK, min(columns, (int(seen[-1]) + 1) * BLOCK)) if seen.numel() else (0, 0)
        found.append(Span(begin, end, low, high))
    return found


@dataclass
class _Packed:
    """One weight's packed blocks and what they were made from."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    plan: MaskPlan | None = None
    source: tuple[object, ...] = ()
    spans: list[Span] = field(default_factory=list)
    blocks: list[Tensor] = field(default_factory=list)


V = TypeVar("V")


class PerTensor(Generic[V]):
    """What is kept of tensors, each found by identity, as long as they live.

    torch's own WeakIdKeyDictionary takes 0.9 us for each look, this 0.2: small layers look in every call.
    """

    def __init__(self, make: Callable[[], V]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._entries: dict[int, tuple[weakref.ref[Tensor], V]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def of(self, tensor: Tensor) -> V:
        """What is kept of this tensor; made where there is nothing."""
        entry = self._entries.get(id(tensor))
        if entry is not None and entry[0]() is tensor:
            return entry[1]
        with self._lock:
            entry = self._entries.get(id(tensor))
            if entry is None or entry[0]() is not tensor:
                entry = self._entries[id(tensor)] = (self._reference(tensor), self._make())
            return entry[1]

    def _reference(self, tensor: Tensor) -> weakref.ref[Tensor]:
        key, entries = id(tensor), self._entries

        # Called wherever the tensor dies, perhaps with the lock held: it takes none.
        def forget(dead: weakref.ref[Tensor]) -> None:
            entry = entries.get(key)
            if entry is not None and entry[0] is dead:
                entries.pop(key, None)

        return weakref.ref(tensor, forget)


_PACKED = PerTensor(_Packed)


@contextlib.contextmanager
def obtain(weight: Tensor, plan: MaskPlan, blocks: int) -> Iterator[list[tuple[Span, Tensor]]]:
    """The packed blocks of `weight`, current, and safe from being packed anew until the block of code ends."""
    if plan.reach is None and plan.mask is None:
        yield [(Span(0, weight.shape[0], 0, weight.shape[1]), weight.contiguous())]
        return
    packed = _PACKED.of(weight)
    with packed.lock:
        _update(packed, weight.detach().contiguous(), plan, blocks)
        yield list(zip(packed.spans, packed.blocks, strict=True))


class Masked:
    """A small weight with zeros where its mask has them, and what it was made from.

    Kept in `MASKED` as long as the weight lives: it is then written when the weight changes, and not by each product
    that reads it. What `current` returns is safe from being written again while `lock` is held.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._values = torch.empty(0)
        self._mask: Tensor | None = None
        self._fingerprint = 0

    def current(self, weight: Tensor, mask: Tensor) -> Tensor:
        """``where(mask, weight, 0)``."""
        weight = weight if weight.is_contiguous() else weight.contiguous()
        print_of_weight = core().fingerprint(weight.data_ptr(), weight.nbytes, 1)
        values = self._values
        if self._fingerprint != print_of_weight or self._mask is not mask or values.dtype != weight.dtype:
            if values.dtype != weight.dtype or values.shape != weight.shape:
                values = self._values = torch.empty(weight.shape, dtype=weight.dtype)
            core().masked_copy(
                weight.element_size(), weight.data_ptr(), weight.stride(0), mask.data_ptr(), mask.stride(0),
                values.data_ptr(), values.stride(0), *values.shape, 1,
            )  # fmt: skip
            self._fingerprint, self._mask = print_of_weight, mask
        return values


MASKED = PerTensor(Masked)


def _update(packed: _Packed, weight: Tensor, plan: MaskPlan, blocks: int) -> None:
    threads = torch.get_num_threads()
    print_of_weight = core().fingerprint(weight.data_ptr(), weight.numel() * weight.element_size(), threads)
    source = (weight.dtype, weight.shape, print_of_weight)
    same_plan = packed.plan is not None and all(ours is theirs for ours, theirs in zip(packed.plan, plan, strict=True))
    if same_plan and packed.source == source:
        return
    if not same_plan or packed.source[:2] != source[:2]:
        packed.plan = plan
        packed.spans = spans(plan, weight.shape, blocks)
        packed.blocks = _blocks(packed.spans, weight.dtype)
    for span, block in zip(packed.spans, packed.blocks, strict=True):
        _pack(span, block, weight, plan, threads)
    packed.source = source


def _blocks(spans: list[Span], dtype: torch.dtype) -> list[Tensor]:
    """One contiguous matrix per span, all in one piece of memory."""
    shapes = [(s.end - s.begin, s.high - s.low) for s in spans]
    flat = empty(sum(rows * columns for rows, columns in shapes), dtype=dtype)
    parts = flat.split([rows * columns for rows, columns in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _pack(span: Span, block: Tensor, weight: Tensor, plan: MaskPlan, threads: int) -> None:
    if block.numel() == 0:
        return
    size = weight.element_size()
    if plan.mask is not None:
        part, mask = weight[span.begin :, span.low :], plan.mask[span.begin :, span.low :]
        core().masked_copy(
            size, part.data_ptr(), part.stride(0), mask.data_ptr(), mask.stride(0), block.data_ptr(), block.stride(0),
            *block.shape, threads,
        )  # fmt: skip
        return
    assert plan.reach is not None
    rows = None if plan.row_order is None else plan.row_order[span.begin :]
    source = weight[span.begin :] if rows is None else weight
    core().gather(
        size, source.data_ptr(), weight.stride(0), 0 if rows is None else rows.data_ptr(),
        0 if plan.column_order is None else plan.column_order.data_ptr(), plan.reach[span.begin :].data_ptr(), False,
        block.data_ptr(), block.stride(0), *block.shape, threads,
    )  # fmt: skip
