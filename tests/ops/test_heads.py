"""Heads against their references in float64 and against mpmath: forward and every gradient, on each implementation."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from budget import assert_within_budget
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastar import _dispatch
from fastar.native import core
from fastar.ops import (
    bernoulli_log_prob,
    categorical_log_prob,
    gaussian_mixture_log_prob,
    laplace_mixture_log_prob,
    logistic_mixture_log_prob,
)
from fastar.reference import heads as reference
from fastar.reference.heads import Head

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
IMPLEMENTATIONS = ["cpu", "reference"]
CONTINUOUS = {"gaussian": gaussian_mixture_log_prob, "laplace": laplace_mixture_log_prob}
KINDS = ["bernoulli", "bernoulli summed", "categorical", "gaussian", "laplace", "logistic", "logistic colours"]


def run(head: Head, params: Tensor, x: Tensor) -> Tensor:
    """The public function of a head."""
    if head.kind == "bernoulli":
        return bernoulli_log_prob(params, x, event_dims=head.event_dims)
    if head.kind == "categorical":
        return categorical_log_prob(params, x, dim=head.dim)
    if head.kind == "logistic":
        floor = None if head.min_log_scale == -math.inf else head.min_log_scale
        return logistic_mixture_log_prob(
            params, x, dim=head.dim, levels=head.levels, min_log_scale=floor, branch=head.branch
        )
    return CONTINUOUS[head.kind](params, x, dim=head.dim)


def logistic_params(shape: tuple[int, ...], channels: int, dim: int, generator: torch.Generator) -> Tensor:
    """Means within the data, log-scales from the floor to wide; `shape` has the number of components at `dim`."""
    pairs = channels * (channels - 1) // 2
    draw = [torch.randn(shape, generator=generator) for _ in range(1 + pairs)]
    means = [torch.rand(shape, generator=generator) * 2 - 1 for _ in range(channels)]
    log_scales = [torch.rand(shape, generator=generator) * 9 - 8 for _ in range(channels)]
    return torch.cat([draw[0], *means, *log_scales, *draw[1:]], dim)


def example(
    kind: str, before: tuple[int, ...], after: tuple[int, ...], size: int, generator: torch.Generator
) -> tuple[Head, Tensor, Tensor]:
    """A head, its parameters (`size` levels or components between the positions `before` and `after`), and data."""
    positions, dim = (*before, *after), len(before)
    shape = (*before, size, *after)
    if kind.startswith("bernoulli"):
        logits = 3 * torch.randn(positions, generator=generator)
        x = torch.randint(0, 2, positions, generator=generator)
        return Head("bernoulli", event_dims=min(2, len(positions)) if "summed" in kind else 0), logits, x
    if kind == "categorical":
        x = torch.randint(0, size, positions, generator=generator)
        return Head("categorical", dim), 3 * torch.randn(shape, generator=generator), x
    if kind in CONTINUOUS:
        parts = [torch.randn(shape, generator=generator) for _ in range(3)]
        return Head(kind, dim), torch.cat(parts, dim), torch.randn(positions, generator=generator)
    channels = 3 if "colours" in kind else 1
    x = torch.randint(0, 256, (*before, channels, *after), generator=generator)
    # The ends of the range are cases of their own.
    x = torch.where(torch.rand(x.shape, generator=generator) < 0.2, 255 * (x % 2), x)
    x = x if channels > 1 else x.squeeze(dim)
    head = Head("logistic", dim, min_log_scale=-7.0, branch=1e-5)
    return head, logistic_params(shape, channels, dim, generator), x


def gradients(function: Callable[..., Tensor], params: Tensor, x: Tensor, grad: Tensor) -> list[Tensor]:
    """log p and the gradients of the parameters and, where it has one, of x."""
    leaves = [params.detach().requires_grad_()]
    leaves += [x.detach().requires_grad_()] if x.requires_grad else []
    y = function(leaves[0], leaves[-1] if x.requires_grad else x)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype).expand_as(y))]


def check_against_reference(head: Head, params: Tensor, x: Tensor, grad: Tensor) -> None:
    if head.kind in CONTINUOUS:
        x = x.detach().requires_grad_()
    doubled = x.detach().double().requires_grad_(x.requires_grad) if x.is_floating_point() else x
    ours = gradients(lambda p, x: run(head, p, x), params, x, grad)
    same = gradients(lambda p, x: reference.log_prob(p, x, head), params, x, grad)
    exact = gradients(lambda p, x: reference.log_prob(p, x, head), params.double(), doubled, grad.double())
    for what, a, b, c in zip(["log p", "dparams", "dx"], ours, same, exact, strict=False):
        assert_within_budget(a, b, c, what=f"{head.kind} {what}")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_and_gradients(implementation: str, layout: str, kind: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(len(kind))
    before, after = ((29, 17), ()) if layout == "rows" else ((5,), (9, 11))
    size = 257 if kind == "categorical" else 10
    head, params, x = example(kind, before, after, size, generator)
    params = params.to(dtype)
    grad = torch.randn(head.positions(params.shape), generator=generator)
    with _dispatch.forced("heads", implementation):
        check_against_reference(head, params, x.to(dtype) if kind in CONTINUOUS else x, grad)


@given(
    kind=st.sampled_from(KINDS),
    before=st.lists(st.integers(0, 5), max_size=2),
    after=st.lists(st.integers(0, 7), max_size=2),
    size=st.integers(1, 40),
    layout=st.sampled_from(["contiguous", "transposed", "sliced", "expanded", "channels last"]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=120, deadline=None)
def test_any_shape_and_stride(
    kind: str, before: list[int], after: list[int], size: int, layout: str, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    head, params, x = example(kind, tuple(before), tuple(after), size, generator)
    params = params.to(dtype)
    if layout == "transposed":
        params = params.mT.contiguous().mT if params.dim() > 1 else params
    elif layout == "sliced":
        params = torch.stack([params, params], -1)[..., 0]
    elif layout == "expanded" and params.dim() and params.shape[0]:
        params = params[:1].expand(params.shape)
    elif layout == "channels last" and head.kind != "bernoulli":
        params = params.movedim(head.dim, -1).contiguous().movedim(-1, head.dim)
    shape = head.positions(params.shape)
    grad = torch.randn((), generator=generator).expand(shape) if layout == "expanded" else torch.randn(shape)
    check_against_reference(head, params, x, grad)


@pytest.mark.parametrize("size", [1, 4])
def test_gradient_where_parameters_are_expanded(size: int) -> None:
    """Its positions lie evenly in memory where those of the parameters do not."""
    row = torch.randn(1, 3, size).mT
    head = Head("categorical", 1)
    x = torch.randint(0, size, (5, 3))
    check_against_reference(head, row.expand(5, size, 3), x, torch.randn(5, 3))


@pytest.mark.parametrize("level", core().levels_usable())
def test_every_vector_level(level: str) -> None:
    generator = torch.Generator().manual_seed(5)
    before = core().level()
    core().select_level(level)
    try:
        for kind, (outer, inner), dtype in itertools.product(KINDS, [((45,), ()), ((2,), (3, 13))], DTYPES):
            head, params, x = example(kind, outer, inner, 19, generator)
            check_against_reference(
                head, params.to(dtype), x, torch.randn(head.positions(params.shape), generator=generator)
            )
    finally:
        core().select_level(before)


@pytest.mark.parametrize("options", [{"branch": 0.0}, {"min_log_scale": None}, {"levels": 32}, {"branch": 0.05}])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_options_of_the_logistic(implementation: str, options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(6)
    defaults = {"levels": 256, "min_log_scale": -7.0, "branch": 1e-5, **options}
    floor = defaults.pop("min_log_scale")
    head = Head("logistic", 1, min_log_scale=-math.inf if floor is None else floor, **defaults)
    params = logistic_params((7, 10, 90), 3, 1, generator)
    x = torch.randint(0, head.levels, (7, 3, 90), generator=generator)
    with _dispatch.forced("heads", implementation):
        check_against_reference(head, params, x, torch.randn(7, 90, generator=generator))


def test_levels_as_integers_or_as_values() -> None:
    generator = torch.Generator().manual_seed(7)
    head, params, x = example("logistic colours", (4,), (8, 8), 10, generator)
    by_level = run(head, params, x)
    torch.testing.assert_close(run(head, params, x.to(torch.uint8)), by_level, rtol=0, atol=0)
    torch.testing.assert_close(run(head, params, x / 127.5 - 1), by_level, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64, torch.float32])
def test_dtypes_of_bernoulli_data(dtype: torch.dtype) -> None:
    logits, x = torch.randn(6, 333), torch.randint(0, 2, (6, 333))
    expected = -F.binary_cross_entropy_with_logits(logits, x.float(), reduction="none").sum(1)
    torch.testing.assert_close(bernoulli_log_prob(logits, x.to(dtype), event_dims=1), expected)


# What the field computes today, in its own words.


def test_categorical_is_cross_entropy() -> None:
    logits, x = torch.randn(6, 256, 5, 7), torch.randint(0, 256, (6, 5, 7))
    expected = -F.cross_entropy(logits, x, reduction="none")
    torch.testing.assert_close(categorical_log_prob(logits, x, dim=1), expected)
    for narrow in (torch.uint8, torch.int32):
        torch.testing.assert_close(categorical_log_prob(logits, x.to(narrow), dim=1), expected)


def test_mixtures_are_torch_distributions() -> None:
    params, x = torch.randn(40, 15), torch.randn(40)
    logits, means, log_scales = params.chunk(3, -1)
    for kind, law in (("gaussian", torch.distributions.Normal), ("laplace", torch.distributions.Laplace)):
        each = law(means, log_scales.exp()).log_prob(x[:, None])
        torch.testing.assert_close(CONTINUOUS[kind](params, x), (each + logits.log_softmax(-1)).logsumexp(-1))


def test_logistics_are_those_of_pixelcnnpp() -> None:
    """The loss as it is written for PixelCNN++, in float64, where its differences of sigmoids keep their digits."""
    generator = torch.Generator().manual_seed(8)
    _, params, levels = example("logistic colours", (64,), (), 10, generator)
    logits, m, s, c = params.double().split([10, 30, 30, 30], 1)
    means, scales, shares = m.view(64, 3, 10), s.view(64, 3, 10).clamp(min=-7), torch.tanh(c.view(64, 3, 10))
    x = (levels.double() / 127.5 - 1)[..., None]
    means = torch.stack(
        [
            means[:, 0],
            means[:, 1] + shares[:, 0] * x[:, 0],
            means[:, 2] + shares[:, 1] * x[:, 0] + shares[:, 2] * x[:, 1],
        ],
        1,
    )
    centred, inverse = x - means, torch.exp(-scales)
    upper, lower, middle = inverse * (centred + 1 / 255), inverse * (centred - 1 / 255), inverse * centred
    mass = torch.sigmoid(upper) - torch.sigmoid(lower)
    density = middle - scales - 2 * F.softplus(middle) - math.log(127.5)
    inside = torch.where(mass > 1e-5, mass.clamp(min=1e-12).log(), density)
    each = torch.where(x < -0.999, upper - F.softplus(upper), torch.where(x > 0.999, -F.softplus(lower), inside))
    expected = torch.logsumexp(each.sum(1) + logits.log_softmax(-1), -1)
    torch.testing.assert_close(logistic_mixture_log_prob(params.double(), levels), expected)
    torch.testing.assert_close(logistic_mixture_log_prob(params, levels).double(), expected, rtol=1e-4, atol=1e-4)


# Laws of probability.


def test_probabilities_of_all_levels_sum_to_one() -> None:
    generator = torch.Generator().manual_seed(9)
    each = torch.arange(256)
    logits = 5 * torch.randn(256, generator=generator)
    assert categorical_log_prob(logits.expand(256, -1), each).exp().sum().item() == pytest.approx(1, abs=1e-5)
    both = bernoulli_log_prob(torch.tensor([2.5, 2.5]), torch.tensor([0, 1]))
    assert both.exp().sum().item() == pytest.approx(1, abs=1e-6)
    params = logistic_params((1, 10), 1, 1, generator)
    # Without the branch, which is an approximation, the bins are a partition of the line.
    total = logistic_mixture_log_prob(params.expand(256, -1), each, branch=0.0).exp().sum().item()
    assert total == pytest.approx(1, abs=1e-5)
    colours = logistic_params((1, 4), 2, 1, generator)
    pairs = torch.cartesian_prod(torch.arange(16), torch.arange(16))
    joint = logistic_mixture_log_prob(colours.expand(256, -1), pairs, levels=16, branch=0.0)
    assert joint.exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", list(CONTINUOUS))
def test_densities_integrate_to_one(kind: str) -> None:
    params = torch.randn(1, 12, generator=torch.Generator().manual_seed(10))
    x = torch.linspace(-60, 60, 240_001)
    density = CONTINUOUS[kind](params.expand(len(x), -1), x).exp()
    assert torch.trapezoid(density.double(), x.double()).item() == pytest.approx(1, abs=1e-4)


# Stability.


# The op as PyTorch sees it.


def options_of(head: Head) -> tuple[Any, ...]:
    return head.kind, head.dim, head.event_dims, head.levels, head.min_log_scale, head.branch


@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind: str) -> None:
    generator = torch.Generator().manual_seed(11)
    head, params, x = example(kind, (3,), (2, 4), 6, generator)
    for layout in (params, params.movedim(head.dim, -1).contiguous().movedim(-1, head.dim)):
        for learn in (False, True):
            leaf = layout.detach().requires_grad_(learn)
            torch.library.opcheck(torch.ops.fastar.heads.default, (leaf, x, *options_of(head)))
        grad = torch.randn(head.positions(params.shape), generator=generator)
        arguments = (grad, layout, x, *options_of(head), kind in CONTINUOUS)
        torch.library.opcheck(torch.ops.fastar.heads_backward.default, arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_of_the_reference(kind: str) -> None:
    generator = torch.Generator().manual_seed(12)
    head, params, x = example(kind, (3,), (2,), 3, generator)
    leaf = params.double().requires_grad_()
    data = x.double().requires_grad_() if kind in CONTINUOUS else x
    leaves = [leaf, data] if kind in CONTINUOUS else [leaf]
    assert torch.autograd.gradcheck(lambda p, *rest: reference.log_prob(p, rest[0] if rest else x, head), leaves)
    # The closed forms, which float64 runs on.
    assert torch.autograd.gradcheck(lambda p, *rest: run(head, p, rest[0] if rest else x), leaves)


@pytest.mark.parametrize("kind", KINDS)
def test_compile_fullgraph(kind: str) -> None:
    head, params, x = example(kind, (3,), (4, 5), 6, torch.Generator().manual_seed(13))

    def model(params: Tensor) -> Tensor:
        return run(head, params.sin(), x).cos()

    # Each kind is another graph of the same function, and torch counts them together.
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for layout in (params, params.movedim(head.dim, -1).contiguous().movedim(-1, head.dim)):
        results = []
        for function in (compiled, model):
            leaf = layout.detach().requires_grad_()
            y = function(leaf)
            results.append((y.detach(), *torch.autograd.grad(y.sum(), leaf)))
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_inside_under_autocast(dtype: torch.dtype) -> None:
    head, params, x = example("logistic colours", (4,), (5,), 6, torch.Generator().manual_seed(14))
    with torch.autocast("cpu", dtype=dtype):
        ours = run(head, params, x)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, run(head, params, x))


def test_second_order_and_vmap_are_refused() -> None:
    params, x = torch.randn(3, 6, requires_grad=True), torch.randn(3)
    (gradient,) = torch.autograd.grad(gaussian_mixture_log_prob(params, x).square().sum(), params, create_graph=True)
    with pytest.raises(RuntimeError, match="second-order gradients are not available"):
        gradient.sum().backward()
    with pytest.raises(RuntimeError, match="vmap is not available"):
        torch.vmap(gaussian_mixture_log_prob)(params.detach(), x)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_and_neighbours_do_not_change_a_bit(kind: str) -> None:
    head, params, x = example(kind, (900,), (), 40, torch.Generator().manual_seed(15))
    if kind == "bernoulli summed":
        head, params, x = Head("bernoulli", event_dims=1), torch.randn(900, 50), torch.randint(0, 2, (900, 50))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaf = params.detach().requires_grad_()
            y = run(head, leaf, x)
            results.append((y.detach(), *torch.autograd.grad(y.sum(), leaf)))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))
    part = run(head, params[37:501], x[37:501])
    assert torch.equal(part, results[0][0][37:501])


# Memory.


def resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def peak_growth(call: Callable[[], object]) -> int:
    """How much more memory the process held at most while `call` ran."""
    call()
    peak, done = [0], threading.Event()
    start = resident()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], resident() - start)
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return peak[0]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the process's memory from /proc")
@pytest.mark.parametrize("kind", ["bernoulli summed", "categorical", "gaussian", "logistic colours"])
def test_nothing_of_the_size_of_the_parameters_but_their_gradient(kind: str) -> None:
    generator = torch.Generator().manual_seed(16)
    size = {"categorical": 400, "gaussian": 133, "logistic colours": 40}.get(kind, 1)
    head, params, x = example(kind, (20_000,), (), size, generator)
    if kind == "bernoulli summed":
        head, params = Head("bernoulli", event_dims=1), torch.randn(20_000, 400)
        x = torch.randint(0, 2, (20_000, 400), dtype=torch.uint8)
    bytes_of_params = params.nbytes
    assert bytes_of_params > 30e6
    forward = peak_growth(lambda: run(head, params, x))
    assert forward < bytes_of_params / 8
    leaf = params.requires_grad_()
    both = peak_growth(lambda: torch.autograd.grad(run(head, leaf, x).sum(), leaf))
    assert both < bytes_of_params * 9 / 8


# Training.


TRAINED = [("bernoulli summed", 1), ("categorical", 32), ("gaussian", 4), ("laplace", 4), ("logistic colours", 3)]


@pytest.mark.parametrize(("kind", "size"), TRAINED)
def test_training_follows_the_reference(kind: str, size: int) -> None:
    """200 steps of gradient descent on a fixed regression: the fast op's loss curve is the reference's."""
    generator = torch.Generator().manual_seed(17)
    head, params, x = example(kind, (64,), (), size, generator)
    if kind == "bernoulli summed":
        head, params, x = Head("bernoulli", event_dims=1), torch.zeros(64, 12), torch.randint(0, 2, (64, 12))
    features = torch.randn(64, 16, generator=generator)
    start = torch.randn(params.shape[1], 16, generator=generator) / 10

    def curve(dtype: torch.dtype, log_prob: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        weight = start.to(dtype).clone().requires_grad_()
        data = x.to(dtype) if x.is_floating_point() else x
        optimiser = torch.optim.SGD([weight], lr=0.02)
        losses = []
        for _ in range(200):
            optimiser.zero_grad()
            loss = -log_prob(F.linear(features.to(dtype), weight), data).mean()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    ours = curve(torch.float32, lambda p, x: run(head, p, x))
    plain = curve(torch.float32, lambda p, x: reference.log_prob(p, x, head))
    exact = curve(torch.float64, lambda p, x: reference.log_prob(p, x, head))
    assert exact[-1] < exact[0] - 0.05
    assert_within_budget(ours, plain, exact, what="loss curve")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "before", "after", "size"),
    [
        ("categorical", (196_608,), (), 256),
        ("categorical", (64,), (), 65_536),
        ("logistic colours", (64,), (32, 32), 10),
    ],
)
def test_largest_shapes_against_float64(kind: str, before: tuple[int, ...], after: tuple[int, ...], size: int) -> None:
    generator = torch.Generator().manual_seed(18)
    head, params, x = example(kind, before, after, size, generator)
    check_against_reference(head, params, x, torch.randn(head.positions(params.shape), generator=generator))
