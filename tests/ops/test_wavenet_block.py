"""The WaveNet block against its reference in float64: forward and every gradient, on each implementation."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from budget import assert_within_budget
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import SITE
from torch import Tensor

from fastar import _dispatch
from fastar.native import core
from fastar.ops import wavenet_block
from fastar.reference.wavenet_block import wavenet_block as reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SCALES = {"residual_scale": math.sqrt(0.5), "skip_scale": 1 / math.sqrt(3)}
# batch, residual, gate, skip, time, kernel_size, dilation, hop (0: no conditioning)
SHAPES = [
    (2, 5, 7, 9, 131, 3, 4, 10),
    (1, 64, 64, 33, 300, 2, 64, 300),
    (2, 70, 20, 30, 97, 2, 1, 0),
    (1, 3, 1, 2, 1, 2, 1, 1),
    (3, 1, 9, 1, 50, 1, 1, 7),
    (2, 4, 40, 50, 60, 3, 40, 64),
]


def tensors(shape: tuple[int, ...], dtype: torch.dtype, *, bias: bool = True, skips: bool = True) -> dict[str, Tensor]:
    batch, residual, gate, skip, time, taps, _, hop = shape
    made = {
        "x": torch.randn(batch, residual, time),
        "weight": torch.randn(2 * gate, residual, taps) / math.sqrt(taps * residual),
        "residual_weight": torch.randn(residual, gate) / math.sqrt(gate),
        "skip_weight": torch.randn(skip, gate) / math.sqrt(gate),
    }
    if bias:
        made |= {
            "bias": torch.randn(2 * gate),
            "residual_bias": torch.randn(residual),
            "skip_bias": torch.randn(skip),
        }
    if hop:
        made["conditioning"] = torch.randn(batch, 2 * gate, math.ceil(time / hop))
    if skips:
        made["skip_sum"] = torch.randn(batch, skip, time)
    return {name: t.to(dtype) for name, t in made.items()}


def gradients(
    run: Callable[..., tuple[Tensor, Tensor]], inputs: dict[str, Tensor], grads: tuple[Tensor, Tensor], **call: Any
) -> list[Tensor]:
    """Both outputs and the gradients of all inputs."""
    optional = ("bias", "residual_bias", "skip_bias")
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    out = run(**{**dict.fromkeys(optional), **leaves}, **call)
    used = [g.to(y.dtype) for g, y in zip(grads, out, strict=True)]
    return [*(y.detach() for y in out), *torch.autograd.grad(out, list(leaves.values()), used)]


def terms(inputs: dict[str, Tensor], grads: tuple[Tensor, Tensor], **call: Any) -> list[Tensor]:
    """The size of the sums behind each result: of their terms' absolute values, gates taken for open."""

    def linear(x: Tensor, weight: Tensor, bias: Any, residual_weight: Tensor, residual_bias: Any, skip_weight: Tensor,
               skip_bias: Any, dilation: int, conditioning: Tensor | None = None, hop: int = 1,
               skip_sum: Tensor | None = None, residual_scale: float = 1, skip_scale: float = 1,
               ) -> tuple[Tensor, Tensor]:  # fmt: skip
        z = F.conv1d(F.pad(x, ((weight.shape[2] - 1) * dilation, 0)), weight, bias, dilation=dilation)
        if conditioning is not None:
            z = z + conditioning.repeat_interleave(hop, 2)[:, :, : x.shape[2]]
        first, second = z.chunk(2, 1)
        h = first + second
        residual = F.conv1d(h, residual_weight.unsqueeze(2), residual_bias) + x
        skip = F.conv1d(h, skip_weight.unsqueeze(2), skip_bias)
        return residual, skip if skip_sum is None else skip + skip_sum

    sizes = {name: t.double().abs() for name, t in inputs.items()}
    return gradients(linear, sizes, (grads[0].double().abs(), grads[1].double().abs()), **call)


def check(inputs: dict[str, Tensor], grads: tuple[Tensor, Tensor], **call: Any) -> None:
    ours = gradients(wavenet_block, inputs, grads, **call)
    same = gradients(reference, inputs, grads, **call)
    doubled = {name: t.double() for name, t in inputs.items()}
    exact = gradients(reference, doubled, (grads[0].double(), grads[1].double()), **call)
    sizes = terms(inputs, grads, **call)
    for what, a, b, c, size in zip(["residual", "skip", *inputs], ours, same, exact, sizes, strict=True):
        assert_within_budget(a, b, c, scale=torch.maximum(c.abs(), size), what=what)


def made(shape: tuple[int, ...], dtype: torch.dtype, **options: bool) -> tuple[Any, dict[str, Any]]:
    inputs = tensors(shape, dtype, **options)
    grads = (torch.randn(inputs["x"].shape).to(dtype), torch.randn(shape[0], shape[3], shape[4]).to(dtype))
    return (inputs, grads), {"dilation": shape[6], "hop": max(shape[7], 1)}


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes(implementation: str, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        given, call = made(shape, dtype)
        with _dispatch.forced("wavenet_block", implementation):
            check(*given, **call, **SCALES)


@given(
    batch=st.integers(0, 3),
    residual=st.integers(1, 12),
    gate=st.integers(1, 12),
    skip=st.integers(1, 12),
    time=st.integers(0, 120),
    taps=st.integers(1, 4),
    dilation=st.integers(1, 9),
    hop=st.integers(0, 20),
    layout=st.sampled_from(["contiguous", "channels_last", "strided", "expanded"]),
    has_bias=st.booleans(),
    has_skips=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=30, deadline=None)
def test_any_shape_and_stride(
    batch: int,
    residual: int,
    gate: int,
    skip: int,
    time: int,
    taps: int,
    dilation: int,
    hop: int,
    layout: str,
    has_bias: bool,
    has_skips: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    shape = (batch, residual, gate, skip, time, taps, dilation, hop)
    (inputs, grads), call = made(shape, dtype, bias=has_bias, skips=has_skips)
    if layout == "channels_last":
        inputs = {name: t if t.dim() == 1 else t.mT.contiguous().mT for name, t in inputs.items()}
        grads = tuple(g.mT.contiguous().mT for g in grads)
    elif layout == "strided":
        inputs = {name: torch.stack([t, t], -1)[..., 0] for name, t in inputs.items()}
        grads = tuple(torch.stack([g, g], -1)[..., 0] for g in grads)
    elif layout == "expanded":
        inputs["x"] = torch.randn(1, residual, 1).to(dtype).expand(inputs["x"].shape)
        grads = tuple(torch.randn(1, 1, time).to(dtype).expand(g.shape) for g in grads)
    if time == 0:
        ours = wavenet_block(**{**dict.fromkeys(("bias", "residual_bias", "skip_bias")), **inputs}, **call)
        assert [y.shape for y in ours] == [(batch, residual, 0), (batch, skip, 0)]
        return
    check(inputs, grads, **call)


def test_outputs_see_no_later_input() -> None:
    inputs = tensors((1, 4, 5, 3, 40, 3, 5, 0), torch.float32)
    x = inputs.pop("x").requires_grad_()
    for out in wavenet_block(x, **inputs, dilation=5):
        for t in range(40):
            (gradient,) = torch.autograd.grad(out[:, :, t].sum(), x, retain_graph=True)
            seen = {t - 5 * k for k in range(3) if t >= 5 * k}
            assert set(gradient[0].abs().sum(0).nonzero().flatten().tolist()) == seen


@pytest.mark.parametrize("used", [0, 1])
@pytest.mark.parametrize("implementation", ["cpu", "reference"])
def test_one_output_may_be_unused(used: int, implementation: str) -> None:
    (inputs, grads), call = made(SHAPES[0], torch.float32)

    def run(function: Callable[..., tuple[Tensor, Tensor]], dtype: torch.dtype) -> list[Tensor]:
        leaves = {name: t.to(dtype).requires_grad_() for name, t in inputs.items()}
        out = function(**leaves, **call, **SCALES)[used]
        found = torch.autograd.grad(out, list(leaves.values()), grads[used].to(dtype), materialize_grads=True)
        return [*found]

    with _dispatch.forced("wavenet_block", implementation):
        ours = run(wavenet_block, torch.float32)
    for what, a, b, c in zip(inputs, ours, run(reference, torch.float32), run(reference, torch.float64), strict=True):
        assert_within_budget(a, b, c, what=what)


def test_nothing_is_changed_in_place() -> None:
    inputs = tensors(SHAPES[0], torch.float32)
    before = {name: t.clone() for name, t in inputs.items()}
    wavenet_block(**inputs, dilation=4, hop=10)
    assert all(torch.equal(before[name], t) for name, t in inputs.items())


def test_the_backward_saves_inputs_alone() -> None:
    inputs = {name: t.requires_grad_() for name, t in tensors(SHAPES[0], torch.float32).items()}
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        wavenet_block(**inputs, dilation=4, hop=10)
    given = {t.data_ptr() for t in inputs.values()}
    assert saved
    assert all(t.data_ptr() in given for t in saved)


MEMORY = """
import resource, sys, torch
from fastar.ops import wavenet_block
torch.set_num_threads(1)
residual, gate, skip, time = map(int, sys.argv[1:])
sizes = ((2 * gate, residual, 2), (residual, gate), (skip, gate))
weight, mixed, skips = (torch.randn(size) for size in sizes)
x = torch.randn(1, residual, time)
call = lambda x: wavenet_block(x, weight, None, mixed, None, skips, None, dilation=4)
call(x[:, :, :100])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
call(x)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_memory() -> None:
    """The forward's peak is its two outputs; the gate's inputs and h would be six times as large here."""
    residual, gate, skip, time = 16, 64, 16, 200_000
    command = [sys.executable, "-c", MEMORY, *map(str, (residual, gate, skip, time))]
    done = subprocess.run(command, cwd=SITE, capture_output=True, text=True, check=True)
    outputs, inside = 4 * (residual + skip) * time, 4 * 3 * gate * time
    assert int(done.stdout) < outputs + inside / 8


def test_threads_do_not_change_a_bit() -> None:
    before = torch.get_num_threads()
    try:
        for shape in SHAPES[:3]:
            given, call = made(shape, torch.float32)
            results = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(gradients(wavenet_block, *given, **call))
            names = ["residual", "skip", *given[0]]
            for one in results[1:]:
                for name, a, b in zip(names, one, results[0], strict=True):
                    # The gradients of biases and of conditioning are torch's own sums.
                    assert torch.equal(a, b) or name in {"bias", "residual_bias", "skip_bias", "conditioning"}, name
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("level", core().levels_usable())
def test_vector_levels(level: str) -> None:
    usual = core().level()
    core().select_level(level)
    try:
        for dtype in DTYPES:
            for shape in SHAPES[:3]:
                given, call = made(shape, dtype)
                check(*given, **call)
    finally:
        core().select_level(usual)


def test_frozen_tensors_get_no_gradient() -> None:
    inputs = tensors(SHAPES[0], torch.float32)
    inputs["skip_weight"].requires_grad_()
    residual, skip = wavenet_block(**inputs, dilation=4, hop=10)
    (residual.sum() + skip.sum()).backward()
    assert inputs["x"].grad is None
    assert inputs["skip_weight"].grad is not None


@pytest.mark.parametrize("full", [True, False])
def test_opcheck(full: bool) -> None:
    order = ("x", "weight", "bias", "residual_weight", "residual_bias", "skip_weight", "skip_bias", "conditioning")
    inputs = tensors((2, 4, 3, 5, 9, 2, 2, 4 if full else 0), torch.float32, bias=full, skips=full)
    rest = (2, 4, 0.7, 0.5)
    for learn in (False, True):
        leaves = {name: t.clone().requires_grad_(learn) for name, t in inputs.items()}
        layer = [leaves.get(name) for name in order]
        torch.library.opcheck(torch.ops.fastar.wavenet_block.default, (*layer, *rest, leaves.get("skip_sum")))
    saved = [inputs.get(name) for name in order if name not in {"residual_bias", "skip_bias"}]
    grads = (torch.randn(2, 4, 9), torch.randn(2, 5, 9) if full else None)
    needs = [True, True, True, True, full, True, True, full]
    torch.library.opcheck(torch.ops.fastar.wavenet_block_backward.default, (*grads, *saved, *rest, needs))


@pytest.mark.parametrize("run", [reference, wavenet_block])
def test_gradcheck(run: Callable[..., tuple[Tensor, Tensor]]) -> None:
    inputs = tensors((1, 2, 3, 2, 5, 2, 2, 2), torch.float64)

    def call(*values: Tensor) -> tuple[Tensor, Tensor]:
        return run(**dict(zip(inputs, values, strict=True)), dilation=2, hop=2, **SCALES)

    assert torch.autograd.gradcheck(call, [t.requires_grad_() for t in inputs.values()])


def test_compile_fullgraph() -> None:
    (inputs, grads), call = made((2, 4, 5, 6, 30, 3, 2, 8), torch.float32)

    def model(x: Tensor, **rest: Any) -> tuple[Tensor, Tensor]:
        residual, skip = wavenet_block(x.sin(), **rest)
        return residual.cos(), skip

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    plain = gradients(model, inputs, grads, **call)
    for a, b in zip(gradients(compiled, inputs, grads, **call), plain, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_torchs(dtype: torch.dtype) -> None:
    inputs = tensors(SHAPES[0], torch.float32)
    inputs["weight"].requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        ours = wavenet_block(**inputs, dilation=4, hop=10)
        plain = reference(**inputs, dilation=4, hop=10)
    for a, b in zip(ours, plain, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.float(), b.float(), atol=0.1, rtol=0.05)
    (gradient,) = torch.autograd.grad(ours[1].float().sum(), inputs["weight"])
    assert gradient.dtype == torch.float32


def test_second_order_and_vmap_are_refused() -> None:
    inputs = tensors((2, 4, 3, 5, 9, 2, 2, 0), torch.float32)
    x = inputs.pop("x").requires_grad_()
    residual, _ = wavenet_block(x, **inputs)
    (gradient,) = torch.autograd.grad(residual.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second-order gradients are not available"):
        gradient.sum().backward()
    inputs.pop("skip_sum")
    with pytest.raises(RuntimeError, match="vmap is not available"):
        torch.vmap(lambda one: wavenet_block(one, **inputs))(torch.randn(4, 2, 4, 9))


GOOD = tensors((2, 4, 3, 5, 9, 2, 2, 4), torch.float32)
BAD: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    ("integer x", TypeError, "x: expected dtype", {"x": GOOD["x"].long()}),
    ("x no tensor", TypeError, "x: expected a tensor, got list", {"x": [1.0]}),
    ("channels of x", ValueError, r"x: expected shape \[batch, 4, time\]", {"x": GOOD["x"][:, :3]}),
    ("odd rows", ValueError, "weight: expected an even number of rows", {"weight": GOOD["weight"][:5]}),
    ("no taps", ValueError, "weight: expected an even number of rows", {"weight": GOOD["weight"][:, :, :0]}),
    ("bias", ValueError, r"bias: expected shape \[6\]", {"bias": torch.zeros(3)}),
    ("residual", ValueError, r"residual_weight: expected shape \[4, 3\]", {"residual_weight": torch.zeros(3, 3)}),
    ("residual bias", ValueError, r"residual_bias: expected shape \[4\]", {"residual_bias": torch.zeros(3)}),
    ("skip", ValueError, r"skip_weight: expected shape \[skip, 3\]", {"skip_weight": torch.zeros(5, 4)}),
    ("skip bias", ValueError, r"skip_bias: expected shape \[5\]", {"skip_bias": torch.zeros(4)}),
    ("skip sum", ValueError, r"skip_sum: expected shape \[2, 5, 9\]", {"skip_sum": torch.zeros(2, 5, 8)}),
    ("conditioning", ValueError, r"conditioning: expected shape \[2, 6, frames\]", {
        "conditioning": torch.zeros(2, 3, 3)}),
    ("frames", ValueError, "conditioning: expected 3 frames of 4 times to cover 9, got 2", {
        "conditioning": torch.zeros(2, 6, 2)}),
    ("dtype", TypeError, "skip_weight: expected dtype float32", {"skip_weight": GOOD["skip_weight"].half()}),
    ("device", ValueError, "bias: expected the device of x", {"bias": GOOD["bias"].to("meta")}),
    ("dilation", ValueError, "dilation: expected a positive", {"dilation": -1}),
    ("hop", ValueError, "hop: expected a positive", {"hop": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "changed"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_named(error: type[Exception], message: str, changed: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        wavenet_block(**{**GOOD, "hop": 4, **changed})


def test_training_follows_the_reference() -> None:
    """200 steps of Adam on a fixed regression: the fast op's loss curve is the reference's."""
    x, target = torch.randn(4, 6, 40), torch.randn(4, 5, 40)
    start = [tensors((4, 6, 8, 5, 40, 2, 1, 0), torch.float32, skips=False) for _ in range(2)]

    def curve(dtype: torch.dtype, layer: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
        layers = [
            {name: t.to(dtype).clone().requires_grad_() for name, t in one.items() if name != "x"} for one in start
        ]
        optimiser = torch.optim.Adam([t for one in layers for t in one.values()], lr=3e-3)
        losses = []
        for _ in range(200):
            optimiser.zero_grad()
            residual, skip = layer(x.to(dtype), **layers[0], residual_scale=math.sqrt(0.5))
            _, skip = layer(residual, **layers[1], dilation=2, skip_sum=skip)
            loss = (skip - target.to(dtype)).square().mean()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    ours, plain = curve(torch.float32, wavenet_block), curve(torch.float32, reference)
    exact = curve(torch.float64, reference)
    assert exact[-1] < 0.95 * exact[0]
    assert_within_budget(ours, plain, exact, what="loss curve")
