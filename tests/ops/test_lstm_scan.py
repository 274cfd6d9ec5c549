"""The LSTM scan against its reference in float64: rows, diagonals and antidiagonals, forward and every gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from budget import assert_within_budget
from hypothesis import given, settings
from hypothesis import strategies as st
from lstm_scan_oracle import check_against_reference, fast, gradients, model, reference
from torch import Tensor

from fastar import _dispatch
from fastar.native import core, why_missing
from fastar.ops import lstm_scan
from fastar.reference.lstm_scan import ALONG, skew, unskew

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KERNELS = [("rows", 3), ("rows", 1), ("rows", 5), ("diagonals", 2), ("antidiagonals", 2)]


@pytest.fixture(params=["cpu", "reference"])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with _dispatch.forced("lstm_scan", request.param):
        yield request.param


def grads_for(B: int, H: int, rows: int, columns: int, dtype: torch.dtype) -> list[Tensor]:
    """Gradients of h and of the last state."""
    return [torch.randn(shape).to(dtype) for shape in ((B, H, rows, columns), (B, H, columns), (B, H, columns))]


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize(("along", "k"), KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scans(dtype: torch.dtype, along: str, k: int) -> None:
    tensors = model(3, 19, 6, 9, k, dtype, with_state=along == "rows" and k > 1)
    check_against_reference(grads_for(3, 19, 6, 9, dtype), tensors, along)


@pytest.mark.skipif(why_missing() is not None, reason=str(why_missing()))
@pytest.mark.parametrize("level", core().levels_usable() if why_missing() is None else [])
def test_every_vector_level(level: str) -> None:
    chosen = core().level()
    try:
        core().select_level(level)
        for along, k in KERNELS:
            tensors = model(2, 21, 7, 4, k, torch.float32, with_state=along == "rows")
            check_against_reference(grads_for(2, 21, 7, 4, torch.float32), tensors, along)
    finally:
        core().select_level(chosen)


@given(
    B=st.integers(0, 9),
    H=st.integers(1, 40),
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    kernel=st.sampled_from(KERNELS),
    layout=st.sampled_from(["contiguous", "channels last", "strided", "expanded"]),
    with_state=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40, deadline=None)
def test_any_shape_and_stride(
    B: int, H: int, rows: int, columns: int, kernel: tuple[str, int], layout: str, with_state: bool,
    dtype: torch.dtype, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    along, k = kernel

    def laid_out(t: Tensor) -> Tensor:
        if layout == "channels last":
            return t.movedim(1, -1).contiguous().movedim(-1, 1)
        if layout == "strided":
            return t.repeat_interleave(2, 0).repeat_interleave(3, -1)[::2, ..., ::3]
        return t[:, :, :1].expand(t.shape) if layout == "expanded" else t

    tensors = model(B, H, rows, columns, k, dtype, with_state=with_state and along == "rows")
    grads = grads_for(B, H, rows, columns, dtype)
    check_against_reference([laid_out(g) for g in grads], [laid_out(t) for t in tensors], along)


def test_sum_backward_sends_an_expanded_gradient() -> None:
    for along, k in KERNELS:
        check_against_reference([torch.ones(())] * 3, model(2, 5, 4, 6, k, torch.float32), along)


@pytest.mark.parametrize(("along", "k"), KERNELS)
def test_only_one_of_the_results_is_used(along: str, k: int) -> None:
    tensors = [t.requires_grad_() for t in model(2, 5, 4, 6, k, torch.float64)]
    for n in range(len(reference(*tensors, along=along))):
        ours = torch.autograd.grad(fast(*tensors, along=along)[n].square().sum(), tensors)
        plain = torch.autograd.grad(reference(*tensors, along=along)[n].square().sum(), tensors)
        for one, other in zip(ours, plain, strict=True):
            torch.testing.assert_close(one, other)


def test_skewing_and_back() -> None:
    image = torch.arange(1.0, 7).view(1, 1, 2, 3)
    # Steps from left to right, a row of the image in each lane.
    assert skew(image, "diagonals")[0, 0].T.tolist() == [[1, 2, 3, 0], [0, 4, 5, 6]]
    assert skew(image, "antidiagonals")[0, 0].T.tolist() == [[3, 2, 1, 0], [0, 6, 5, 4]]
    for along in ALONG:
        assert torch.equal(unskew(skew(image, along), along), image)


@pytest.mark.parametrize(("along", "k"), KERNELS)
def test_what_a_pixel_sees(along: str, k: int) -> None:
    x, weight = model(1, 3, 5, 6, k, torch.float64)
    h = lstm_scan(x.requires_grad_(), weight, along=along)
    for row, column in ((0, 0), (2, 3), (4, 5)):
        (grad,) = torch.autograd.grad(h[0, :, row, column].sum(), x, retain_graph=True)
        seen = (grad[0] != 0).any(0)
        for r in range(5):
            for c in range(6):
                up, aside = row - r, c - column
                if along == "rows":
                    expected = up >= 0 and abs(aside) <= up * (k // 2)
                else:
                    expected = up >= 0 and (aside <= 0 if along == "diagonals" else aside >= 0)
                assert seen[r, c] == expected, (row, column, r, c)


def test_a_state_carries_on() -> None:
    x, weight, *state = model(2, 5, 7, 6, 3, torch.float32, with_state=True)
    whole, last = lstm_scan(x, weight, state=(state[0], state[1]), return_state=True)
    first, between = lstm_scan(x[:, :, :3], weight, state=(state[0], state[1]), return_state=True)
    second, end = lstm_scan(x[:, :, 3:], weight, state=between, return_state=True)
    torch.testing.assert_close(torch.cat([first, second], 2), whole)
    for one, other in zip(end, last, strict=True):
        torch.testing.assert_close(one, other)


def test_images_and_threads_do_not_matter() -> None:
    """Bit for bit: an image's result does not depend on its neighbours, nor on the number of threads."""
    before = torch.get_num_threads()
    for along, k in KERNELS:
        x, weight = model(40, 20, 7, 9, k, torch.float32)
        results = []
        try:
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                results.append(gradients(fast, [torch.ones(())] * 3, [x, weight], along))
        finally:
            torch.set_num_threads(before)
        for name in ("h", "dx"):
            assert all(torch.equal(results[0][name], one[name]) for one in results[1:])
        parts = [lstm_scan(some, weight, along=along) for some in x.split([1, 7, 30, 2])]
        assert torch.equal(torch.cat(parts), results[0]["h"])


def test_extreme_gates_give_finite_results() -> None:
    for along, k in KERNELS:
        x, weight = model(2, 9, 6, 6, k, torch.float32)
        found = gradients(fast, [torch.ones(())] * 3, [x * 1e4, weight * 100], along)
        assert all(t.isfinite().all() for t in found.values())


def test_frozen_tensors_get_no_gradient() -> None:
    x, weight, h0, c0 = model(2, 3, 4, 5, 3, torch.float32, with_state=True)
    weight.requires_grad_()
    lstm_scan(x, weight, state=(h0, c0)).sum().backward()
    assert [t.grad is None for t in (x, weight, h0, c0)] == [True, False, True, True]


@pytest.mark.parametrize(("along", "k"), KERNELS[:1] + KERNELS[3:])
def test_opcheck(along: str, k: int) -> None:
    tensors = model(2, 3, 4, 5, k, torch.float32, with_state=along == "rows")
    for learn in (False, True):
        leaves = [t.clone().requires_grad_(learn) for t in tensors] + [None] * (4 - len(tensors))
        torch.library.opcheck(torch.ops.fastar.lstm_scan.default, (*leaves, along, learn))
    x, weight, *state = tensors
    kept = torch.ops.fastar.lstm_scan(x, weight, *(state or [None, None]), along, True)
    grads = torch.randn_like(kept[0]), torch.randn_like(kept[1]) if along == "rows" else None
    torch.library.opcheck(
        torch.ops.fastar.lstm_scan_backward.default,
        (*grads, kept[0], kept[2], kept[3], weight, *(state or [None, None]), along, True),
    )


@pytest.mark.parametrize(("along", "k"), KERNELS)
def test_gradcheck(along: str, k: int) -> None:
    tensors = [t.requires_grad_() for t in model(1, 2, 3, 3, k, torch.float64, with_state=along == "rows")]
    for run in (reference, fast):
        assert torch.autograd.gradcheck(lambda *t, f=run: f(*t, along=along), tensors)


def test_compile_fullgraph() -> None:
    def both(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        h, state = lstm_scan(x, weight, return_state=True)
        return h + lstm_scan(x, weight[..., :2], along="diagonals"), *state

    tensors, grads = model(2, 3, 4, 5, 3, torch.float32), grads_for(2, 3, 4, 5, torch.float32)
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")

    def run(f: Callable[..., Any]) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in tensors]
        results = f(*leaves)
        return [*results, *torch.autograd.grad(results, leaves, grads)]

    for one, other in zip(run(compiled), run(both), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    tensors = model(2, 3, 4, 5, 3, torch.float32, with_state=True)
    tensors[1].requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        results = fast(*tensors, along="rows")
    assert {t.dtype for t in results} == {dtype}
    for one, other in zip(results, fast(*(t.to(dtype) for t in tensors), along="rows"), strict=True):
        torch.testing.assert_close(one, other)
    (gradient,) = torch.autograd.grad(results[0].sum(), tensors[1])
    assert gradient.dtype == torch.float32


def test_second_order_and_vmap_are_refused() -> None:
    x, weight = (t.requires_grad_() for t in model(1, 2, 3, 3, 3, torch.float32))
    (gradient,) = torch.autograd.grad(lstm_scan(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second-order gradients are not available"):
        gradient.sum().backward()
    with pytest.raises(RuntimeError, match="vmap is not available"):
        torch.vmap(lambda one: lstm_scan(one, weight))(torch.randn(2, 1, 8, 3, 3))


@pytest.mark.parametrize(("along", "k"), [("rows", 3), ("diagonals", 2)])
def test_training_follows_the_reference(along: str, k: int) -> None:
    """200 steps of Adam on fixed data: the fast op's loss curve is the reference's."""
    torch.manual_seed(0)
    image = torch.randn(4, 2, 6, 6)
    # What lies two rows above, or a row above and a column beside.
    target = image.roll(2, 2) if along == "rows" else image.roll((1, 1), (2, 3))
    first = [torch.randn(2, 24) * 0.5, model(1, 6, 1, 1, k, torch.float32)[1], torch.randn(6, 2) * 0.5]

    def curve(dtype: torch.dtype, run: Callable[..., tuple[Tensor, ...]]) -> Tensor:
        weights = [w.to(dtype).clone().requires_grad_() for w in first]
        optimiser = torch.optim.Adam(weights, lr=2e-2)
        losses = []
        for _ in range(200):
            optimiser.zero_grad()
            h = run(torch.einsum("birc,ig->bgrc", image.to(dtype), weights[0]), weights[1], along=along)[0]
            y = torch.einsum("bhrc,ho->borc", h, weights[2])
            loss = (y - target.to(dtype))[:, :, 2:, 1:].square().mean()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    exact = curve(torch.float64, reference)
    assert exact[-1] < 0.7 * exact[0]
    assert_within_budget(curve(torch.float32, fast), curve(torch.float32, reference), exact, what="loss curve")


@pytest.mark.slow
@pytest.mark.parametrize(("along", "k"), [("rows", 3), ("diagonals", 2)])
def test_largest_shape_against_float64(along: str, k: int) -> None:
    tensors = model(16, 64, 32, 32, k, torch.float32)
    check_against_reference(grads_for(16, 64, 32, 32, torch.float32), tensors, along)


X, WEIGHT, STATE = torch.randn(2, 12, 4, 5), torch.randn(12, 3, 3), torch.randn(2, 3, 5)


def call(**changed: Any) -> Callable[[], Any]:
    return lambda: lstm_scan(**{"x_gates": X, "weight": WEIGHT, **changed})


BAD: list[tuple[str, type[Exception], str, Callable[[], Any]]] = [
    ("no tensor", TypeError, "x_gates: expected a tensor, got list", call(x_gates=[0.0])),
    ("integer", TypeError, "weight: expected dtype", call(weight=WEIGHT.long())),
    ("along", ValueError, "along: expected one of rows, diagonals, antidiagonals, got 'up'", call(along="up")),
    ("weight 2-D", ValueError, r"weight: expected shape \[4 H, H, k\]", call(weight=WEIGHT[0])),
    ("three gates", ValueError, r"weight: expected shape \[4 H, H, k\]", call(weight=WEIGHT[:9])),
    ("even kernel", ValueError, "weight: expected an odd kernel along rows", call(weight=WEIGHT[..., :2])),
    ("diagonal kernel", ValueError, "weight: expected a kernel of 2 along diagonals", call(along="diagonals")),
    ("gates", ValueError, r"x_gates: expected shape \[B, 12, rows, columns\]", call(x_gates=X[:, :8])),
    ("no rows", ValueError, "x_gates: expected at least one row", call(x_gates=X[:, :, :0])),
    ("dtypes", TypeError, "weight: expected the dtype of x_gates", call(weight=WEIGHT.half())),
    ("devices", ValueError, "weight: expected the device of x_gates", call(weight=WEIGHT.to("meta"))),
    ("state pair", ValueError, r"state: expected a pair \(h, c\)", call(state=STATE)),
    ("state type", TypeError, "state c: expected a tensor", call(state=(STATE, 0))),
    ("state length", ValueError, r"state h: expected shape \[2, 3, 5\]", call(state=(STATE[..., :4], STATE))),
    ("state batch", ValueError, r"state c: expected shape \[2, 3, 5\]", call(state=(STATE, STATE[:1]))),
    ("state dtype", TypeError, "state h: expected the dtype of x_gates", call(state=(STATE.double(), STATE))),
    ("state on diagonals", ValueError, "state: expected none along diagonals", call(
        weight=WEIGHT[..., :2], along="diagonals", state=(STATE, STATE))),
    ("state from diagonals", ValueError, "state: expected none along diagonals", call(
        weight=WEIGHT[..., :2], along="diagonals", return_state=True)),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "run"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_named(error: type[Exception], message: str, run: Callable[[], Any]) -> None:
    with pytest.raises(error, match=message):
        run()
