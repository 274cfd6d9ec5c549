"""The NADE op against its reference in float64: forward, log-probability and every gradient, on the CPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from budget import assert_within_budget
from hypothesis import given, settings
from hypothesis import strategies as st
from nade_oracle import check_against_reference, gradients, model
from processes import SITE
from torch import Tensor

from fastar import _dispatch
from fastar.native import core, why_missing
from fastar.ops import nade, nade_log_prob
from fastar.ops.nade import ACTIVATIONS
from fastar.reference import nade as reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=["cpu", "reference"])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with _dispatch.forced("nade", request.param):
        yield request.param


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("K", [1, 2, 9, 30])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_parameters(dtype: torch.dtype, activation: str, K: int) -> None:
    inputs = model(71, 23, 45, K, dtype, binary=False)
    grad = torch.randn(71, 23, K).to(dtype)
    order = torch.randperm(23) if K != 2 else None
    check_against_reference(False, grad, inputs, activation=activation, order=order)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_log_prob(dtype: torch.dtype, activation: str) -> None:
    inputs = model(71, 23, 45, 1, dtype)
    for order in (None, torch.randperm(23)):
        check_against_reference(True, torch.randn(71), inputs, activation=activation, order=order)


@pytest.mark.skipif(why_missing() is not None, reason=str(why_missing()))
@pytest.mark.parametrize("level", core().levels_usable() if why_missing() is None else [])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_vector_level(level: str, activation: str) -> None:
    chosen = core().level()
    try:
        core().select_level(level)
        for K in (1, 5):
            inputs = model(70, 9, 37, K, torch.float32, binary=False)
            check_against_reference(False, torch.randn(70, 9, K), inputs, activation=activation)
        inputs = model(9, 37, 37, 1, torch.float32)
        check_against_reference(True, torch.randn(9), inputs, activation=activation)
    finally:
        core().select_level(chosen)


@given(
    B=st.integers(0, 70),
    D=st.integers(1, 40),
    H=st.integers(1, 70),
    K=st.integers(1, 9),
    layout=st.sampled_from(["contiguous", "transposed", "strided", "expanded"]),
    dtype=st.sampled_from(DTYPES),
    activation=st.sampled_from(ACTIVATIONS),
    ordered=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_and_stride(
    B: int, D: int, H: int, K: int, layout: str, dtype: torch.dtype, activation: str, ordered: bool, seed: int
) -> None:
    torch.manual_seed(seed)

    def laid_out(t: Tensor) -> Tensor:
        """The tensor in another layout; expanded, with its first row throughout."""
        if layout == "transposed":
            return t.mT.contiguous().mT if t.dim() > 1 else t
        if layout == "strided":
            return t.repeat_interleave(2, 0).repeat_interleave(3, -1)[::2, ..., ::3] if t.dim() > 1 else t
        if layout == "expanded" and t.shape[0] > 0:
            return t[:1].expand(t.shape)
        return t

    inputs = [laid_out(t) for t in model(B, D, H, K, dtype, binary=False)]
    grad = laid_out(torch.randn(B, D, K).to(dtype))
    order = torch.randperm(D, dtype=torch.int32) if ordered else None
    check_against_reference(False, grad, inputs, activation=activation, order=order)


def test_sum_backward_sends_an_expanded_gradient() -> None:
    inputs = model(6, 8, 5, 1, torch.float32)
    for of_log_prob in (False, True):
        check_against_reference(of_log_prob, torch.ones(()), inputs)


def test_logits_come_with_the_log_probability_where_asked_for() -> None:
    inputs = [t.requires_grad_() for t in model(6, 8, 5, 1, torch.float32)]
    log_prob, logits = nade_log_prob(*inputs, return_logits=True)
    torch.testing.assert_close(logits, reference.nade(*inputs)[..., 0])
    # Both carry gradients, which add up.
    ours = torch.autograd.grad(log_prob.sum() + logits.square().sum(), inputs)
    plain = reference.nade_log_prob(*inputs).sum() + reference.nade(*inputs).square().sum()
    for one, other in zip(ours, torch.autograd.grad(plain, inputs), strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(nade_log_prob(*inputs), log_prob)


def test_a_position_depends_on_earlier_ones_alone() -> None:
    order = torch.randperm(12)
    x, *parameters = model(3, 12, 20, 2, torch.float32, binary=False)
    x.requires_grad_()
    out = nade(x, *parameters, order=order)
    for k, d in enumerate(order.tolist()):
        (seen,) = torch.autograd.grad(out[:, d].sum(), x, retain_graph=True)
        assert (seen[:, order[:k]] != 0).all()
        assert (seen[:, order[k:]] == 0).all()


def test_probabilities_sum_to_one() -> None:
    bits = torch.tensor([[i >> j & 1 for j in range(8)] for i in range(256)]).float()
    _, *parameters = model(1, 8, 20, 1, torch.float32)
    total = nade_log_prob(bits, *parameters, order=torch.randperm(8)).double().exp().sum()
    assert abs(total.item() - 1) < 1e-5


def test_extreme_states_give_finite_results() -> None:
    x, weight, *others = model(9, 40, 33, 1, torch.float32)
    inputs = [t.requires_grad_() for t in (x, weight * 1000, *others)]
    for activation in ("sigmoid", "tanh"):
        total = nade_log_prob(*inputs, activation=activation)
        assert total.isfinite().all()
        assert all(g.isfinite().all() for g in torch.autograd.grad(total.sum(), inputs))


def test_rows_and_threads_do_not_matter() -> None:
    """Bit for bit: a row's result does not depend on its neighbours, nor a gradient on the number of threads."""
    before = torch.get_num_threads()
    for K in (1, 7):
        inputs = model(150, 30, 70, K, torch.float32)
        grad = torch.randn(150, 30, K)
        results = []
        try:
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                results.append(gradients(nade, grad, inputs))
        finally:
            torch.set_num_threads(before)
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
        parts = [nade(rows, *inputs[1:]) for rows in inputs[0].split([1, 7, 100, 42])]
        assert torch.equal(torch.cat(parts), results[0][0])


def test_frozen_tensors_get_no_gradient() -> None:
    x, *parameters = model(6, 8, 5, 1, torch.float32)
    parameters[1].requires_grad_()
    nade_log_prob(x, *parameters).sum().backward()
    assert [t.grad is None for t in (x, *parameters)] == [True, True, False, True, True]


@pytest.mark.parametrize("K", [1, 3])
def test_opcheck(K: int) -> None:
    inputs = model(5, 7, 6, K, torch.float32)
    order = torch.randperm(7)
    log_prob = K == 1
    for learn in (False, True):
        arguments = [t.clone().requires_grad_(learn) for t in inputs]
        torch.library.opcheck(torch.ops.fastar.nade.default, (*arguments, order, "tanh", True, log_prob))
    torch.library.opcheck(
        torch.ops.fastar.nade_backward.default,
        (torch.randn(5, 7, K), None, None, *inputs[:4], order, "sigmoid", True),
    )
    if log_prob:
        torch.library.opcheck(torch.ops.fastar.nade.default, (*inputs, None, "relu", False, True))
        torch.library.opcheck(
            torch.ops.fastar.nade_backward.default,
            (None, torch.randn(5), torch.randn(5, 7, 1), *inputs[:4], None, "sigmoid", False),
        )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck_of_the_reference(activation: str) -> None:
    order = torch.randperm(4)
    inputs = [t.requires_grad_() for t in model(3, 4, 5, 2, torch.float64, binary=False)]
    for run in (reference.nade, nade):
        assert torch.autograd.gradcheck(lambda *t, f=run: f(*t, activation=activation, order=order), inputs)
    x, *parameters = model(3, 4, 5, 1, torch.float64)
    inputs = [t.requires_grad_() for t in (x * 0.6 + 0.2, *parameters)]
    for run in (reference.nade_log_prob, nade_log_prob):
        assert torch.autograd.gradcheck(lambda *t, f=run: f(*t, activation=activation, order=order), inputs)


def test_compile_fullgraph() -> None:
    order = torch.randperm(8)

    def both(x: Tensor, *parameters: Tensor) -> Tensor:
        total = nade_log_prob(x.sigmoid(), *parameters, order=order)
        return total + nade(x, *parameters, activation="tanh").sum((1, 2))

    inputs = model(5, 8, 6, 1, torch.float32, binary=False)
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    ours, plain = gradients(compiled, torch.randn(5), inputs), gradients(both, torch.randn(5), inputs)
    torch.testing.assert_close(ours[0], plain[0])
    grad = torch.randn(5)
    for one, other in zip(gradients(compiled, grad, inputs), gradients(both, grad, inputs), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    inputs = model(5, 8, 6, 1, torch.float32)
    inputs[1].requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        out, total = nade(*inputs), nade_log_prob(*inputs)
    assert out.dtype == dtype
    assert total.dtype == torch.float32
    torch.testing.assert_close(out, nade(*(t.to(dtype) for t in inputs)))
    (gradient,) = torch.autograd.grad(total.sum(), inputs[1])
    assert gradient.dtype == torch.float32


def test_second_order_and_vmap_are_refused() -> None:
    inputs = [t.requires_grad_() for t in model(3, 4, 5, 1, torch.float32)]
    (gradient,) = torch.autograd.grad(nade(*inputs).square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="second-order gradients are not available"):
        gradient.sum().backward()
    with pytest.raises(RuntimeError, match="vmap is not available"):
        torch.vmap(lambda one: nade(one, *inputs[1:]))(torch.randn(2, 3, 4))


def test_training_follows_the_reference() -> None:
    """200 steps of Adam on fixed data: the fast op's loss curve is the reference's."""
    data = (torch.rand(64, 1) < torch.linspace(0.1, 0.9, 24)).float().roll(3, 1)
    data[:, 12:] = data[:, :12]
    _, *first = model(1, 24, 32, 1, torch.float32)

    def curve(dtype: torch.dtype, log_prob: Callable[..., Tensor]) -> Tensor:
        parameters = [t.to(dtype).clone().requires_grad_() for t in first]
        optimiser = torch.optim.Adam(parameters, lr=1e-2)
        losses = []
        for _ in range(200):
            optimiser.zero_grad()
            loss = -log_prob(data.to(dtype), *parameters).mean()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    ours = curve(torch.float32, nade_log_prob)
    plain = curve(torch.float32, reference.nade_log_prob)
    exact = curve(torch.float64, reference.nade_log_prob)
    assert exact[-1] < 0.6 * exact[0]
    assert_within_budget(ours, plain, exact, what="loss curve")


MEMORY = """
import sys, threading, time, torch
from fastar.ops import nade, nade_log_prob
B, D, H, K, threads = (int(a) for a in sys.argv[1:])
torch.set_num_threads(threads)
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
def leaves(B, D, H):
    shapes = (B, D), (H, D), (D, K, H), (H,), (D, K)
    x, *parameters = (torch.rand(shape) for shape in shapes)
    return [x.round_(), *(t.requires_grad_() for t in parameters)]
def step(inputs):
    total = nade_log_prob(*inputs).sum() if K == 1 else nade(*inputs).sum()
    torch.autograd.grad(total, inputs[1:])
step(leaves(16, 8, 8))
inputs = leaves(B, D, H)
before, peak, stop = resident(), 0, False
def watch():
    global peak
    while not stop:
        peak = max(peak, resident())
        time.sleep(0.0005)
thread = threading.Thread(target=watch)
thread.start()
step(inputs)
peak = max(peak, resident())
stop = True
thread.join()
print(peak - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.skipif(why_missing() is not None, reason=str(why_missing()))
@pytest.mark.parametrize("K", [1, 4])
def test_memory(K: int) -> None:
    """Forward and backward stay below 1/8 of a tensor [B, D, H], gradients of the parameters apart."""
    B, D, H = 512, 600, 256
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *map(str, (B, D, H, K, 2))],
        cwd=SITE,
        capture_output=True,
        text=True,
        check=True,
    )
    parameters = H * D + D * K * H + H + D * K
    # Each gradient, and the packed copy of W and of its gradient.
    allowed = 4 * (B * D * H / 8 + parameters + 2 * (H + 32) * D)
    assert int(done.stdout) < allowed, f"{int(done.stdout) / 2**20:.1f} MiB of {allowed / 2**20:.1f}"


def test_walking_back_many_positions() -> None:
    """The backward subtracts what the forward has added, 3072 times: its gradients stay within the budget."""
    inputs = model(16, 3072, 24, 1, torch.float32)
    check_against_reference(True, torch.randn(16), inputs)


@pytest.mark.slow
def test_largest_shape_against_float64() -> None:
    inputs = model(128, 784, 500, 1, torch.float32)
    check_against_reference(True, torch.randn(128), inputs)


X, WEIGHT, READOUT, HIDDEN_BIAS, BIAS = (
    torch.zeros(3, 4),
    torch.randn(5, 4),
    torch.randn(4, 1, 5),
    *map(torch.randn, (5, (4, 1))),
)


def call(run: Callable[..., Any] = nade, **changed: Any) -> Callable[[], Any]:
    named = {"x": X, "weight": WEIGHT, "readout": READOUT, "hidden_bias": HIDDEN_BIAS, "bias": BIAS}
    return lambda: run(**{**named, **changed})


BAD: list[tuple[str, type[Exception], str, Callable[[], Any]]] = [
    ("integer x", TypeError, "x: expected dtype", call(x=X.long())),
    ("x no tensor", TypeError, "x: expected a tensor, got list", call(x=[0.0])),
    ("width of x", ValueError, r"x: expected shape \[B, 4\], got \[3, 5\]", call(x=torch.zeros(3, 5))),
    ("weight dtype", TypeError, "weight: expected the dtype of x", call(weight=WEIGHT.half())),
    ("weight 1-D", ValueError, r"weight: expected shape \[H, D\]", call(weight=WEIGHT[0])),
    ("weight transposed", ValueError, r"readout: expected shape \[5, K, 4\]", call(weight=WEIGHT.T)),
    ("weight device", ValueError, "weight: expected the device of x", call(weight=WEIGHT.to("meta"))),
    ("readout 2-D", ValueError, r"readout: expected shape \[4, K, 5\]", call(readout=READOUT[:, 0])),
    ("no parameters", ValueError, "readout: expected at least one", call(readout=READOUT[:, :0], bias=BIAS[:, :0])),
    ("no hidden units", ValueError, "weight: expected at least one", call(
        weight=WEIGHT[:0], readout=READOUT[..., :0], hidden_bias=HIDDEN_BIAS[:0])),
    ("hidden_bias", ValueError, r"hidden_bias: expected shape \[5\]", call(hidden_bias=torch.zeros(4))),
    ("bias", ValueError, r"bias: expected shape \[4, 1\]", call(bias=torch.zeros(4))),
    ("activation", ValueError, "activation: expected one of sigmoid, relu, tanh, got 'gelu'", call(activation="gelu")),
    ("order dtype", TypeError, "order: expected dtype", call(order=torch.zeros(4))),
    ("order shape", ValueError, r"order: expected shape \[4\]", call(order=torch.arange(5))),
    ("order device", ValueError, "order: expected the device of x", call(order=torch.arange(4, device="meta"))),
    ("order repeats", ValueError, "order: expected a permutation of 0..3", call(order=torch.tensor([0, 1, 2, 2]))),
    ("order outside", ValueError, "order: expected a permutation of 0..3", call(order=torch.tensor([0, 1, 2, 9]))),
    ("many parameters", ValueError, "readout: expected K = 1", call(
        nade_log_prob, readout=torch.randn(4, 2, 5), bias=torch.randn(4, 2))),
    ("no probability", ValueError, r"x: expected values in \[0, 1\]", call(nade_log_prob, x=X - 1)),
    ("one NaN", ValueError, r"x: expected values in \[0, 1\]", call(nade_log_prob, x=X / 0)),
]  # fmt: skip


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize(("error", "message", "run"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_named(error: type[Exception], message: str, run: Callable[[], Any]) -> None:
    with pytest.raises(error, match=message):
        run()
