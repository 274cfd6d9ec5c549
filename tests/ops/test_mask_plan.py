"""Plans say what their masks say, and recognise the masks that degrees imply."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastar.ops import mask_plan
from fastar.ops.mask_plan import BLOCK, EMPTY, FULL, PARTIAL, MaskPlan
from fastar.reference.masked_linear import mask_from_degrees


def meaning(plan: MaskPlan, rows: int, columns: int) -> Tensor:
    """The mask [rows, columns] that a plan stands for, element by element."""
    if plan.reach is None:
        return plan.mask if plan.mask is not None else torch.ones(rows, columns, dtype=torch.bool)
    row_order = range(rows) if plan.row_order is None else plan.row_order.tolist()
    column_order = range(columns) if plan.column_order is None else plan.column_order.tolist()
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    for j, row in enumerate(row_order):
        mask[row, list(column_order)[: int(plan.reach[j])]] = True
    return mask


def check_ranks(order: Tensor | None, rank: Tensor | None, size: int) -> None:
    assert (order is None) == (rank is None)
    if order is not None and rank is not None:
        assert torch.equal(order[rank.long()], torch.arange(size, dtype=torch.int32))


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 8), st.booleans(), st.integers(0, 2**16))
@settings(max_examples=100, deadline=None)
def test_degrees(rows: int, columns: int, top: int, strict: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ins = torch.randint(-1, top, (columns,), generator=generator)
    outs = torch.randint(-1, top, (rows,), generator=generator)
    mask = mask_from_degrees(ins, outs, strict)
    for plan in (mask_plan.from_degrees(ins, outs, strict), mask_plan.from_mask(mask)):
        # A mask that degrees imply never needs a stored mask.
        assert plan.mask is None
        assert torch.equal(meaning(plan, rows, columns), mask)
        check_ranks(plan.row_order, plan.row_rank, rows)
        check_ranks(plan.column_order, plan.column_rank, columns)
        if plan.reach is not None:
            assert (plan.reach.diff() >= 0).all()


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**16))
@settings(max_examples=100, deadline=None)
def test_any_mask(rows: int, columns: int, seed: int) -> None:
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < 0.5
    plan = mask_plan.from_mask(mask)
    assert torch.equal(meaning(plan, rows, columns), mask)
    sets = [set(row.nonzero().flatten().tolist()) for row in mask]
    nested = all(a <= b or b <= a for a in sets for b in sets)
    assert (plan.mask is None) == nested


def test_sorted_degrees_need_no_order() -> None:
    plan = mask_plan.from_degrees(torch.arange(5), torch.arange(5))
    assert plan.row_order is None
    assert plan.column_order is None
    assert plan.reach is not None
    assert plan.reach.tolist() == [1, 2, 3, 4, 5]


def test_block_map() -> None:
    mask = torch.zeros(2 * BLOCK + 5, 3 * BLOCK - 1, dtype=torch.bool)
    mask[:BLOCK, :BLOCK] = True
    mask[BLOCK, 2 * BLOCK] = True
    mask[2 * BLOCK :, 2 * BLOCK :] = True
    plan = mask_plan.from_mask(mask)
    assert plan.block_map is not None
    assert plan.block_map.tolist() == [[FULL, EMPTY, EMPTY], [EMPTY, EMPTY, PARTIAL], [EMPTY, EMPTY, FULL]]
