"""NADE's Triton kernels in the interpreter, against the reference in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nade_oracle import check_against_reference, gradients, model

from fastar import _dispatch
from fastar.kernels import _launch
from fastar.kernels import nade as kernels
from fastar.ops import nade, nade_log_prob
from fastar.ops.nade import ACTIVATIONS

# The interpreter gets bfloat16 wrong.
DTYPES = [torch.float32, torch.float16]


@pytest.fixture(autouse=True)
def _on_triton() -> Iterator[None]:
    with _dispatch.forced("nade", "triton"):
        yield


@pytest.mark.parametrize("K", [1, 2, 9])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_parameters(dtype: torch.dtype, activation: str, K: int) -> None:
    inputs = model(9, 11, 21, K, dtype, binary=False)
    order = torch.randperm(11) if K != 2 else None
    check_against_reference(False, torch.randn(9, 11, K).to(dtype), inputs, activation=activation, order=order)


@pytest.mark.parametrize("H", [11, 21])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_log_prob(dtype: torch.dtype, activation: str, H: int) -> None:
    # One block of hidden units, where the log-probability is fused, and two.
    order = torch.randperm(11) if H == 11 else None
    check_against_reference(True, torch.randn(9), model(9, 11, H, 1, dtype), activation=activation, order=order)


@given(
    B=st.integers(0, 9),
    D=st.integers(1, 12),
    H=st.integers(1, 20),
    K=st.integers(1, 3),
    layout=st.sampled_from(["contiguous", "transposed", "expanded"]),
    ordered=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=10, deadline=None)
def test_any_shape_and_stride(B: int, D: int, H: int, K: int, layout: str, ordered: bool, seed: int) -> None:
    torch.manual_seed(seed)
    inputs = model(B, D, H, K, torch.float32, binary=False)
    grad = torch.randn(B, D, K)
    if layout == "transposed":
        inputs = [t.mT.contiguous().mT if t.dim() > 1 else t for t in inputs]
        grad = grad.transpose(0, 1).contiguous().transpose(0, 1)
    elif layout == "expanded":
        grad = torch.randn(())
    check_against_reference(False, grad, inputs, order=torch.randperm(D) if ordered else None)


@pytest.mark.parametrize(("B", "K"), [(17, 1), (5, 3)])
def test_tiles_of_the_cards(B: int, K: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_blocks", lambda x, H, rows, columns, least: (rows, columns, least))
    inputs = model(B, 66, 140, K, torch.float32)
    check_against_reference(K == 1, torch.randn(B) if K == 1 else torch.randn(B, 66, K), inputs)


def test_a_large_batch_goes_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_BATCH_PART", 8)
    check_against_reference(False, torch.randn(11, 5, 2), model(11, 5, 11, 2, torch.float32))


def test_log_prob_alone_is_the_same() -> None:
    for H in (11, 21):
        inputs = model(5, 9, H, 1, torch.float32)
        with_logits, logits = nade_log_prob(*inputs, return_logits=True)
        assert torch.equal(nade_log_prob(*inputs), with_logits)
        assert torch.equal(logits, nade(*inputs)[..., 0])


def test_deterministic() -> None:
    inputs, grad = model(9, 9, 20, 1, torch.float32), torch.randn(9, 9, 1)
    first, second = gradients(nade, grad, inputs), gradients(nade, grad, inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_memory_beside_inputs_and_results() -> None:
    """Counted on the launches as a card gets them: what each is handed, apart from inputs and gradients."""
    for B, D, H, K in ((1024, 784, 500, 1), (1024, 3072, 512, 1), (1024, 784, 500, 9)):
        sizes = (B, D), (H, D), (D, K, H), (H,), (D, K)
        x, weight, readout, hidden_bias, bias = (torch.empty(size, device="meta") for size in sizes)
        with _launch.recording(_launch.SM90) as launches:
            kernels.forward(x, weight, readout, hidden_bias, bias, None, "sigmoid", True, K == 1)
            grad = torch.empty(B, D, K, device="meta")
            kernels.backward(grad, None, None, x, weight, readout, hidden_bias, None, "sigmoid", False)
        assert launches
        for launch in launches:
            tensors = [t for t in launch.arguments.values() if isinstance(t, torch.Tensor)]
            workspace = sum(t.numel() for t in tensors if t.numel() > max(B * D * K, D * K * H))
            assert 0 < workspace <= B * D * H / 8, f"{launch.kernel.__name__}: {workspace / (B * D * H):.3f} of B D H"
