"""The gate against its reference in float64, forward and gradient, on each implementation and memory format."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from budget import assert_within_budget
from torch import Tensor

from fastar import _dispatch
from fastar.ops import tanh_gate
from fastar.reference.tanh_gate import tanh_gate as reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(2, 6, 5, 7), (3, 64, 4, 4), (1, 2, 1, 1), (2, 34, 1, 3), (0, 4, 2, 2), (5, 38), (2, 10, 131)]


def laid_out(z: Tensor, layout: str) -> Tensor:
    if layout == "channels_last" and z.dim() == 4:
        return z.to(memory_format=torch.channels_last)
    if layout == "strided":
        return torch.stack([z, z], -1)[..., 0]
    return z


def both(run: object, z: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    assert callable(run)
    leaf = z.detach().requires_grad_()
    y = run(leaf)
    return y.detach(), torch.autograd.grad(y, leaf, grad)[0]


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_result_and_gradient(shape: tuple[int, ...], dtype: torch.dtype, layout: str, implementation: str) -> None:
    torch.manual_seed(0)
    z = laid_out((4 * torch.randn(shape)).to(dtype), layout)
    grad = laid_out(torch.randn_like(reference(z)), layout)
    with _dispatch.forced("tanh_gate", implementation):
        ours = both(tanh_gate, z, grad)
    same, exact = both(reference, z, grad), both(reference, z.double(), grad.double())
    for what, a, b, c in zip(("y", "z"), ours, same, exact, strict=True):
        assert_within_budget(a, b, c, what=what)
    last = not z.is_contiguous() and layout == "channels_last"
    wanted = torch.channels_last if last else torch.contiguous_format
    assert all(t.is_contiguous(memory_format=wanted) for t in ours)


def all_three(run: Any, z: Tensor, above: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    leaves = [t.detach().requires_grad_() for t in (z, above)]
    y = run(*leaves)
    return (y.detach(), *torch.autograd.grad(y, leaves, grad))


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize(
    "shape", [(2, 6, 5, 7), (3, 64, 4, 4), (2, 34, 1, 3), (2, 4, 5, 1), (1, 2, 3, 40), (0, 4, 2, 2)]
)
def test_what_is_above(shape: tuple[int, ...], layout: str, implementation: str) -> None:
    torch.manual_seed(0)
    for dtype in DTYPES:
        z, above = (laid_out((2 * torch.randn(shape)).to(dtype), layout) for _ in range(2))
        grad = laid_out(torch.randn_like(reference(z)), layout)
        with _dispatch.forced("tanh_gate", implementation):
            ours = all_three(tanh_gate, z, above, grad)
        same = all_three(reference, z, above, grad)
        exact = all_three(reference, z.double(), above.double(), grad.double())
        for what, a, b, c in zip(("y", "z", "above"), ours, same, exact, strict=True):
            assert_within_budget(a, b, c, what=f"{what} in {dtype}")


def test_threads_share_rows_without_a_trace() -> None:
    z, above = torch.randn(2, 3, 2 * 77, 41, 19)

    def results(layout: torch.memory_format) -> tuple[Tensor, ...]:
        leaves = [t.contiguous(memory_format=layout).requires_grad_() for t in (z, above)]
        y = tanh_gate(*leaves)
        return (y, *torch.autograd.grad(y.square().sum(), leaves))

    threads = torch.get_num_threads()
    for layout in (torch.contiguous_format, torch.channels_last):
        whole = results(layout)
        torch.set_num_threads(3 - min(threads, 2))
        try:
            assert all(torch.equal(a, b) for a, b in zip(results(layout), whole, strict=True))
        finally:
            torch.set_num_threads(threads)


def test_values_that_are_not_finite() -> None:
    z = torch.tensor([[torch.inf, torch.inf], [-torch.inf, torch.inf], [1.0, -torch.inf], [torch.nan, 0.0]])
    torch.testing.assert_close(tanh_gate(z)[:3], torch.tensor([[1.0], [-1.0], [0.0]]))
    assert tanh_gate(z)[3].isnan()


@pytest.mark.parametrize("shape", [(3, 8, 4, 4), (2, 6)])
def test_library_opcheck(shape: tuple[int, ...]) -> None:
    z = torch.randn(shape)
    if z.dim() == 4:
        z = z.to(memory_format=torch.channels_last)
    above = None if z.dim() == 2 else torch.randn(shape).requires_grad_()
    torch.library.opcheck(torch.ops.fastar.tanh_gate.default, (z.requires_grad_(), above))


def test_compiles_as_one_graph() -> None:
    z = torch.randn(2, 6, 3, 3, requires_grad=True)
    y = torch.compile(tanh_gate, fullgraph=True, backend="aot_eager")(z)
    torch.testing.assert_close(y, tanh_gate(z))
    torch.testing.assert_close(torch.autograd.grad(y.sum(), z), torch.autograd.grad(reference(z).sum(), z))


def test_refuses_what_it_cannot_take() -> None:
    with pytest.raises(ValueError, match=r"z: expected shape \[batch, 2 \* channels, \.\.\.\], got \[2, 3\]"):
        tanh_gate(torch.randn(2, 3))
    with pytest.raises(TypeError, match="z: expected dtype"):
        tanh_gate(torch.ones(2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"z: expected shape \[batch, 2 \* channels, height, width\], got \[2, 4\]"):
        tanh_gate(torch.randn(2, 4), torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"above: expected shape \[2, 4, 3, 3\], got \[2, 4, 3, 2\]"):
        tanh_gate(torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 2))
    with pytest.raises(TypeError, match="above: expected dtype float32, got float16"):
        tanh_gate(torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3).half())
    z = torch.randn(2, 4, requires_grad=True)
    (first,) = torch.autograd.grad(tanh_gate(z).sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="second-order"):
        torch.autograd.grad(first.sum(), z)
