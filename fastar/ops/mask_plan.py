"""How a masked product is arranged so that what the mask removes is never multiplied.

Degrees (connect where out_degree >= in_degree, > when strict) become a triangle: with the inputs sorted by degree
(`column_order`) and the outputs too (`row_order`), sorted output j sees exactly the first `reach[j]` sorted inputs, and
`reach` never falls. No mask is stored: three vectors of integers are the whole plan.

Any other boolean matrix keeps its own order and gets a map of blocks, empty, partial or full.

A boolean matrix that some degrees imply is recognised (the sets of inputs that its rows see are nested) and treated as
degrees: masks that travel with other projects' weights get the triangle as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Rows and columns of one entry of the block map; the GPU kernels' tiles are multiples of it.
BLOCK = 64

EMPTY, PARTIAL, FULL = 0, 1, 2


class MaskPlan(NamedTuple):
    """A mask's arrangement as tensors, in the order in which the op's schema takes them.

    Triangular plans have `reach` (int32 [out]) and, unless the order is already sorted, `row_order` (int32 [out]),
    `column_order` (int32 [in]) and their inverses. Block plans have `mask` (bool [out, in]) and `block_map`
    (uint8 [ceil(out / BLOCK), ceil(in / BLOCK)] of EMPTY, PARTIAL, FULL). A plan with neither is a plain linear layer.
    """

    row_order: Tensor | None = None
    column_order: Tensor | None = None
    row_rank: Tensor | None = None
    column_rank: Tensor | None = None
    reach: Tensor | None = None
    mask: Tensor | None = None
    block_map: Tensor | None = None

    def dense(self, shape: Sequence[int]) -> Tensor | None:
        """The mask as bool [out, in], formed for the asking; None where nothing is masked."""
        if self.reach is None:
            return self.mask
        columns = self.column_rank
        if columns is None:
            columns = torch.arange(shape[1], device=self.reach.device)
        reach = self.reach if self.row_rank is None else self.reach[self.row_rank]
        return columns[None, :] < reach[:, None]

    def to(self, *args: Any, **kwargs: Any) -> MaskPlan:
        """The plan on another device; integer tensors keep their dtype."""
        return MaskPlan(*(None if t is None else t.to(*args, **kwargs) for t in self))


def _inverse(order: Tensor) -> Tensor:
    rank = torch.empty_like(order)
    rank[order.long()] = torch.arange(order.numel(), dtype=order.dtype, device=order.device)
    return rank


def _is_sorted(values: Tensor) -> bool:
    return bool((values[1:] >= values[:-1]).all())


def _triangle(in_keys: Tensor, out_keys: Tensor, strict: bool) -> MaskPlan:
    column_order = row_order = None
    if not _is_sorted(in_keys):
        in_keys, order = torch.sort(in_keys, stable=True)
        column_order = order.int()
    if not _is_sorted(out_keys):
        out_keys, order = torch.sort(out_keys, stable=True)
        row_order = order.int()
    reach = torch.searchsorted(in_keys.contiguous(), out_keys.contiguous(), right=not strict).int()
    return MaskPlan(
        row_order=row_order,
        column_order=column_order,
        row_rank=None if row_order is None else _inverse(row_order),
        column_rank=None if column_order is None else _inverse(column_order),
        reach=reach,
    )


def from_degrees(in_degrees: Tensor, out_degrees: Tensor, strict: bool = False) -> MaskPlan:
    """The plan of the mask ``out_degrees[:, None] >= in_degrees`` (``>`` when strict), which is never formed."""
    return _triangle(in_degrees.detach(), out_degrees.detach(), strict)


def from_mask(mask: Tensor) -> MaskPlan:
    """The plan of any boolean matrix [out, in]; a nested one becomes a triangle."""
    mask = mask.detach()
    if mask.numel() == 0 or bool(mask.all()):
        return MaskPlan()
    reach = mask.sum(1)
    seen_by = mask.sum(0)
    column_order = torch.sort(seen_by, descending=True, stable=True).indices
    rank = _inverse(column_order)
    # The rows are nested exactly if each row sees the most widely seen columns, as many as it sees at all.
    if bool((mask == (rank[None, :] < reach[:, None])).all()):
        # A column's degree is the size of the smallest row that sees it, out of reach for one that nobody sees.
        beyond = mask.shape[1] + 1
        return _triangle(torch.where(mask, reach[:, None], beyond).amin(0), reach, strict=False)
    return MaskPlan(mask=mask.clone(memory_format=torch.contiguous_format), block_map=_block_map(mask))


def _block_map(mask: Tensor) -> Tensor:
    rows, columns = (-(-size // BLOCK) for size in mask.shape)
    inside = torch.zeros(rows * BLOCK, columns * BLOCK, dtype=torch.int32, device=mask.device)
    inside[: mask.shape[0], : mask.shape[1]] = 1
    seen = torch.zeros_like(inside)
    seen[: mask.shape[0], : mask.shape[1]] = mask.int()

    def per_block(t: Tensor) -> Tensor:
        return t.view(rows, BLOCK, columns, BLOCK).sum((1, 3))

    count = per_block(seen)
    full = count == per_block(inside)
    return torch.where(full, FULL, torch.where(count > 0, PARTIAL, EMPTY)).to(torch.uint8)
