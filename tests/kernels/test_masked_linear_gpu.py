"""Masked linear's kernels on a card: every dtype against float64, the same bits whatever tuning chose, CUDA graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from budget import assert_within_budget
from torch import Tensor

pytest.importorskip("triton")

from fastar import _dispatch
from fastar.kernels import _launch, _tiles, _tuning
from fastar.kernels import masked_linear as kernels
from fastar.ops import mask_plan, masked_linear
from fastar.ops.mask_plan import MaskPlan
from fastar.reference.masked_linear import mask_from_degrees
from fastar.reference.masked_linear import masked_linear as reference

pytestmark = pytest.mark.gpu


def make_plan(kind: str, N: int, K: int) -> tuple[MaskPlan, Tensor]:
    generator = torch.Generator().manual_seed(0)
    if kind == "blocks":
        mask = torch.rand(N, K, generator=generator) < 0.5
        mask[: N // 2, K // 2 :] = False
        mask[N // 2 :, : K // 2] = True
        return mask_plan.from_mask(mask.cuda()), mask.cuda()
    ins, outs = (torch.randint(1, 100, (size,), generator=generator).cuda() for size in (K, N))
    if kind == "sorted":
        ins, outs = ins.sort().values, outs.sort().values
    return mask_plan.from_degrees(ins, outs), mask_from_degrees(ins, outs)


def inputs(M: int, N: int, K: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(M, K), (N, K), (N,), (M, N)]
    x, weight, bias, grad = (torch.randn(shape, device="cuda").to(dtype) for shape in shapes)
    return [x, weight / K**0.5, bias, grad]


def gradients(run: Any, grad: Tensor, *tensors: Tensor) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = run(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


@pytest.mark.parametrize("sizes", [(1024, 2048, 1920), (65, 333, 257), (1, 64, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("kind", ["sorted", "both", "blocks"])
def test_against_float64(kind: str, activation: str, dtype: torch.dtype, sizes: tuple[int, int, int]) -> None:
    M, N, K = sizes
    x, weight, bias, grad = inputs(M, N, K, dtype)
    plan, mask = make_plan(kind, N, K)
    ours = gradients(lambda *t: masked_linear(*t, plan=plan, activation=activation), grad, x, weight, bias)
    assert _dispatch.choose("masked_linear", x.device, dtype).name == "triton"

    def plain(*t: Tensor) -> Tensor:
        return reference(*t, mask, activation)

    same = gradients(plain, grad, x, weight, bias)
    doubled = [t.double() for t in (x, weight, bias)]
    exact = gradients(plain, grad.double(), *doubled)
    terms = gradients(lambda *t: reference(*t, mask), grad.double().abs(), *(t.abs() for t in doubled))
    for what, a, b, c, size in zip(["y", "dx", "dweight", "dbias"], ours, same, exact, terms, strict=True):
        assert_within_budget(a, b, c, scale=torch.maximum(c.abs(), size), what=what)
    assert (ours[2][~mask] == 0).all()


@pytest.mark.parametrize("kind", ["both", "blocks"])
def test_every_candidate_gives_the_same_bits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias, grad = inputs(1024, 2048, 2048, torch.bfloat16)
    plan, _ = make_plan(kind, 2048, 2048)
    results = []
    for candidate in _tiles.configs(_launch.target_of(x.device), x.dtype, "ieee", 1024, 2048):
        monkeypatch.setattr(_tuning, "choose", lambda *_, taken=candidate: taken)
        y, _ = kernels.forward(x, weight, bias, *plan, "tanh", False, False)
        every = kernels.backward(grad, x, weight, y, *plan, "tanh", (True, True, True), False)
        results.append([y, *every])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_inside_a_cuda_graph() -> None:
    x, weight, bias, _ = inputs(256, 512, 512, torch.bfloat16)
    plan, _ = make_plan("both", 512, 512)
    expected = masked_linear(x, weight, bias, plan=plan, activation="relu")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = masked_linear(x, weight, bias, plan=plan, activation="relu")
    y.zero_()
    graph.replay()
    assert torch.equal(y, expected)
