"""How much of a dense layer's work masked linear's kernels execute, at the shapes that matter and on the real tiles."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from fastar.kernels import _launch, _tiles, masked_linear
from fastar.kernels._launch import Target
from fastar.ops import mask_plan


@pytest.mark.parametrize("target", [_launch.SM80, _launch.SM90, _launch.SM100])
@pytest.mark.parametrize("sizes", [(8192, 8192, 8192), (1024, 8000, 8000)])
def test_about_half_is_executed(sizes: tuple[int, int, int], target: Target) -> None:
    M, N, K = sizes
    generator = torch.Generator().manual_seed(0)
    ins, outs = (torch.randint(1, 784, (size,), generator=generator) for size in (K, N))
    plan = mask_plan.from_degrees(ins, outs)
    assert plan.reach is not None
    visible = plan.reach.double().sum().item() / (N * K)
    for config in _tiles.configs(target, torch.bfloat16, "ieee", M, N):
        counts = masked_linear.block_products(plan.reach, None, M, N, K, config)
        assert set(counts) == {"forward", "input_gradient", "weight_gradient"}
        for executed, dense in counts.values():
            # Nothing visible is left out, and the boundary's tiles add at most one in twenty.
            assert visible * (1 - 1e-9) <= executed / dense * (1 + config.columns / K) * (1 + config.rows / N)
            assert executed / dense < visible + 0.05


def test_without_a_mask_all_is_executed() -> None:
    config = _tiles.configs(_launch.SM90, torch.bfloat16, "ieee", 1000, 1000)[0]
    counts = masked_linear.block_products(None, None, 1000, 1000, 1000, config)
    assert all(executed == dense for executed, dense in counts.values())


def test_the_kernels_and_the_plans_agree_on_the_size_of_a_block() -> None:
    assert _tiles.BLOCK == mask_plan.BLOCK
